"""Small texts that several processes change one at a time: the rate limit's budgets and the locks between machines.

A store is a file of this machine, or the Redis or PostgreSQL of ``PAYOUT_LIMITER_URL``. Each has one clock, by which
all times in the texts are meant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from payout_pipeline.errors import ConfigurationError, TransientError
from payout_pipeline.scrub import excerpt

T = TypeVar("T")
Edit = Callable[[str | None, int], tuple[str | None, T]]

ANSWER_SECONDS = 2.0  # of a server, to connect and to each command


class StoreBusyError(TransientError):
    """Nothing was changed: another process has the store, or its server does not answer. Trying again may help."""

    retry_above = True


class SharedStore(ABC):
    """Texts by key. ``where`` names the place without secrets. Safe for several threads."""

    where: str

    @abstractmethod
    def edit(self, key: str, edit: Edit[T]) -> T:
        """Change one text as one transaction.

        Args:
            key: names the text.
            edit: gets the text (None: there is none) and the store's time in milliseconds; returns the new text (None:
                it stays as it is) and the result. May be called again where another process was quicker.

        Raises:
            StoreBusyError: nothing was changed.
            StorageError: the file cannot be used.
            ConfigurationError: the server refuses the user, the password or the database.
        """

    @abstractmethod
    def close(self) -> None:
        """Close connections; the store may be used again."""


def refused(service: str, error: Exception) -> ConfigurationError:
    """The server will never do it for this user."""
    return ConfigurationError(
        f"PAYOUT_LIMITER_URL: {service} refused: {excerpt(str(error))}. Correct the user, password or database."
    )


def unavailable(service: str, error: Exception) -> StoreBusyError:
    """The server did not do it now."""
    return StoreBusyError(
        f"PAYOUT_LIMITER_URL: {service} does not answer: {excerpt(str(error)) or type(error).__name__}"
    )
