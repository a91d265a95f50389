"""Small texts that several processes change one at a time: the rate limit's budgets and the locks between machines."""

from __future__ import annotations

from urllib.parse import urlsplit

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.scrub import excerpt, register_secret
from payout_pipeline.shared_store.store import Edit, SharedStore, StoreBusyError, T

__all__ = ["Edit", "SharedStore", "StoreBusyError", "T", "open_shared_store"]


def open_shared_store(url: str) -> SharedStore:
    """The Redis or PostgreSQL of ``PAYOUT_LIMITER_URL``. Connects at the first use.

    Raises ConfigurationError for a URL that cannot be read, or where the client's package is missing.
    """
    parts = urlsplit(url)
    register_secret(parts.password)
    package = "redis" if parts.scheme.startswith("redis") else "psycopg"
    try:
        if package == "redis":
            from payout_pipeline.shared_store.redis_store import RedisStore

            return RedisStore(url)
        from payout_pipeline.shared_store.postgres_store import PostgresStore

        return PostgresStore(url)
    except ImportError:
        raise ConfigurationError(
            f"PAYOUT_LIMITER_URL needs the package {package}, which is not installed here: "
            "pip install 'payout-pipeline[cluster]'"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"PAYOUT_LIMITER_URL: {excerpt(str(error))}") from None
