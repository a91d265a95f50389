"""A shared store in PostgreSQL: a row for each text in a table that is created if missing, on that server's clock."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from payout_pipeline.scrub import scrub
from payout_pipeline.shared_store.store import ANSWER_SECONDS, Edit, SharedStore, T, refused, unavailable

_CREATE = "CREATE TABLE IF NOT EXISTS payout_pipeline_shared (key text PRIMARY KEY, value text NOT NULL)"
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('payout_pipeline_shared'), hashtext(%s))"
_READ = (
    "SELECT (SELECT value FROM payout_pipeline_shared WHERE key = %s), "
    "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
)
_WRITE = (
    "INSERT INTO payout_pipeline_shared (key, value) VALUES (%s, %s) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_OPTIONS = "-c lock_timeout=2s -c statement_timeout=2s -c idle_in_transaction_session_timeout=10s"


class PostgresStore(SharedStore):
    """See :class:`SharedStore`. Edits of one key are serialised by an advisory lock of their transaction."""

    def __init__(self, url: str) -> None:
        self.where = scrub(url)
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self._turn = threading.Lock()  # one connection, used from several threads

    def edit(self, key: str, edit: Edit[T]) -> T:
        """See :meth:`SharedStore.edit`."""
        try:
            with self._turn:
                connection = self._connect()
                with connection.transaction():
                    connection.execute(_LOCK, (key,))
                    stored, now = connection.execute(_READ, (key,)).fetchone() or (None, 0)
                    text, result = edit(stored, int(now))
                    if text is not None:
                        connection.execute(_WRITE, (key, text))
                    return result
        except psycopg.OperationalError as error:
            # libpq gives no SQLSTATE for a refused login, so the text is all there is.
            state, text = error.sqlstate or "", str(error)
            if state[:2] in ("28", "3D") or "authentication failed" in text or "does not exist" in text:
                raise refused("PostgreSQL", error) from None
            raise unavailable("PostgreSQL", error) from None
        except psycopg.Error as error:
            raise refused("PostgreSQL", error) from None

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=round(ANSWER_SECONDS),
                tcp_user_timeout=round(ANSWER_SECONDS * 1000),
                application_name="payout-pipeline",
                options=_OPTIONS,
            )
            with self._connection.transaction():
                self._connection.execute(_LOCK, ("",))  # IF NOT EXISTS fails where two do it at the same moment
                self._connection.execute(_CREATE)
        return self._connection

    def close(self) -> None:
        """See :meth:`SharedStore.close`."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
