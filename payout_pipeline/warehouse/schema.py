"""The tables around the load: what they look like, what they can hold, and creating the ones that are ours.

Existing tables are looked at, never assumed, and never altered. The shapes that occur: numerators as
``Array(Float64)``, ``Array(UInt8)``, ``Array(UInt32)``, ``Array(UInt64)`` …, with and without ``fetched_at`` and
``block_number``, ``ReplacingMergeTree`` or plain ``MergeTree``, ids as ``String`` or ``FixedString(64)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import ConfigurationError, WarehousePermanentError, WarehouseSchemaError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier
from payout_pipeline.warehouse.statements import Sql, column, statement

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

SOURCE = "goldsky-api"
ID_COLUMNS = ("condition_id", "condition_id_norm")
MAX_UINT64 = 2**64 - 1
_NAMED = 20

# Column → the type that holds every value (SPEC of the target table); the first six are the guide's.
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
_WRAPPED = re.compile(r"(?:LowCardinality|Nullable)\((.*)\)\Z", re.DOTALL)
_INTEGER = re.compile(r"(U?)Int(8|16|32|64|128|256)\Z")
_DATETIME = re.compile(r"DateTime(?:\((?:'[^']*')\))?\Z")
_DATETIME64 = re.compile(r"DateTime64\((\d)(?:,\s*'[^']*')?\)\Z")
_FLOAT_LIMITS = {"Float32": 2**24, "Float64": 2**53}  # up to here every integer is a float
_FINAL_ENGINES = re.compile(r"(Replacing|Collapsing|VersionedCollapsing|Summing|Aggregating|Coalescing)MergeTree\Z")


def unwrap(type_name: str) -> str:
    """``type_name`` without ``Nullable`` and ``LowCardinality``."""
    while match := _WRAPPED.match(type_name):
        type_name = match[1]
    return type_name


def is_nullable(type_name: str) -> bool:
    """Whether the column can hold NULL."""
    return type_name.startswith(("Nullable(", "LowCardinality(Nullable("))


@dataclass(frozen=True, slots=True)
class NumberType:
    """What a numeric column holds exactly: whole numbers from ``low`` to ``high``."""

    low: int
    high: int
    floating: bool

    @property
    def unsigned(self) -> bool:
        """Whether each value is a UInt64 already or becomes one without loss."""
        return self.low == 0 and self.high <= MAX_UINT64


def number_type(type_name: str) -> NumberType | None:
    """The capacity of a numeric type; None for a type that is none of the known ones (Decimal, String, …)."""
    plain = unwrap(type_name)
    if match := _INTEGER.match(plain):
        bits = int(match[2])
        return (
            NumberType(0, 2**bits - 1, False)
            if match[1]
            else NumberType(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, False)
        )
    if plain in _FLOAT_LIMITS:
        return NumberType(-_FLOAT_LIMITS[plain], _FLOAT_LIMITS[plain], True)
    return None


def element_type(type_name: str) -> str | None:
    """The type of an array's elements, None where it is no array."""
    return type_name[len("Array(") : -1] if type_name.startswith("Array(") and type_name.endswith(")") else None


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view as the server describes it."""

    name: QualifiedName
    engine: str
    engine_full: str
    sorting_key: tuple[str, ...]
    columns: dict[str, str]
    computed: frozenset[str]  # MATERIALIZED and ALIAS columns cannot be written

    @property
    def final(self) -> Sql:
        """``FINAL`` where the engine keeps superseded rows until a merge, else nothing."""
        return Sql("FINAL" if _FINAL_ENGINES.search(self.engine) else "")

    @property
    def version_column(self) -> str | None:
        """The column by which a ReplacingMergeTree chooses between rows of one key; None: the row written last."""
        match = re.match(
            r"\w*ReplacingMergeTree\((.*?)\)(?:\s+(?:PARTITION|PRIMARY|ORDER|SAMPLE|TTL|SETTINGS)\b|\Z)",
            self.engine_full,
            re.DOTALL,
        )
        names = [part.strip().strip("`") for part in match[1].split(",")] if match else []
        return next((name for name in names if name in self.columns), None)

    @property
    def id_column(self) -> str | None:
        """The column with the condition ids, found by looking."""
        return next((name for name in ID_COLUMNS if name in self.columns), None)


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A target table that was checked: it has the guide's six columns in types that can be used.

    ``replaces``: a row with the same id and a newer ``fetched_at`` takes the place of the old one. Otherwise a changed
    row is deleted before it is written anew. ``exclusive``: the table keeps one row per condition whatever its source,
    so that a row of ours would make another source's row vanish.
    """

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
        return name in self.table.columns and name not in self.table.computed

    @property
    def _is_replacing(self) -> bool:
        return self.table.engine.endswith("ReplacingMergeTree")

    @property
    def replaces(self) -> bool:
        """See the class."""
        version = self.table.version_column
        keyed = set(self.table.sorting_key) in ({"condition_id"}, {"condition_id", "source"})
        return self._is_replacing and keyed and (version is None or (version == "fetched_at" and self.writes(version)))

    @property
    def exclusive(self) -> bool:
        """See the class."""
        return self._is_replacing and "source" not in self.table.sorting_key

    @property
    def null_resolved_at(self) -> bool:
        """Whether an unknown time is NULL; otherwise it is stored as 1970-01-01 00:00:00 and read as unknown."""
        return is_nullable(self.columns["resolved_at"])

    @property
    def numerators(self) -> NumberType:
        """Capacity of one numerator."""
        return _known(number_type(element_type(self.columns["payout_numerators"]) or ""))

    @property
    def denominator(self) -> NumberType:
        """Capacity of the denominator."""
        return _known(number_type(self.columns["payout_denominator"]))

    @property
    def winning_index(self) -> NumberType:
        """Capacity of the winning index."""
        return _known(number_type(self.columns["winning_index"]))


