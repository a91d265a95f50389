"""A verdict as Dagster shows it, and read back from what Dagster stored.

Both directions stand side by side: the report shows the very numbers that the UI shows, and computes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from payout_pipeline.scrub import escape_controls, scrub
from payout_pipeline.verdict import Severity, Table, Value, Verdict

if TYPE_CHECKING:
    from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation

EXPECTED = "expected"
ACTUAL = "actual"
SQL = "sql"
REPAIR = "what to do"
#: Of the input that was judged (``worklist.py``) and of where it was looked at; the report compares them with today's.
INPUT = "input fingerprint"
SCOPE = "looked at"
_SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}
_FENCE = "```sql\n"


def _clean(text: str) -> str:
    """Without secrets, and without characters that could steer a terminal or reorder a line; lines stay lines."""
    return "\n".join(escape_controls(line) for line in scrub(text).split("\n"))


def _typed(value: Value) -> dg.MetadataValue[Any]:
    """The value with its own type: MetadataValue.float(0) is an error, and a bool is an int to Python."""
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        # Beyond 64 bits the UI's JavaScript and GraphQL's Int cannot show it.
        return dg.MetadataValue.int(value) if abs(value) < 2**53 else dg.MetadataValue.text(str(value))
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    return dg.MetadataValue.text(_clean(value))


def _table(table: Table) -> dg.MetadataValue[Any]:
    kinds = {bool: "bool", int: "int", float: "float", str: "string"}
    columns = []
    for position, name in enumerate(table.columns):
        seen = {type(row[position]) for row in table.rows}
        columns.append(dg.TableColumn(name, kinds[seen.pop()] if len(seen) == 1 else "string"))
    records = [
        dg.TableRecord(
            {
                name: _clean(cell) if isinstance(cell, str) else cell
                for name, cell in zip(table.columns, row, strict=True)
            }
        )
        for row in table.rows
    ]
    return dg.MetadataValue.table(records=records, schema=dg.TableSchema(columns=columns))


def to_result(verdict: Verdict, asset: str, fingerprint: str, scope: str) -> dg.AssetCheckResult:
    """The verdict as Dagster's result of a check of ``asset``, scrubbed."""
    metadata: dict[str, dg.MetadataValue[Any]] = {
        EXPECTED: _typed(verdict.expected),
        ACTUAL: _typed(verdict.actual),
    }
    for name, value in verdict.facts.items():
        metadata[name] = _typed(value)
    for table in verdict.tables:
        metadata[table.title] = _table(table)
    if verdict.repair:
        metadata[REPAIR] = dg.MetadataValue.md(_clean(verdict.repair))
    if verdict.sql:
        metadata[SQL] = dg.MetadataValue.md(f"{_FENCE}{_clean(verdict.sql.strip())}\n```")
    metadata[INPUT] = dg.MetadataValue.text(fingerprint)
    metadata[SCOPE] = dg.MetadataValue.text(_clean(scope))
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=verdict.check,
        passed=verdict.passed,
        severity=_SEVERITIES[verdict.severity],
        description=_clean(verdict.description),
        metadata=metadata,
    )


def _cell(value: object) -> Value:
    return value if isinstance(value, (bool, int, float, str)) else ""


def _plain(value: dg.MetadataValue[Any]) -> Value:
    held = value.value
    return held if isinstance(held, (bool, int, float, str)) else str(held)


def from_evaluation(evaluation: AssetCheckEvaluation) -> tuple[Verdict, str, str]:
    """The verdict that was stored, with its input fingerprint and its scope (empty where it has none)."""
    metadata: Mapping[str, dg.MetadataValue[Any]] = evaluation.metadata
    tables: list[Table] = []
    facts: dict[str, Value] = {}
    for name, value in metadata.items():
        if isinstance(value, dg.TableMetadataValue):
            columns = tuple(column.name for column in value.schema.columns)
            rows = tuple(tuple(_cell(record.data.get(column)) for column in columns) for record in value.records)
            tables.append(Table(name, columns, rows))
        elif name not in (EXPECTED, ACTUAL, SQL, REPAIR, INPUT, SCOPE):
            facts[name] = _plain(value)

    def text(name: str) -> str:
        return str(metadata[name].value) if name in metadata else ""

    sql = text(SQL)
    verdict = Verdict(
        check=evaluation.check_name,
        passed=evaluation.passed,
        severity=Severity.WARN if evaluation.severity is dg.AssetCheckSeverity.WARN else Severity.ERROR,
        description=evaluation.description or "",
        expected=_plain(metadata[EXPECTED]) if EXPECTED in metadata else "",
        actual=_plain(metadata[ACTUAL]) if ACTUAL in metadata else "",
        tables=tuple(tables),
        sql=sql.removeprefix(_FENCE).removesuffix("\n```"),
        repair=text(REPAIR),
        facts=facts,
    )
    return verdict, text(INPUT), text(SCOPE)
