"""What travels between the program and ClickHouse: Arrow streams, answers with an error inside, and repeated attempts."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from payout_pipeline.warehouse.faults import Kind, classify, is_expected

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_PAUSE_SECONDS = 5.0
# An error in the middle of an answer is written behind the data: between tags from 25.11 on, bare before.
_TAGGED_END = b"\r\n__exception__\r\n"
_TAGGED_ERROR = re.compile(rb"__exception__\r\n([a-z]{16})\r\n(.*)\n\d+ \1\r\n__exception__\r\n\Z", re.DOTALL)
ERROR_AT_THE_END = re.compile(rb"Code: \d+\. DB::Exception: .*\Z", re.DOTALL)
LONGEST_ERROR = 1 << 16


def whole(answer: Any) -> bytes:
    """An answer as it came, unless the server failed in the middle of it: that comes with status 200 as well."""
    body = bytes(answer)
    if body.endswith(_TAGGED_END) and (said := _TAGGED_ERROR.search(body[-LONGEST_ERROR:])) is not None:
        raise server_error(said[2])
    return body


def server_error(text: bytes) -> Exception:
    """The driver's error with what the server said."""
    from clickhouse_connect.driver.exceptions import DatabaseError

    return DatabaseError(text.decode(errors="replace").strip())


def stream_of(batch: pa.RecordBatch) -> io.BytesIO:
    """``batch`` as an Arrow stream."""
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
    """Call ``run`` until it succeeds, fails permanently, or ``wait_seconds`` are over; the pauses grow, with jitter.

    A pause ends where the budget does: the last attempt begins then, and not up to a whole pause later.
    An exception that does not come from the database passes through as it is.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    started = time.monotonic()
    growing = wait_random_exponential(multiplier=0.1, max=MAX_PAUSE_SECONDS)

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
