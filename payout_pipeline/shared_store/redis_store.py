"""A shared store in Redis: a value for each text, changed under WATCH, MULTI and EXEC, on the clock of that server."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from payout_pipeline.scrub import scrub
from payout_pipeline.shared_store.store import ANSWER_SECONDS, Edit, SharedStore, T, refused, unavailable

_KEPT_MS = 2 * 86_400_000  # longer than the longest window of a rate limit


class RedisStore(SharedStore):
    """See :class:`SharedStore`. An edit that met another one is repeated."""

    def __init__(self, url: str) -> None:
        self.where = scrub(url)
        self._client: Any = redis.Redis.from_url(
            url,
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),  # who edits decides whether to try again
        )

    def edit(self, key: str, edit: Edit[T]) -> T:
        """See :meth:`SharedStore.edit`."""
        key = f"payout_pipeline:{key}"

        def change(pipe: Any) -> T:
            seconds, microseconds = pipe.time()
            stored = pipe.get(key)
            now = int(seconds) * 1000 + int(microseconds) // 1000
            text, result = edit(None if stored is None else stored.decode("utf-8", "replace"), now)
            pipe.multi()
            if text is not None:
                pipe.set(key, text, px=_KEPT_MS)
            return result

        try:
            result: T = self._client.transaction(change, key, value_from_callable=True)
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise refused("Redis", error) from None
        except (redis.RedisError, OSError) as error:
            raise unavailable("Redis", error) from None
        return result

    def close(self) -> None:
        """See :meth:`SharedStore.close`."""
        self._client.close()
