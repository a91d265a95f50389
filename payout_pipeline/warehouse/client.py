"""One way to talk to ClickHouse, a server over HTTP or the embedded engine, with clickhouse-connect under both.

What belongs here: connecting, sending a statement with bound parameters, waiting out what is transient, and turning
every failure into one of the classes of ``errors.py``. What a statement means is none of this module's business.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import random
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from payout_pipeline.errors import ConfigurationError, WarehouseUnavailableError
from payout_pipeline.scrub import excerpt, register_secret, scrub
from payout_pipeline.warehouse import embedded
from payout_pipeline.warehouse.faults import ClickHouseRefusedError, Fault, Kind, classify, is_expected
from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_STATEMENT_SECONDS = 300.0
FIRST_CONTACT_SECONDS = 1.5  # a server that never answered is a wrong address rather than an outage
_CONNECT_SECONDS = 10
_MAX_PAUSE_SECONDS = 5.0

# An error in the middle of an answer is written behind the data: between tags from 25.11 on, bare before.
_TAGGED_END = b"\r\n__exception__\r\n"
_TAGGED_ERROR = re.compile(rb"__exception__\r\n([a-z]{16})\r\n(.*)\n\d+ \1\r\n__exception__\r\n\Z", re.DOTALL)
_ERROR_AT_THE_END = re.compile(rb"Code: \d+\. DB::Exception: .*\Z", re.DOTALL)
_LONGEST_ERROR = 1 << 16

# Sent with every statement where the user may set them, so that a profile on the server cannot change what ours mean.
SESSION_SETTINGS: dict[str, Any] = {
    "async_insert": 0,  # an asynchronous insert is acknowledged before anything is written
    "join_use_nulls": 0,
    "transform_null_in": 0,
    "mutations_sync": 2,
    "lightweight_deletes_sync": 2,
    "do_not_merge_across_partitions_select_final": 0,  # 1 returns a row changed across partitions twice
    "insert_distributed_sync": 1,
    "throw_on_max_partitions_per_insert_block": 0,
    "input_format_null_as_default": 1,
    "output_format_arrow_string_as_string": 1,
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "session_timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class Server:
    """Where a ClickHouse server is. ``password`` never leaves this object except into the client."""

    host: str
    port: int
    secure: bool
    user: str | None
    password: str
    database: str | None

    @property
    def address(self) -> str:
        """For messages, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Server({self.address})"


def load_engine(settings: Settings) -> None:
    """Load what the embedded engine needs, which takes a third of a second, without opening it. No server: nothing."""
    if settings.embedded:
        with contextlib.suppress(ImportError):  # said when it is needed
            importlib.import_module("chdb")


def server_of(settings: Settings) -> Server | None:
    """The server that the settings name, None in embedded mode.

    ``CLICKHOUSE_HOST`` is a host name or a URL such as ``https://host:8443``; the other variables win over its parts.
    Raises ConfigurationError where the two contradict each other, the URL is no URL, or a cluster is named without a host.
    """
    text = (settings.clickhouse_host or "").strip()
    if not text:
        if settings.clickhouse_cluster:
            raise ConfigurationError(
                "PAYOUT_CLICKHOUSE_CLUSTER is set without CLICKHOUSE_HOST: the embedded database is on no cluster.\n"
                "To repair it: set CLICKHOUSE_HOST to one host of the cluster, or unset PAYOUT_CLICKHOUSE_CLUSTER."
            )
        return None
    password = settings.clickhouse_password.get_secret_value() if settings.clickhouse_password else ""
    user, port, secure, host = settings.clickhouse_user, settings.clickhouse_port, settings.clickhouse_secure, text
    if "://" in text:
        try:
            parts = urlsplit(text)
            url_port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"CLICKHOUSE_HOST: not a URL: {excerpt(str(error))}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigurationError("CLICKHOUSE_HOST: expected a host name or http(s)://host:port, nothing behind it")
        if secure is not None and secure != (parts.scheme == "https"):
            raise ConfigurationError(
                f"CLICKHOUSE_HOST begins with {parts.scheme}:// but CLICKHOUSE_SECURE says {int(secure)}; drop one"
            )
        host, secure = parts.hostname, parts.scheme == "https"
        port = port or url_port
        user = user or (unquote(parts.username) if parts.username else None)
        password = password or (unquote(parts.password) if parts.password else "")
        register_secret(password)
    elif text.count(":") == 1:
        name, _, tail = text.partition(":")
        if not tail.isdigit() or not 0 < int(tail) < 65536 or not name:
            raise ConfigurationError("CLICKHOUSE_HOST: expected a host name, host:port or http(s)://host:port")
        if port is not None and port != int(tail):
            raise ConfigurationError(f"CLICKHOUSE_HOST names port {tail} but CLICKHOUSE_PORT says {port}; drop one")
        host, port = name, int(tail)
    if secure is None:
        secure = port in (443, 8443)
    return Server(
        host=host,
        port=port or (8443 if secure else 8123),
        secure=secure,
        user=user or ("default" if password else None),
        password=password,
        database=settings.clickhouse_database,
    )


