"""A verdict as Dagster shows it."""

from __future__ import annotations

from typing import Any

import dagster as dg

from payout_pipeline.scrub import clean_lines
from payout_pipeline.verdict import Severity, Table, Value, Verdict

_SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def _typed(value: Value) -> dg.MetadataValue[Any]:
    """The value with its own type: MetadataValue.float(0) is an error, and a bool is an int to Python."""
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        # Beyond 64 bits the UI's JavaScript and GraphQL's Int cannot show it.
        return dg.MetadataValue.int(value) if abs(value) < 2**53 else dg.MetadataValue.text(str(value))
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    return dg.MetadataValue.text(clean_lines(value))


def _table(table: Table) -> dg.MetadataValue[Any]:
    kinds = {bool: "bool", int: "int", float: "float", str: "string"}
    columns = []
    for position, name in enumerate(table.columns):
        seen = {type(row[position]) for row in table.rows}
        columns.append(dg.TableColumn(name, kinds[seen.pop()] if len(seen) == 1 else "string"))
    records = [
        dg.TableRecord(
            {
                name: clean_lines(cell) if isinstance(cell, str) else cell
                for name, cell in zip(table.columns, row, strict=True)
            }
        )
        for row in table.rows
    ]
    return dg.MetadataValue.table(records=records, schema=dg.TableSchema(columns=columns))


def to_result(verdict: Verdict, asset: str) -> dg.AssetCheckResult:
    """The verdict as Dagster's result of a check of ``asset``, scrubbed. One with nothing to check passes there, and says so."""
    metadata: dict[str, dg.MetadataValue[Any]] = {
        "expected": _typed(verdict.expected),
        "actual": _typed(verdict.actual),
    }
    for name, value in verdict.facts.items():
        metadata[name] = _typed(value)
    for table in verdict.tables:
        metadata[table.title] = _table(table)
    if verdict.repair:
        metadata["what to do"] = dg.MetadataValue.md(clean_lines(verdict.repair))
    if verdict.sql:
        metadata["sql"] = dg.MetadataValue.md(f"```sql\n{clean_lines(verdict.sql.strip())}\n```")
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=verdict.check,
        passed=verdict.passed or verdict.nothing,
        severity=_SEVERITIES[verdict.severity],
        description=clean_lines(f"Nothing to check: {verdict.description}" if verdict.nothing else verdict.description),
        metadata=metadata,
    )
