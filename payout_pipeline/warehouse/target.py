"""The table that the vectors go to: the shapes that are handled exactly, and refusing all others before anything is asked.

Handled: ReplacingMergeTree (Replicated…, Shared… too) sorted by ``condition_id`` or by it and ``source``; ids as text of 64
characters; integers wide enough for each value; further columns with a default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import WarehouseSchemaError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier
from payout_pipeline.warehouse.schema import (
    Table,
    check_names,
    check_view_place,
    ensure_database,
    ensure_market,
    inspect_table,
    on_cluster,
)
from payout_pipeline.warehouse.statements import Sql, statement
from payout_pipeline.warehouse.types import Integers, element_type, integers, is_nullable, is_time, unwrap

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

SOURCE = "goldsky-api"
_NAMED = 20
# Column → the type that holds every value; the first six are the guide's and have to be there.
TARGET_COLUMNS: dict[str, str] = {
    "condition_id": "String",
    "payout_numerators": "Array(UInt64)",
    "payout_denominator": "UInt64",
    "winning_index": "Int32",
    "resolved_at": "Nullable(DateTime('UTC'))",
    "source": "LowCardinality(String)",
    "fetched_at": "DateTime64(3, 'UTC')",
    "block_number": "UInt64",
}
REQUIRED_COLUMNS = tuple(TARGET_COLUMNS)[:6]


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A target table that was checked. ``exclusive``: it keeps one row per condition whatever its source."""

    table: Table
    cluster: str | None = None

    @property
    def name(self) -> QualifiedName:
        """Database and table."""
        return self.table.name

    @property
    def columns(self) -> dict[str, str]:
        """Name → type."""
        return self.table.columns

    def writes(self, name: str) -> bool:
        """Whether rows are written with this column."""
        return name in self.columns and self.table.defaults.get(name) not in ("MATERIALIZED", "ALIAS")

    @property
    def version_column(self) -> str | None:
        """The column by which the table chooses between rows of one key; None: the row written last."""
        return next(iter(self.table.replacing_by), None)

    @property
    def exclusive(self) -> bool:
        """See the class."""
        return "source" not in self.table.sorting_key

    @property
    def consistency(self) -> Sql:
        """The settings clause for reads that prove a load: on replicas they wait for what was inserted."""
        return Sql("SETTINGS select_sequential_consistency = 1" if self.table.replicated else "")


def create_target_sql(name: QualifiedName, cluster: str | None = None) -> str:
    """The statement that creates the target table; with a cluster on all its hosts, replicated."""
    engine = "ReplacingMergeTree" if cluster is None else "ReplicatedReplacingMergeTree"
    columns = ",\n    ".join(f"{quote_identifier(key)} {kind}" for key, kind in TARGET_COLUMNS.items())
    return statement(
        "create_target", table=name, on_cluster=on_cluster(cluster), columns=Sql(columns), engine=Sql(engine)
    )


def ensure_target(session: Session, name: QualifiedName, cluster: str | None = None) -> TargetTable:
    """The target table, created if missing, checked if not.

    Raises WarehouseSchemaError where an existing table cannot be used (with the DDL that is needed), or where the
    user may not create the missing one.
    """
    table = inspect_table(session, name)
    if table is None:
        ddl = create_target_sql(name, cluster)
        try:
            ensure_database(session, name.database, cluster)
            session.command(ddl, doing=f"creating the table {name}")
        except ClickHouseRefusedError as error:
            raise WarehouseSchemaError(
                f"the target table {name} does not exist and could not be created.\n{error}\n"
                f"The statement that an administrator has to run:\n{ddl}"
            ) from error
        table = inspect_table(session, name)
        if table is None:
            raise WarehouseSchemaError(
                f"the target table {name} was created but cannot be seen; GRANT SHOW COLUMNS, SELECT ON {name.sql}"
            )
    return check_target(table, cluster)


def check_target(table: Table, cluster: str | None = None) -> TargetTable:
    """``table`` as a target; raises WarehouseSchemaError listing everything that is wrong, with the DDL needed."""
    problems = _problems_of_the_key(table)
    alter: list[str] = []
    for name, needed in TARGET_COLUMNS.items():
        kind = table.columns.get(name)
        if kind is None and name not in REQUIRED_COLUMNS:
            continue
        computed = table.defaults.get(name) in ("MATERIALIZED", "ALIAS")
        if computed and name not in REQUIRED_COLUMNS:
            continue
        why = "the column is missing" if kind is None else _unusable(name, kind)
        if computed:
            why = "the column is computed and cannot be written"
        if why:
            problems.append(f"{name}: {why if kind is None else f'{kind} {why}'}")
            verb = "ADD" if kind is None else "MODIFY"
            alter.append(f"ALTER TABLE {table.name.sql} {verb} COLUMN {quote_identifier(name)} {needed};")
    for name, kind in table.columns.items():
        if name not in TARGET_COLUMNS and name not in table.defaults and not is_nullable(kind):
            problems.append(f"{name}: {kind} has no default, and the pipeline does not know its value")
            default = "defaultValueOfTypeName('{}')".format(kind.replace("\\", "\\\\").replace("'", "\\'"))
            alter.append(
                f"ALTER TABLE {table.name.sql} MODIFY COLUMN {quote_identifier(name)} {kind} DEFAULT {default};"
            )
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        ddl = "\n".join(alter)
        raise WarehouseSchemaError(
            f"the table {table.name} cannot hold the payout vectors exactly:\n{listed}\n"
            + (f"The DDL that is needed (nothing was changed; look at the data first):\n{ddl}\n" if ddl else "")
            + "Or set PAYOUT_TARGET_TABLE to a table that does not exist yet, and it is created as:\n"
            + create_target_sql(QualifiedName(table.name.database, f"{table.name.name}_payouts"), cluster)
        )
    return TargetTable(table, cluster)


