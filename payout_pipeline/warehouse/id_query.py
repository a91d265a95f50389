"""The condition ids that a query of the user's gives, read without the power to write anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from payout_pipeline.errors import InputError, WarehouseUnavailableError
from payout_pipeline.ids.id_list import IdList, distinct, pack_ids, packed_array, packed_bytes
from payout_pipeline.ids.text import ID_BYTES, ID_DIGITS, RefusedTexts, safe_excerpt
from payout_pipeline.settings import Settings
from payout_pipeline.warehouse.client import Session, Warehouse
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.statements import Sql, statement

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 10_000_000
TIMEOUT_SECONDS = 300
_BLANKS = " \t\r\n"
_LIMITS = {
    "readonly": "2",
    "max_execution_time": str(TIMEOUT_SECONDS),
    "max_result_rows": str(MAX_ROWS),
    "result_overflow_mode": "'throw'",
}
_TEXT = re.compile(r"(LowCardinality\()?(Nullable\()?(String|FixedString\((64|66)\))\)*")
_READS = re.compile(r"\A(SELECT|WITH|FROM)\b", re.IGNORECASE)
_REPAIR = "correct CONDITION_IDS_QUERY"


def query_ids(settings: Settings, warehouse: Warehouse | None = None) -> IdList:
    """The ids of ``CONDITION_IDS_QUERY``: its first column, each once, sorted; none where it gives no row.

    ``warehouse``: to be asked instead of the settings' own.

    The query runs with ``readonly = 2``, at most 300 s, and gives at most 10 million rows. Raises InputError where it is no
    single SELECT, has no such column or one of another type, gives NULLs or what are no ids, writes, is not allowed, or takes
    too long; and what a session raises.
    """
    from payout_pipeline.scrub import excerpt

    text = settings.condition_ids_query or ""
    warehouse = warehouse or Warehouse(settings, "payout-pipeline: condition_ids")
    with warehouse.session("condition_ids") as session:
        try:
            query = _as_select(session, text)
            column = _first_column(session, query)
            return _ids_of(_rows(session, query, column))
        except ClickHouseRefusedError as refused:
            raise InputError(_explained(refused, excerpt(str(refused).partition("\n")[0], 600))) from refused


def _as_select(session: Session, text: str) -> str:
    """The query in ClickHouse's own spelling, one statement without comments; raises InputError for any but a SELECT."""
    spelled = str(
        session.scalar("SELECT formatQuerySingleLine({query:String})", {"query": text}, doing="parsing the query")
    )
    if not _READS.match(spelled.lstrip("( ")):
        raise InputError(
            f"CONDITION_IDS_QUERY is run read-only and has to be a SELECT; it begins with {safe_excerpt(spelled)}.\n"
            f"To repair it: {_REPAIR}"
        )
    return spelled


def _first_column(session: Session, query: str) -> str:
    """The name of the first column; raises InputError where it cannot hold ids as text."""
    described = session.rows(statement("describe_query", query=Sql(query)), doing="describing the query")
    name, kind = str(described[0]["name"]), str(described[0]["type"])
    if not _TEXT.fullmatch(kind):
        help_text = "select the text of the id"
        if kind.removeprefix("Nullable(").startswith(("FixedString(32)", "UInt256", "Int256")):
            help_text = f"select lower(hex({name}))"
        raise InputError(
            f"the first column of CONDITION_IDS_QUERY, {name!a}, is of type {kind}; ids are 64 hex digits as String.\n"
            f"To repair it: {help_text}"
        )
    return name


def _rows(session: Session, query: str, column: str) -> pa.Table:
    """The first column as text, and as much of the limits as the user's profile lets be set."""
    limits = {name: value for name, value in _LIMITS.items() if session.may_set(name)}
    while True:
        # In the statement: given beside it, `readonly` would stay in force for the rest of an embedded session.
        clause = ", ".join(f"{name} = {value}" for name, value in limits.items())
        settings = Sql(f"SETTINGS {clause}" if clause else "")
        sql = statement("ids_of_query", query=Sql(query), column=_quoted(column), settings=settings)
        try:
            table = session.arrow(sql, doing="running the query", repeatable=False)
        except WarehouseUnavailableError as error:
            if "TIMEOUT_EXCEEDED" in str(error):
                raise InputError(
                    f"CONDITION_IDS_QUERY takes longer than {TIMEOUT_SECONDS} s and was ended.\nTo repair it: make it cheaper"
                ) from error
            raise
        except ClickHouseRefusedError as refused:
            named = [name for name in limits if re.search(rf"\b{name}\b", str(refused))]
            if refused.code not in (164, 452) or not named:
                raise
            del limits[named[0]]  # the user's profile has its own limit
            continue
        if table.num_rows > MAX_ROWS:
            raise InputError(_too_many())
        return table


def _quoted(name: str) -> Sql:
    """The name of a column that may be any expression."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return Sql(f"`{escaped}`")


def _ids_of(table: pa.Table) -> IdList:
    """The ids of a table of one column, sorted; raises InputError naming the first rows that are none."""
    import numpy as np
    import pyarrow.compute as pc

    packed = bytearray()
    refused = RefusedTexts("CONDITION_IDS_QUERY", f"{_REPAIR}, of which the first column counts")
    at = 0
    for chunk in table.column(0).chunks:
        trimmed = pc.utf8_trim(chunk, _BLANKS)
        right = pc.fill_null(pc.match_substring_regex(trimmed, r"\A(0[xX])?[0-9a-fA-F]{64}\z"), False)
        for index in pc.indices_nonzero(pc.invert(right)).to_pylist():
            text = trimmed[index].as_py()
            refused.add(f"row {at + index + 1}", text, "NULL" if text is None else "")
        packed += pack_ids(pc.utf8_slice_codeunits(trimmed.filter(right), -ID_DIGITS).to_pylist())
        at += len(chunk)
    refused.raise_if_any()
    found = distinct(packed)
    # Sorted, so that the same rows in another order are the same list.
    rows = np.sort(np.frombuffer(packed_bytes(found.packed), dtype=f"S{ID_BYTES}"))
    return IdList(packed_array(rows.tobytes()), found.duplicates)


def _too_many() -> str:
    return f"CONDITION_IDS_QUERY gives more than {MAX_ROWS:,} rows.\nTo repair it: select fewer ids"


def _explained(refused: ClickHouseRefusedError, said: str) -> str:
    if refused.code == 396:  # TOO_MANY_ROWS_OR_BYTES
        return _too_many()
    help_text = {
        164: "it may only read",
        497: "let an administrator GRANT what the message names to CLICKHOUSE_USER, or select from other tables",
    }.get(refused.code or 0, _REPAIR)
    return f"CONDITION_IDS_QUERY cannot be run: {said}\nTo repair it: {help_text}"
