"""One way to talk to ClickHouse, a server over HTTP or the embedded engine, with clickhouse-connect under both.

What belongs here: connecting, sending a statement with bound parameters, waiting out what is transient, and turning
every failure into one of the classes of ``errors.py``. What a statement means is none of this module's business.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from payout_pipeline.errors import ConfigurationError, WarehouseUnavailableError
from payout_pipeline.scrub import excerpt, scrub
from payout_pipeline.warehouse import embedded
from payout_pipeline.warehouse.faults import ClickHouseRefusedError, Fault, Kind, classify, is_expected
from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier
from payout_pipeline.warehouse.server import Server, server_of
from payout_pipeline.warehouse.session_settings import SESSION_SETTINGS, settle
from payout_pipeline.warehouse.transport import (
    ERROR_AT_THE_END,
    LONGEST_ERROR,
    MAX_PAUSE_SECONDS,
    clickhouse_type,
    server_error,
    stream_of,
    whole,
    with_patience,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_CONTACT_SECONDS = 1.5  # a server that never answered is a wrong address rather than an outage
_CONNECT_SECONDS = 10


class Session:
    """A connection for a few statements. Values travel as bound parameters (``{name:Type}``) or as inserted data.

    Each method takes ``doing``: the step and the table, for messages. Transient failures are repeated with growing,
    jittered pauses until the waiting budget is used up (WarehouseUnavailableError); others raise at once
    (WarehousePermanentError, StorageError).
    """

    def __init__(self, client: Any, warehouse: Warehouse, comment: str) -> None:
        self._client = client
        self._wait = warehouse.wait_seconds
        self._comment = comment
        self._insert_id: str | None = None
        self.embedded = warehouse.embedded
        self.address = warehouse.address

    @property
    def version(self) -> str:
        """The server's version, such as ``26.9.2.1``."""
        return str(self._client.server_version)

    @property
    def database(self) -> str:
        """The database of unqualified names."""
        return str(self._client.database or "default")

    def arrow(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        doing: str,
        external: Mapping[str, pa.RecordBatch] | None = None,
        settings: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> pa.Table:
        """Run a SELECT and return its whole result, with ``settings`` of this statement where the server knows them.

        What is transient is waited out unless the statement is not ``repeatable``.

        ``external`` are tables of this statement only, referred to as ``{name:Identifier}``; their columns are of the
        types of :func:`clickhouse_type`.
        """
        import pyarrow as pa

        def run() -> pa.Table:
            body = self._select(sql, dict(parameters or {}), external or {}, "ArrowStream", settings)
            if not body:
                return pa.table({})
            try:
                return pa.ipc.open_stream(pa.py_buffer(body)).read_all()
            except (pa.ArrowInvalid, OSError) as error:
                if (said := ERROR_AT_THE_END.search(body[-LONGEST_ERROR:])) is not None:
                    raise server_error(said[0]) from error
                raise

        return self._patiently(run, sql, doing, None if repeatable else 0.0)

    def may_set(self, name: str) -> bool:
        """Whether the server knows the setting and does not say that this user must leave it."""
        known = self._client.server_settings.get(name)
        return known is not None and not known.readonly

    def rows(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        doing: str,
        external: Mapping[str, pa.RecordBatch] | None = None,
    ) -> list[dict[str, Any]]:
        """Run a SELECT and return its rows as dictionaries, for small results."""
        rows: list[dict[str, Any]] = self.arrow(sql, parameters, doing=doing, external=external).to_pylist()
        return rows

    def scalar(self, sql: str, parameters: Mapping[str, Any] | None = None, *, doing: str) -> Any:
        """The single value of a SELECT with one row and one column."""
        return next(iter(self.rows(sql, parameters, doing=doing)[0].values()))

    def text(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, doing: str, fmt: str | None = "PrettyCompact"
    ) -> str:
        """The result of a SELECT as ClickHouse formats it, for showing; ``fmt`` None: the statement says how itself."""
        if fmt is not None:
            quote_identifier(fmt)

        def run() -> bytes:
            return self._select(sql, dict(parameters or {}), {}, fmt)

        return self._patiently(run, sql, doing).decode(errors="replace")

    def command(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, doing: str, repeatable: bool = True
    ) -> None:
        """Run a statement without a result. A lost answer makes it run again unless it is not ``repeatable``."""

        def run() -> None:
            self._client.command(sql, parameters=dict(parameters or {}), settings=self._settings())

        self._patiently(run, sql, doing, None if repeatable else 0.0)

    def insert_once(self, table: QualifiedName, batch: pa.RecordBatch, *, token: str, doing: str) -> Fault | None:
        """Insert ``batch`` as one block, by column name, in one attempt; None when the server confirmed it.

        A transient failure is **returned**, not raised: whether the rows were stored is then unknown, and the caller
        has to look before it tries again. Permanent failures raise. ``token`` makes a repeated block of replicated
        tables count once; it has to be new for every load, as the server remembers it beyond a deletion.
        """
        columns = ", ".join(quote_identifier(name) for name in batch.schema.names)
        logger.debug("insert of %d rows into %s (%s)", batch.num_rows, table, columns)
        settings = self._settings(insert_deduplication_token=token, max_insert_block_size=max(batch.num_rows, 1))
        self._insert_id = settings.get("query_id")
        try:
            # As a file object, because the driver repeats an insert of bytes by itself after a lost answer.
            self._client.raw_insert(
                table.sql,
                column_names=batch.schema.names,
                insert_block=stream_of(batch),
                fmt="ArrowStream",
                settings=settings,
            )
        except Exception as error:
            if not is_expected(error):
                raise
            fault = classify(error)
            if fault.kind is not Kind.TRANSIENT:
                raise fault.error(doing, self.address) from error
            return fault
        return None

    def wait_after(self, lost: Fault, doing: str, since: float, attempt: int) -> None:
        """After the ``attempt``-th insert without an answer: pause, then wait until it is not running any more.

        ``since`` (``time.monotonic()``) is when the first of them failed. Raises WarehouseUnavailableError once the
        waiting budget is over.
        """
        logger.warning("ClickHouse, %s: %s; looking at what is stored before trying again", doing, lost.text)
        while True:
            left = since + self._wait - time.monotonic()
            if left <= 0:
                raise lost.error(f"{doing} ({attempt} attempts in {time.monotonic() - since:.0f} s)")
            pause = min(0.1 * 2 ** min(attempt, 10), MAX_PAUSE_SECONDS, left)
            time.sleep(pause * random.uniform(0.5, 1.0))
            if not self._insert_running(doing):
                return

    def _insert_running(self, doing: str) -> bool:
        if self.embedded or self._insert_id is None:
            return False
        sql = "SELECT count() AS running FROM system.processes WHERE query_id = {id:String}"
        try:
            return bool(self.scalar(sql, {"id": self._insert_id}, doing=doing))
        except ClickHouseRefusedError as error:  # a user without the grant may not see what is running
            logger.debug("running statements cannot be seen: %s", error)
            return False

    def _settings(self, **extra: Any) -> dict[str, Any]:
        wanted = dict(extra)
        if not self.embedded:
            wanted["query_id"] = f"payout-{uuid.uuid4()}"
            wanted["log_comment"] = self._comment
        return {key: value for key, value in wanted.items() if key == "query_id" or self.may_set(key)}

    def _select(
        self,
        sql: str,
        parameters: dict[str, Any],
        external: Mapping[str, pa.RecordBatch],
        fmt: str | None,
        settings: Mapping[str, Any] | None = None,
    ) -> bytes:
        wanted = self._settings(**(settings or {}))
        if not external:
            return whole(self._client.raw_query(sql, parameters=parameters, fmt=fmt, settings=wanted))
        if not self.embedded:
            from clickhouse_connect.driver.external import ExternalData

            data = ExternalData()
            for name, batch in external.items():
                structure = [f"{field.name} {clickhouse_type(field.type)}" for field in batch.schema]
                data.add_file(file_name=name, data=stream_of(batch).getvalue(), fmt="ArrowStream", structure=structure)
            return whole(
                self._client.raw_query(
                    sql,
                    parameters={**parameters, **{name: name for name in external}},
                    fmt=fmt,
                    settings=wanted,
                    external_data=data,
                )
            )
        names: dict[str, str] = {}
        try:
            for name, batch in external.items():
                names[name] = f"external_{name}_{uuid.uuid4().hex}"
                columns = ", ".join(
                    f"{quote_identifier(field.name)} {clickhouse_type(field.type)}" for field in batch.schema
                )
                self._client.command(
                    f"CREATE TEMPORARY TABLE {quote_identifier(names[name])} ({columns}) ENGINE = Memory"
                )
                self._client.raw_insert(names[name], insert_block=stream_of(batch), fmt="ArrowStream")
            return bytes(self._client.raw_query(sql, parameters={**parameters, **names}, fmt=fmt))
        finally:
            for name in names.values():
                self._client.command(f"DROP TEMPORARY TABLE IF EXISTS {quote_identifier(name)}")

    def _patiently(self, run: Callable[[], T], sql: str, doing: str, wait_seconds: float | None = None) -> T:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %s", doing, excerpt(" ".join(sql.split()), 2000))
        return with_patience(run, self._wait if wait_seconds is None else wait_seconds, doing, self.address)


class Warehouse:
    """ClickHouse as the settings name it: a server where ``CLICKHOUSE_HOST`` is set, else ``<runtime>/clickhouse``.

    Cheap to build: nothing is opened before the first :meth:`session`. ``comment`` names run and asset in the server's query
    log; ``most_seconds`` shortens ``CLICKHOUSE_WAIT_SECONDS``. Raises ConfigurationError where neither can be used.
    """

    def __init__(self, settings: Settings, comment: str = "payout-pipeline", most_seconds: float = math.inf) -> None:
        self._server = server_of(settings)
        remote = "://" in settings.runtime_dir
        if self._server is None and remote:
            raise ConfigurationError(
                f"PAYOUT_RUNTIME_DIR is {scrub(settings.runtime_dir)}: the embedded database needs a local one.\n"
                "To repair it: set CLICKHOUSE_HOST to a server, or PAYOUT_RUNTIME_DIR to a local directory."
            )
        self._directory = Path(settings.runtime_dir) / "clickhouse"
        self._database = settings.clickhouse_database
        self.wait_seconds = min(settings.clickhouse_wait_seconds, most_seconds)
        self._comment = comment
        self._contact_file = None if remote else Path(settings.runtime_dir) / "clickhouse.contact.json"
        self._patient = True
        self._client: Any = None
        self._lock = threading.Lock()

    @classmethod
    def existing(cls, settings: Settings, comment: str, most_seconds: float) -> Warehouse | None:
        """The warehouse for those who only look, and make nothing: None where the embedded database does not exist yet."""
        if settings.embedded and not (Path(settings.runtime_dir) / "clickhouse").is_dir():
            return None
        found = cls(settings, f"payout-pipeline: {comment}", most_seconds)
        found._patient, found._contact_file = False, None
        return found

    @property
    def embedded(self) -> bool:
        """Whether the engine runs in this process."""
        return self._server is None

    @property
    def address(self) -> str:
        """For messages: the server's URL without credentials, or the directory of the embedded engine."""
        return self._server.address if self._server else f"embedded ClickHouse in {self._directory}"

    @contextlib.contextmanager
    def session(self, purpose: str) -> Iterator[Session]:
        """A session for ``purpose`` (named to processes that wait for the embedded engine).

        A server that does not answer is waited for within ``CLICKHOUSE_WAIT_SECONDS`` if it ever answered before
        (this process, or an earlier one with the same runtime directory), else given up after a few seconds as a wrong
        address. Raises WarehouseUnavailableError, WarehousePermanentError, StorageError, ConfigurationError.
        """
        if self._server is None:
            with embedded.turn(self._directory, purpose, self.wait_seconds, self._open_embedded) as client:
                yield Session(client, self, self._comment)
        else:
            yield Session(self._server_client(self._server), self, f"{self._comment} {purpose}".strip())

    def _open_embedded(self, path: str) -> Any:
        import clickhouse_connect

        client = clickhouse_connect.get_client(interface="chdb", path=path)
        try:
            for key, value in SESSION_SETTINGS.items():
                if key in client.server_settings:
                    client.set_client_setting(key, value)
            if self._database and self._database != "default":
                client.command(f"CREATE DATABASE IF NOT EXISTS {quote_identifier(self._database)}")
                client.database = self._database
        except BaseException:
            client.close()
            raise
        return client

    def _server_client(self, server: Server) -> Any:
        with self._lock:
            if self._client is not None:
                return self._client
            known = self._patient and self._answered_before()
            budget = self.wait_seconds if known else min(self.wait_seconds, FIRST_CONTACT_SECONDS)
            try:
                self._client = with_patience(
                    lambda: self._connect(server, 15 if known else 3), budget, f"connecting to {self.address}"
                )
            except WarehouseUnavailableError as error:
                if known:
                    raise
                raise WarehouseUnavailableError(
                    f"{error}\nIt has not answered from here before, so the address may be wrong: check "
                    "CLICKHOUSE_HOST, CLICKHOUSE_PORT and CLICKHOUSE_SECURE, and that the server is running."
                ) from error
            weakref.finalize(self, self._client.close)  # the driver keeps its pools alive until they are closed
            self._remember_contact()
            return self._client

    def _connect(self, server: Server, first_seconds: int) -> Any:
        import clickhouse_connect
        from urllib3 import Retry, Timeout

        logging.getLogger("clickhouse_connect.driver._backend.http_sync").setLevel(logging.ERROR)
        client: Any = clickhouse_connect.get_client(
            host=server.host,
            port=server.port,
            interface="https" if server.secure else "http",
            username=server.user,
            password=server.password,
            database=server.database or "__default__",
            connect_timeout=_CONNECT_SECONDS if first_seconds >= _CONNECT_SECONDS else 1,  # each is tried twice
            send_receive_timeout=first_seconds,
            autogenerate_session_id=False,
            dedicated_pool=True,
            client_name="payout-pipeline",
            show_clickhouse_errors=True,
        )
        # As the driver's own default, but nothing is sent to where a redirect points.
        client.http_retries = Retry(1, redirect=False)
        try:
            settle(client)
        except BaseException:
            client.close()
            raise
        # A connection may die silently under any statement, so that one read has a part of the budget only. The server
        # says every ten seconds that a statement is still running.
        read_seconds = min(max(15.0, self.wait_seconds / 4), max(5.0, self.wait_seconds))
        client.timeout = Timeout(connect=_CONNECT_SECONDS, read=read_seconds)
        return client

    def _answered_before(self) -> bool:
        if self._contact_file is None:
            return True  # shared runtime directory: nothing is known here, so waiting is the safe side
        try:
            known = json.loads(self._contact_file.read_text())
        except (OSError, ValueError):
            return False
        return isinstance(known, dict) and known.get("address") == self.address

    def _remember_contact(self) -> None:
        if self._contact_file is None or self._answered_before():
            return
        with contextlib.suppress(OSError):  # a convenience: without it the next outage is reported early
            self._contact_file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._contact_file.with_name(f"{self._contact_file.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"address": self.address}))
            temporary.replace(self._contact_file)