def _known(found: NumberType | None) -> NumberType:
    if found is None:
        raise TypeError("the table was not checked")
    return found


def inspect_table(session: Session, name: QualifiedName) -> Table | None:
    """The table or view ``name`` as it is; None where it does not exist (or may not be seen)."""
    parameters = {"database": name.database, "name": name.name}
    found = session.rows(statement("inspect_table"), parameters, doing=f"looking at {name}")
    if not found:
        return None
    columns = session.rows(statement("inspect_columns"), parameters, doing=f"looking at the columns of {name}")
    row = found[0]
    return Table(
        name=name,
        engine=row["engine"],
        engine_full=row["engine_full"],
        sorting_key=tuple(part.strip().strip("`") for part in row["sorting_key"].split(",") if part.strip()),
        columns={c["name"]: c["type"] for c in columns},
        computed=frozenset(c["name"] for c in columns if c["default_kind"] in ("MATERIALIZED", "ALIAS")),
    )


def _on_cluster(cluster: str | None) -> Sql:
    if cluster is None:
        return Sql("")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*|\{[A-Za-z_]+\}", cluster, re.ASCII):
        raise ConfigurationError(f"PAYOUT_CLICKHOUSE_CLUSTER: {cluster!r} is no name of a cluster")
    return Sql(f"ON CLUSTER '{cluster}'")


def create_target_sql(name: QualifiedName, cluster: str | None = None) -> str:
    """The statement that creates the target table; with a cluster on all its hosts, replicated."""
    engine = "ReplacingMergeTree" if cluster is None else "ReplicatedReplacingMergeTree"
    columns = ",\n    ".join(f"{quote_identifier(key)} {kind}" for key, kind in TARGET_COLUMNS.items())
    return statement(
        "create_target", table=name, on_cluster=_on_cluster(cluster), columns=Sql(columns), engine=Sql(engine)
    )


def ensure_database(session: Session, name: str, cluster: str | None = None) -> None:
    """Create the database ``name`` if it is missing; raises WarehousePermanentError where that is not allowed."""
    if session.rows(statement("inspect_database"), {"name": name}, doing=f"looking for the database {name}"):
        return
    sql = f"CREATE DATABASE IF NOT EXISTS {quote_identifier(name)} {_on_cluster(cluster)}".strip()
    try:
        session.command(sql, doing=f"creating the database {name}")
    except ClickHouseRefusedError as error:
        raise WarehousePermanentError(f"{error}\nThe statement that an administrator has to run: {sql}") from error


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
    problems: list[str] = []
    repairs: list[str] = []

    def wrong(name: str, why: str) -> None:
        problems.append(f"{name}: {why}")
        verb = "MODIFY" if name in table.columns else "ADD"
        repairs.append(f"ALTER TABLE {table.name.sql} {verb} COLUMN {quote_identifier(name)} {TARGET_COLUMNS[name]};")

    engine = re.sub(r"\A(Replicated|Shared)", "", table.engine)
    if engine not in ("MergeTree", "ReplacingMergeTree"):
        problems.append(
            f"its engine is {table.engine or 'unknown'}; rows can be stored once each, and found again, in a "
            "ReplacingMergeTree (or a MergeTree)"
        )
    for name in REQUIRED_COLUMNS:
        kind = table.columns.get(name)
        if kind is None:
            wrong(name, "the column is missing")
        elif name in table.computed:
            wrong(name, "the column is computed (MATERIALIZED or ALIAS) and cannot be written")
        elif reason := _unusable(name, kind):
            wrong(name, f"{kind} {reason}")
    for name in ("fetched_at", "block_number"):
        kind = table.columns.get(name)
        if kind is not None and name not in table.computed and (reason := _unusable(name, kind)):
            wrong(name, f"{kind} {reason}")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        ddl = "\n".join(repairs)
        raise WarehouseSchemaError(
            f"the table {table.name} cannot hold the payout vectors:\n{listed}\n"
            + (f"The DDL that is needed (nothing was changed; look at the data first):\n{ddl}\n" if ddl else "")
            + "Or set PAYOUT_TARGET_TABLE to a table that does not exist yet, and it is created as:\n"
            + create_target_sql(QualifiedName(table.name.database, f"{table.name.name}_payouts"), cluster)
        )
    return TargetTable(table, cluster)