def _problems_of_the_key(table: Table) -> list[str]:
    problems = []
    if re.sub(r"\A(Replicated|Shared)", "", table.engine) != "ReplacingMergeTree":
        problems.append(
            f"its engine is {table.engine or 'unknown'}: a changed row takes the place of the old one only in a "
            "ReplacingMergeTree"
        )
    elif set(table.sorting_key) not in ({"condition_id"}, {"condition_id", "source"}):
        key = ", ".join(table.sorting_key) or "nothing"
        problems.append(f"it is sorted by {key}; it has to be by condition_id, or by condition_id and source")
    if len(table.replacing_by) > 1:
        problems.append(f"its engine marks deleted rows by {table.replacing_by[1]}; only a version column is handled")
    elif table.replacing_by and table.replacing_by[0] in REQUIRED_COLUMNS:
        problems.append(f"its version column is {table.replacing_by[0]}, by which a changed row would not always win")
    used = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", table.partition_key)) & set(table.columns)
    if moving := sorted(used - {"condition_id", "source"}):
        problems.append(
            f"it is partitioned by {table.partition_key}: a row whose {', '.join(moving)} changes would be stored twice"
        )
    return problems


def _unusable(name: str, kind: str) -> str:
    """Why a column of this type can never hold what belongs into it; empty where it can."""
    plain = unwrap(kind)
    if name == "condition_id":
        usable = plain in ("String", "FixedString(64)") and not is_nullable(kind)
        return "" if usable else "is no text of 64 characters (String, FixedString(64) or LowCardinality(String))"
    if name == "source":
        usable = not is_nullable(kind) and (plain == "String" or (plain.startswith("Enum") and f"'{SOURCE}'" in plain))
        return "" if usable else f"cannot hold '{SOURCE}'"
    if name == "resolved_at":
        return "" if is_time(kind) else "is no DateTime"
    if name == "fetched_at":
        return "" if is_time(kind) and not is_nullable(kind) else "is no DateTime without NULL"
    number = element_type(kind) if name == "payout_numerators" else kind
    held = integers(number)
    if held is None or is_nullable(number):
        return "is not of integers without NULL"
    if name == "winning_index" and held.low > -1:
        return "cannot hold -1, the index of a vector that several outcomes share"
    return ""


def check_values(target: TargetTable, batch: pa.RecordBatch) -> None:
    """Raise WarehouseSchemaError unless every vector of ``batch`` (resolved ledger rows) fits the columns exactly.

    The message names the first ids that do not, and the DDL that makes them fit.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    numerators = batch.column("payout_numerators")
    each = pa.array(range(batch.num_rows))
    seconds = batch.column("resolved_at").cast(pa.timestamp("s", "UTC")).cast(pa.int64())
    columns = {
        "payout_numerators": (pc.list_flatten(numerators), pc.list_parent_indices(numerators)),
        "payout_denominator": (batch.column("payout_denominator"), each),
        "winning_index": (batch.column("winning_index"), each),
        "resolved_at": (seconds, each),
    }
    bad: dict[str, list[int]] = {}
    for name, (values, rows) in columns.items():
        kind = target.columns[name]
        held = integers(element_type(kind) or kind)
        if name == "resolved_at" and "DateTime64" not in kind:
            held = Integers(0, 2**32 - 1)
        if held is not None and (outside := rows.filter(_outside(values, held)).unique().to_pylist()):
            bad[name] = outside
    if bad:
        raise _do_not_fit(target, batch, bad)


def _outside(values: Any, held: Integers) -> Any:
    """Which of the values are not within ``held``."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    own = np.iinfo(values.type.to_pandas_dtype())
    low, high = max(held.low, int(own.min)), min(held.high, int(own.max))
    return pc.or_(pc.less(values, pa.scalar(low, values.type)), pc.greater(values, pa.scalar(high, values.type)))


def _do_not_fit(target: TargetTable, batch: pa.RecordBatch, bad: dict[str, list[int]]) -> WarehouseSchemaError:
    lines = []
    for name, rows in bad.items():
        ids = [batch.column("condition_id")[row].as_py() for row in rows[:_NAMED]]
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        lines.append(f"  - {name} {target.columns[name]}: {len(rows)} row(s): {', '.join(ids)}{more}")
    ddl = "\n".join(
        f"ALTER TABLE {target.name.sql} MODIFY COLUMN {quote_identifier(name)} {TARGET_COLUMNS[name]};" for name in bad
    )
    return WarehouseSchemaError(
        f"{len(set().union(*bad.values()))} vector(s) do not fit into {target.name} exactly; nothing of them was "
        f"written:\n" + "\n".join(lines) + f"\nThe DDL that is needed:\n{ddl}"
    )


@dataclass(frozen=True, slots=True)
class SourceTables:
    """What the truth view is built from."""

    target: TargetTable
    market: Table


def ensure_sources(session: Session, settings: Settings) -> SourceTables:
    """The target and the user's ``market_resolutions_final``, ready to be read by the view; neither view is read.

    Raises ConfigurationError and WarehouseSchemaError where a name is taken twice, the truth view's is a table's, or
    one of the tables cannot be used.
    """
    check_names(settings)
    check_view_place(session, settings)
    target = ensure_target(session, QualifiedName.parse(settings.target_table), settings.clickhouse_cluster)
    return SourceTables(target, ensure_market(session, QualifiedName.parse(settings.market_resolutions_table)))