class Session:
    """A connection for a few statements. Values travel as bound parameters (``{name:Type}``) or as inserted data.

    Each method takes ``doing``: the step and the table, for messages. Transient failures are repeated with growing,
    jittered pauses until the waiting budget is used up (WarehouseUnavailableError); others raise at once
    (WarehousePermanentError, StorageError).
    """

    def __init__(self, client: Any, *, embedded_mode: bool, wait_seconds: float, comment: str, address: str) -> None:
        self._client = client
        self._wait = wait_seconds
        self._comment = comment
        self._insert_id: str | None = None
        self.embedded = embedded_mode
        self.address = address

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
    ) -> pa.Table:
        """Run a SELECT and return its whole result.

        ``external`` are tables of this statement only, referred to as ``{name:Identifier}``; their columns are of the
        types of :func:`clickhouse_type`.
        """
        import pyarrow as pa

        def run() -> pa.Table:
            body = self._select(sql, dict(parameters or {}), external or {}, "ArrowStream")
            if not body:
                return pa.table({})
            try:
                return pa.ipc.open_stream(pa.py_buffer(body)).read_all()
            except (pa.ArrowInvalid, OSError) as error:
                if (said := _ERROR_AT_THE_END.search(body[-_LONGEST_ERROR:])) is not None:
                    raise _server_error(said[0]) from error
                raise

        return self._patiently(run, sql, doing)

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
                insert_block=_stream_of(batch),
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
            pause = min(0.1 * 2 ** min(attempt, 10), _MAX_PAUSE_SECONDS, left)
            time.sleep(pause * random.uniform(0.5, 1.0))
            if not self._insert_running(doing):
                return

    def _insert_running(self, doing: str) -> bool:
        if self.embedded or self._insert_id is None:
            return False
        sql = "SELECT count() AS running FROM system.processes WHERE query_id = {id:String}"
        try:
            return bool(self.scalar(sql, {"id": self._insert_id}, doing=doing))
        except ClickHouseRefusedError as error:  # not everybody may see what is running
            logger.debug("running statements cannot be seen: %s", error)
            return False

    def _settings(self, **extra: Any) -> dict[str, Any]:
        wanted = dict(extra)
        if not self.embedded:
            wanted["query_id"] = f"payout-{uuid.uuid4()}"
            wanted["log_comment"] = self._comment
        definitions = self._client.server_settings
        return {
            key: value
            for key, value in wanted.items()
            if key == "query_id" or ((known := definitions.get(key)) is not None and not known.readonly)
        }

    def _select(
        self, sql: str, parameters: dict[str, Any], external: Mapping[str, pa.RecordBatch], fmt: str | None
    ) -> bytes:
        if not external:
            return _whole(self._client.raw_query(sql, parameters=parameters, fmt=fmt, settings=self._settings()))
        if not self.embedded:
            from clickhouse_connect.driver.external import ExternalData

            data = ExternalData()
            for name, batch in external.items():
                structure = [f"{field.name} {clickhouse_type(field.type)}" for field in batch.schema]
                data.add_file(file_name=name, data=_stream_of(batch).getvalue(), fmt="ArrowStream", structure=structure)
            return _whole(
                self._client.raw_query(
                    sql,
                    parameters={**parameters, **{name: name for name in external}},
                    fmt=fmt,
                    settings=self._settings(),
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
                self._client.raw_insert(names[name], insert_block=_stream_of(batch), fmt="ArrowStream")
            return bytes(self._client.raw_query(sql, parameters={**parameters, **names}, fmt=fmt))
        finally:
            for name in names.values():
                self._client.command(f"DROP TEMPORARY TABLE IF EXISTS {quote_identifier(name)}")

    def _patiently(self, run: Callable[[], T], sql: str, doing: str, wait_seconds: float | None = None) -> T:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s: %s", doing, excerpt(" ".join(sql.split()), 2000))
        return with_patience(run, self._wait if wait_seconds is None else wait_seconds, doing, self.address)


def _whole(answer: Any) -> bytes:
    """An answer as it came, unless the server failed in the middle of it: that comes with status 200 as well."""
    body = bytes(answer)
    if body.endswith(_TAGGED_END) and (said := _TAGGED_ERROR.search(body[-_LONGEST_ERROR:])) is not None:
        raise _server_error(said[2])
    return body


def _server_error(text: bytes) -> Exception:
    from clickhouse_connect.driver.exceptions import DatabaseError

    return DatabaseError(text.decode(errors="replace").strip())


def _stream_of(batch: pa.RecordBatch) -> io.BytesIO:
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    sink.seek(0)
    return sink


def clickhouse_type(arrow_type: pa.DataType) -> str:
    """The ClickHouse type for a column of an external table; raises TypeError on a type that none of ours has."""
    import pyarrow as pa

    plain = {
        pa.string(): "String",
        pa.bool_(): "UInt8",
        pa.uint8(): "UInt8",
        pa.uint32(): "UInt32",
        pa.uint64(): "UInt64",
        pa.int32(): "Int32",
        pa.int64(): "Int64",
    }
    if pa.types.is_list(arrow_type):
        return f"Array({clickhouse_type(arrow_type.value_type)})"
    if arrow_type not in plain:
        raise TypeError(f"no ClickHouse type for {arrow_type}")
    return plain[arrow_type]


def with_patience(run: Callable[[], T], wait_seconds: float, doing: str, address: str = "") -> T:
    """Call ``run`` until it succeeds, fails for good, or ``wait_seconds`` are over; the pauses grow, with jitter.

    A pause ends where the budget does: the last attempt begins then, and not up to a whole pause later.
    An exception that does not come from the database passes through as it is.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    started = time.monotonic()
    growing = wait_random_exponential(multiplier=0.1, max=_MAX_PAUSE_SECONDS)

    def left() -> float:
        return max(0.0, wait_seconds - (time.monotonic() - started))

    def transient(error: BaseException) -> bool:
        return is_expected(error) and classify(error).kind is Kind.TRANSIENT

    def tell(state: RetryCallState) -> None:
        outcome = state.outcome.exception() if state.outcome else None
        fault = classify(outcome) if outcome else None
        logger.warning(
            "ClickHouse, %s: attempt %d failed (%s), trying again for up to %.0f s",
            doing,
            state.attempt_number,
            fault.text if fault else "",
            left(),
        )

    attempts = 0
    try:
        for attempt in Retrying(
            retry=retry_if_exception(transient),
            stop=stop_after_delay(wait_seconds),
            wait=lambda state: min(growing(state), left()),
            before_sleep=tell,
            reraise=True,
        ):
            with attempt:
                attempts += 1
                return run()
    except Exception as error:
        if not is_expected(error):
            raise
        fault = classify(error)
        waited = f" ({attempts} attempts in {time.monotonic() - started:.0f} s)" if fault.kind is Kind.TRANSIENT else ""
        raise fault.error(doing + waited, address) from error
    raise AssertionError("unreachable: the loop returns or raises")


def close_embedded_engine() -> None:
    """Close the embedded engine of this process if nobody uses it, for processes that end without exit handlers."""
    embedded.close_engine()


class Warehouse:
    """ClickHouse as the settings name it. Cheap to build: nothing is opened before the first :meth:`session`.

    ``comment`` names run and asset in the server's query log.
    """

    def __init__(
        self,
        *,
        server: Server | None,
        directory: Path | None,
        database: str | None = None,
        wait_seconds: float = 120.0,
        comment: str = "payout-pipeline",
        contact_file: Path | None = None,
    ) -> None:
        if (server is None) == (directory is None):
            raise ValueError("a warehouse is either a server or a directory")
        self._server = server
        self._directory = directory
        self._database = database
        self._wait = wait_seconds
        self._comment = comment
        self._contact_file = contact_file
        self._client: Any = None
        self._client_pid = 0
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: Settings, comment: str = "payout-pipeline") -> Warehouse:
        """The warehouse of the settings: a server where ``CLICKHOUSE_HOST`` is set, else ``<runtime>/clickhouse``.

        Raises ConfigurationError where neither can be used.
        """
        server = server_of(settings)
        remote = "://" in settings.runtime_dir
        runtime = Path(settings.runtime_dir)
        if server is None:
            if remote:
                raise ConfigurationError(
                    f"PAYOUT_RUNTIME_DIR is {scrub(settings.runtime_dir)}: the embedded database needs a local one.\n"
                    "To repair it: set CLICKHOUSE_HOST to a server, or PAYOUT_RUNTIME_DIR to a local directory."
                )
            return cls(
                server=None,
                directory=runtime / "clickhouse",
                database=settings.clickhouse_database,
                wait_seconds=settings.clickhouse_wait_seconds,
                comment=comment,
            )
        return cls(
            server=server,
            directory=None,
            database=server.database,
            wait_seconds=settings.clickhouse_wait_seconds,
            comment=comment,
            contact_file=None if remote else runtime / "clickhouse.contact.json",
        )

    @property
    def embedded(self) -> bool:
        """Whether the engine runs in this process."""
        return self._server is None

    @property
    def address(self) -> str:
        """For messages: the server's URL without credentials, or the directory of the embedded engine."""
        return self._server.address if self._server else f"embedded ClickHouse in {self._directory}"

    @contextlib.contextmanager
    def session(self, purpose: str, *, patient: bool | None = None) -> Iterator[Session]:
        """A session for ``purpose`` (named to processes that wait for the embedded engine).

        A server that does not answer is waited for within ``CLICKHOUSE_WAIT_SECONDS`` if it ever answered before
        (this process, or an earlier one with the same runtime directory), else given up after a few seconds as a wrong
        address; ``patient`` decides instead of that. Raises WarehouseUnavailableError, WarehousePermanentError,
        StorageError, ConfigurationError.
        """
        if self._directory is not None:
            engine = embedded.acquire(self._directory, purpose, self._wait, self._open_embedded)
            try:
                yield Session(
                    engine.client,
                    embedded_mode=True,
                    wait_seconds=self._wait,
                    comment=self._comment,
                    address=self.address,
                )
            finally:
                embedded.release(engine)
            return
        yield Session(
            self._server_client(patient),
            embedded_mode=False,
            wait_seconds=self._wait,
            comment=f"{self._comment} {purpose}".strip(),
            address=self.address,
        )

    def close(self) -> None:
        """Drop connections; the embedded engine is closed if nobody uses it. The warehouse can be used again."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None and self._client_pid == os.getpid():
                client.close()
        if self._directory is not None:
            embedded.close_engine()

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

    def _server_client(self, patient: bool | None) -> Any:
        with self._lock:
            if self._client is not None and self._client_pid == os.getpid():
                return self._client
            known = patient if patient is not None else self._answered_before()
            budget = self._wait if known else min(self._wait, FIRST_CONTACT_SECONDS)
            try:
                client = with_patience(
                    lambda: self._connect(30 if known else 3), budget, f"connecting to {self.address}"
                )
            except WarehouseUnavailableError as error:
                if known:
                    raise
                raise WarehouseUnavailableError(
                    f"{error}\nIt has not answered from here before, so the address may be wrong: check "
                    "CLICKHOUSE_HOST, CLICKHOUSE_PORT and CLICKHOUSE_SECURE, and that the server is running."
                ) from error
            self._client, self._client_pid = client, os.getpid()
            weakref.finalize(self, client.close)  # the driver keeps its pools alive until they are closed
            self._remember_contact()
            return client

    def _connect(self, first_seconds: int) -> Any:
        import clickhouse_connect
        from urllib3 import Retry, Timeout

        server = self._server
        if server is None:
            raise ValueError("embedded: there is no server to connect to")
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
        # A fraction of the budget: one silently dead connection must leave time to try again.
        read_seconds = max(5.0, min(MAX_STATEMENT_SECONDS, self._wait / 4 if self._wait else MAX_STATEMENT_SECONDS))
        client.timeout = Timeout(connect=_CONNECT_SECONDS, read=read_seconds)
        for key, value in SESSION_SETTINGS.items():
            definition = client.server_settings.get(key)
            if definition is not None and not definition.readonly:
                client.set_client_setting(key, value)
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
