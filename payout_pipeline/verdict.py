"""What a check says: a verdict with its numbers, and the small tables beside it. Plain data, no Dagster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

Value = int | float | str | bool
#: ``actual`` of a check that could not be made.
NO_ANSWER = "no answer"
#: Rows that a table beside a verdict has at most.
SHOWN_ROWS = 20


class Severity(str, Enum):
    """ERROR: the backfill must not be trusted. WARN: it should be reviewed."""

    ERROR = "ERROR"
    WARN = "WARN"


@dataclass(frozen=True, slots=True)
class Table:
    """A small table beside a verdict; every cell is text, a number or a truth value."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one check.

    ``description`` is a sentence that carries the number; ``expected`` and ``actual`` are the same fact as data.
    ``repair`` says what to do where the check failed. ``nothing``: there was nothing to check, and rightly so. ``check`` and
    ``severity`` are filled in from the catalogue. Numbers are finite: JSON knows no NaN.
    """

    passed: bool
    description: str
    expected: Value
    actual: Value
    tables: tuple[Table, ...] = ()
    sql: str = ""
    repair: str = ""
    facts: Mapping[str, Value] = field(default_factory=dict)
    nothing: bool = False
    check: str = ""
    severity: Severity = Severity.ERROR

    def of(self, check: str, severity: Severity) -> Verdict:
        """The verdict of the check of this name, without empty tables and without a repair where nothing is to be done."""
        tables = tuple(table for table in self.tables if table.rows)
        repair = "" if self.passed or self.nothing else self.repair
        return replace(self, check=check, severity=severity, tables=tables, repair=repair)