def _unusable(name: str, kind: str) -> str | None:
    """Why a column of this type can never hold what belongs into it; None where it can."""
    plain = unwrap(kind)
    if name == "condition_id":
        if is_nullable(kind) or not (plain == "String" or plain == "FixedString(64)"):
            return "is no text of 64 characters (String or FixedString(64))"
        return None
    if name == "source":
        if plain == "String" or (plain.startswith("Enum") and f"'{SOURCE}'" in plain):
            return None
        return f"cannot hold '{SOURCE}'"
    if name in ("resolved_at", "fetched_at"):
        if name == "fetched_at" and is_nullable(kind):
            return "may be NULL, which says nothing about which of two rows is newer"
        return None if _DATETIME.match(plain) or _DATETIME64.match(plain) else "is no DateTime"
    if name == "payout_numerators":
        inner = element_type(kind)
        if inner is None:
            return "is no array"
        return None if number_type(inner) else "has elements that are no integers or floats"
    number = number_type(kind)
    if number is None:
        return "is neither an integer nor a float"
    if name == "winning_index" and (number.low > -1 or number.floating):
        return "cannot hold -1, the index of a vector that several outcomes share"
    return None


def check_values(target: TargetTable, batch: pa.RecordBatch) -> None:
    """Raise WarehouseSchemaError unless every vector of ``batch`` (resolved ledger rows) fits the columns exactly.

    The message names the first ids that do not, and the DDL that makes them fit.
    """
    import pyarrow.compute as pc

    bad: dict[str, list[int]] = {}

    def outside(name: str, values: Any, parents: Any, low: int, high: int) -> None:
        over = pc.greater(values, high) if high < _arrow_high(values) else None
        under = pc.less(values, low) if low > _arrow_low(values) else None
        mask = over if under is None else under if over is None else pc.or_(over, under)
        if mask is not None and pc.any(mask).as_py():
            rows = pc.indices_nonzero(pc.fill_null(mask, False))
            bad[name] = list(dict.fromkeys((rows if parents is None else pc.take(parents, rows)).to_pylist()))

    numerators = batch.column("payout_numerators")
    flat, parents = pc.list_flatten(numerators), pc.list_parent_indices(numerators)
    outside("payout_numerators", flat, parents, 0, target.numerators.high)
    outside("payout_denominator", batch.column("payout_denominator"), None, 0, target.denominator.high)
    winning = target.winning_index
    outside("winning_index", batch.column("winning_index"), None, winning.low, winning.high)
    if _DATETIME.match(unwrap(target.columns["resolved_at"])):
        import pyarrow as pa

        seconds = batch.column("resolved_at").cast(pa.timestamp("s", "UTC")).cast(pa.int64())
        outside("resolved_at", seconds, None, 0, 2**32 - 1)
    if not bad:
        return
    lines = []
    for name, rows in bad.items():
        ids = batch.column("condition_id").take(_indices(rows[:_NAMED])).to_pylist()
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        lines.append(f"  - {name} {target.columns[name]}: {len(rows)} row(s): {', '.join(ids)}{more}")
    ddl = "\n".join(
        f"ALTER TABLE {target.name.sql} MODIFY COLUMN {quote_identifier(name)} {TARGET_COLUMNS[name]};" for name in bad
    )
    raise WarehouseSchemaError(
        f"{len(set().union(*bad.values()))} vector(s) do not fit into {target.name} exactly; nothing of them was "
        f"written:\n" + "\n".join(lines) + f"\nThe DDL that is needed:\n{ddl}"
    )


