"""What an error of ClickHouse, of its transport or of the embedded engine means for the caller.

One place decides which failures may be repeated; everything else in the warehouse only asks it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from payout_pipeline.errors import (
    PayoutPipelineError,
    StorageError,
    WarehousePermanentError,
    WarehouseUnavailableError,
)
from payout_pipeline.scrub import excerpt

# Codes of src/Common/ErrorCodes.cpp after which the same statement may succeed later.
TRANSIENT_CODES: dict[int, str] = {
    159: "TIMEOUT_EXCEEDED",
    198: "DNS_ERROR",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    225: "NO_ZOOKEEPER",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    252: "TOO_MANY_PARTS",
    279: "ALL_CONNECTION_TRIES_FAILED",
    285: "TOO_FEW_LIVE_REPLICAS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    373: "SESSION_IS_LOCKED",
    394: "QUERY_WAS_CANCELLED",
    439: "CANNOT_SCHEDULE_TASK",
    473: "DEADLOCK_AVOIDED",
    745: "SERVER_OVERLOADED",
    999: "KEEPER_EXCEPTION",
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_HINTS: dict[int, str] = {
    16: "compare the table with its expected columns: payout-pipeline doctor",
    47: "compare the table with its expected columns: payout-pipeline doctor",
    60: "check the table's name in the PAYOUT_… variables, or let an administrator create it",
    81: "check CLICKHOUSE_DATABASE and the database in the PAYOUT_… variables, or let an administrator create it",
    164: "the user is read-only; set CLICKHOUSE_USER to one that may write",
    192: "check CLICKHOUSE_USER",
    193: "check CLICKHOUSE_PASSWORD",
    194: "check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
    392: "the server takes no distributed DDL; unset PAYOUT_CLICKHOUSE_CLUSTER, or configure distributed_ddl there",
    452: "the user's profile limits this setting; let an administrator widen the limit, or use another CLICKHOUSE_USER",
    497: "let an administrator GRANT what the message names to CLICKHOUSE_USER",
    516: "check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
    701: "check PAYOUT_CLICKHOUSE_CLUSTER; SELECT DISTINCT cluster FROM system.clusters lists the names",
}
_STATUS = re.compile(r"HTTP driver received HTTP status (\d{3})")
_CODE = re.compile(r"\bCode:\s*(\d+)")
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]{3,})\)")
_NOISE = re.compile(
    r"^Received ClickHouse exception, code: \d+, server response: "
    r"|\s*\(version [^()]*(\([^()]*\))?\)|\s*\(for url [^)]*\)"
    r"|[.:]? In scope .*(?=\. \([A-Z_]+\))",
    re.DOTALL,
)


class ClickHouseRefusedError(WarehousePermanentError):
    """ClickHouse answered with an error code that no repetition changes."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


class Kind(Enum):
    """What may be done about a failure."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    NO_SPACE = "no space"


@dataclass(frozen=True, slots=True)
class Fault:
    """A classified failure. ``code`` is ClickHouse's, None where the transport failed; ``text`` is scrubbed."""

    kind: Kind
    code: int | None
    name: str
    text: str
    answered: bool  # the server said so itself: an insert it refused was not stored

    def error(self, doing: str, address: str = "") -> PayoutPipelineError:
        """The exception to raise; ``doing`` names the step and the table, ``address`` the server or directory."""
        label = f"code {self.code} {self.name}".strip() if self.code is not None else "no answer"
        hint = _HINTS.get(self.code or 0)
        if self.code is None and self.kind is Kind.TRANSIENT and "http" in doing:
            hint = (
                "see that the server runs, and that CLICKHOUSE_HOST and CLICKHOUSE_PORT name it; then do the same again"
            )
        message = f"ClickHouse, {doing}: {label}: {self.text}" + (f"\nTo repair it: {hint}." if hint else "")
        if self.kind is Kind.NO_SPACE:
            return StorageError(
                f"{message}\nThe disk of the database is full ({address}); nothing that was not confirmed counts as "
                "stored.\nTo repair it: free some space there and run the same step again."
            )
        if self.kind is Kind.TRANSIENT:
            return WarehouseUnavailableError(message)
        return ClickHouseRefusedError(message, self.code)


def is_expected(error: BaseException) -> bool:
    """Whether ``error`` comes from the database, its transport or its answer; anything else is a defect of ours."""
    import pyarrow as pa
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from urllib3.exceptions import HTTPError

    return isinstance(error, ClickHouseError | HTTPError | OSError | pa.ArrowInvalid)


def _chain(error: BaseException) -> list[BaseException]:
    """``error`` with everything that led to it, including what urllib3 keeps in ``reason``."""
    seen: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        current = todo.pop(0)
        if isinstance(current, BaseException) and current not in seen:
            seen.append(current)
            todo += [getattr(current, "reason", None), current.__cause__, current.__context__, *current.args]
    return seen


def classify(error: BaseException) -> Fault:
    """Tell what ``error``, raised by clickhouse-connect, urllib3 or pyarrow, means."""
    import ssl

    from clickhouse_connect.driver.exceptions import DataError, InternalError, NotSupportedError, ProgrammingError

    raw = str(error)
    code: int | None = getattr(error, "code", None)
    if code is None and (found := _CODE.search(raw)):
        code = int(found[1])
    name = getattr(error, "name", None) or (names[-1] if (names := _NAME.findall(raw)) else "")
    text = excerpt(_NOISE.sub("", raw), 400)
    if "No space left on device" in raw or code == 243:
        return Fault(Kind.NO_SPACE, code, name, text, True)
    if code is not None:
        transient = code in TRANSIENT_CODES
        # A query's or a user's own memory limit does not go away by waiting; the server's total does.
        if code == 241 and "total" not in raw.lower():
            transient = False
        # The same code tells an overloaded table and an insert that touches too many partitions.
        if code == 252 and "partitions" in raw.lower():
            transient = False
        kind = Kind.TRANSIENT if transient else Kind.PERMANENT
        return Fault(kind, code, name or TRANSIENT_CODES.get(code, ""), text, True)
    if found := _STATUS.search(raw):
        status = int(found[1])
        hint = "" if status in _TRANSIENT_STATUS else " (is this ClickHouse's HTTP port, and no proxy in between?)"
        kind = Kind.TRANSIENT if status in _TRANSIENT_STATUS else Kind.PERMANENT
        return Fault(kind, None, "", text + hint, False)
    if isinstance(error, DataError | InternalError | NotSupportedError | ProgrammingError):
        return Fault(Kind.PERMANENT, None, type(error).__name__, text, False)
    causes = _chain(error)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Fault(Kind.PERMANENT, None, "", f"the server's certificate is not trusted: {text}", False)
    if any(isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause) for cause in causes):
        text = "the port does not speak TLS; check CLICKHOUSE_SECURE and CLICKHOUSE_PORT"
        return Fault(Kind.PERMANENT, None, "", text, False)
    # What the system said, without the client library's words around it, which differ from one attempt to the next.
    said = [str(cause) for cause in causes if isinstance(cause, OSError) and cause.errno and str(cause)]
    return Fault(Kind.TRANSIENT, None, "", excerpt(said[-1], 400) if said else text or type(error).__name__, False)