def _indices(rows: list[int]) -> Any:
    import pyarrow as pa

    return pa.array(rows, pa.int64())


def _arrow_high(values: Any) -> int:
    import pyarrow as pa

    return {pa.uint64(): MAX_UINT64, pa.int64(): 2**63 - 1, pa.int32(): 2**31 - 1}[values.type]


def _arrow_low(values: Any) -> int:
    import pyarrow as pa

    return {pa.uint64(): 0, pa.int64(): -(2**63), pa.int32(): -(2**31)}[values.type]


@dataclass(frozen=True, slots=True)
class SourceTables:
    """What the truth view is built from."""

    target: TargetTable
    market: Table


def ensure_sources(session: Session, settings: Settings) -> SourceTables:
    """The target and the user's ``market_resolutions_final``, ready to be read by the view.

    Embedded, a missing user table is created empty with its real shape; on a server its absence raises
    ConfigurationError. Raises as :func:`ensure_target` and :func:`check_view_place` do.
    """
    check_view_place(session, settings)
    target = ensure_target(session, QualifiedName.parse(settings.target_table), settings.clickhouse_cluster)
    return SourceTables(target, ensure_market(session, QualifiedName.parse(settings.market_resolutions_table)))


def check_view_place(session: Session, settings: Settings) -> None:
    """Raise unless the truth view's name is free or a view's: ``CREATE OR REPLACE VIEW`` drops a table with its rows.

    ConfigurationError where another variable has the same name, WarehouseSchemaError where something else is there. On a
    cluster only the host that is spoken to is looked at.
    """
    name = QualifiedName.parse(settings.truth_view)
    others = {
        "PAYOUT_TARGET_TABLE": settings.target_table,
        "PAYOUT_MARKET_RESOLUTIONS_TABLE": settings.market_resolutions_table,
        "PAYOUT_PNL_VIEW": settings.pnl_view,
    }
    if same := [variable for variable, text in others.items() if text and QualifiedName.parse(text) == name]:
        raise ConfigurationError(
            f"PAYOUT_TRUTH_VIEW and {' and '.join(same)} are both {name}, and the view would take its place.\n"
            "To repair it: give the view a name of its own."
        )
    parameters = {"database": name.database, "name": name.name}
    found = session.rows(statement("inspect_table"), parameters, doing=f"looking at {name}")
    if found and found[0]["engine"] != "View":
        raise WarehouseSchemaError(
            f"PAYOUT_TRUTH_VIEW is {name}, which is no view but a table of engine {found[0]['engine']}. Rebuilding the "
            "view would drop it with its rows, so it was left as it is.\nTo repair it: set PAYOUT_TRUTH_VIEW to another "
            f"name, or RENAME TABLE {name.sql}."
        )


def ensure_market(session: Session, name: QualifiedName) -> Table:
    """The user's table of resolutions; see :func:`ensure_sources`."""
    table = inspect_table(session, name)
    if table is None and session.embedded:
        ensure_database(session, name.database)
        session.command(statement("create_market_resolutions", table=name), doing=f"creating the empty table {name}")
        table = inspect_table(session, name)
    if table is None:
        raise ConfigurationError(
            f"the table {name} does not exist on {session.address}, or the user may not see it.\nTo repair it: set "
            f"PAYOUT_MARKET_RESOLUTIONS_TABLE to the table of known resolutions, or GRANT SELECT ON {name.sql}."
        )
    missing = [c for c in ("payout_numerators", "payout_denominator") if c not in table.columns]
    if table.id_column is None:
        missing.insert(0, " or ".join(ID_COLUMNS))
    if missing:
        raise WarehouseSchemaError(
            f"the table {name} lacks {', '.join(missing)}; it has {', '.join(table.columns) or 'no columns'}.\n"
            "To repair it: set PAYOUT_MARKET_RESOLUTIONS_TABLE to a table or view that has them."
        )
    for part, kind in (
        ("payout_numerators", element_type(table.columns["payout_numerators"]) or "no array"),
        ("payout_denominator", table.columns["payout_denominator"]),
    ):
        if number_type(kind) is None:
            raise WarehouseSchemaError(
                f"the column {part} of {name} is {table.columns[part]}; integers or floats are needed.\n"
                "To repair it: set PAYOUT_MARKET_RESOLUTIONS_TABLE to a table or view that has them."
            )
    return table


def names(columns: Iterable[str]) -> Sql:
    """A list of columns, quoted."""
    return Sql(", ".join(column(name) for name in columns))
