"""The tables around the load: what they look like, whether they can be used, and creating the ones that are ours.

Existing tables are inspected, never assumed, and never altered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from payout_pipeline.errors import ConfigurationError, WarehousePermanentError, WarehouseSchemaError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier
from payout_pipeline.warehouse.statements import Sql, statement
from payout_pipeline.warehouse.types import element_type, integers, is_float

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings

ID_COLUMNS = ("condition_id", "condition_id_norm")
_FINAL_ENGINES = re.compile(r"(Replacing|Collapsing|VersionedCollapsing|Summing|Aggregating|Coalescing)MergeTree\Z")


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view as the server describes it. ``defaults``: column → kind of default, for columns that have one."""

    name: QualifiedName
    engine: str
    engine_full: str
    sorting_key: tuple[str, ...]
    partition_key: str
    columns: dict[str, str]
    defaults: dict[str, str]

    @property
    def final(self) -> Sql:
        """``FINAL`` where the engine keeps superseded rows until a merge, else nothing."""
        return Sql("FINAL" if _FINAL_ENGINES.search(self.engine) else "")

    @property
    def replicated(self) -> bool:
        """Whether an answer may come from a replica that does not have the latest insert yet."""
        return self.engine.startswith(("Replicated", "Shared"))

    @property
    def replacing_by(self) -> tuple[str, ...]:
        """The columns that a ReplacingMergeTree was given: none, the version, or the version and a deletion mark."""
        match = re.match(
            r"\w*ReplacingMergeTree\((.*?)\)(?:\s+(?:PARTITION|PRIMARY|ORDER|SAMPLE|TTL|SETTINGS)\b|\Z)",
            self.engine_full,
            re.DOTALL,
        )
        names = (part.strip().strip("`") for part in match[1].split(",")) if match else ()
        return tuple(name for name in names if name in self.columns)

    @property
    def id_column(self) -> str | None:
        """The column with the condition ids, found by looking."""
        return next((name for name in ID_COLUMNS if name in self.columns), None)


def inspect_table(session: Session, name: QualifiedName) -> Table | None:
    """The table or view ``name`` as it is; None where it does not exist (or may not be seen). No row is read."""
    parameters = {"database": name.database, "name": name.name}
    found = session.rows(statement("inspect_table"), parameters, doing=f"looking at {name}")
    if not found:
        return None
    columns = session.rows(statement("inspect_columns"), parameters, doing=f"looking at the columns of {name}")
    row = found[0]
    # The server reports ORDER BY (condition_id) with its parentheses.
    key = re.sub(r"\A\((.*)\)\Z", r"\1", row["sorting_key"].strip())
    return Table(
        name=name,
        engine=row["engine"],
        engine_full=row["engine_full"],
        sorting_key=tuple(part.strip().strip("`") for part in key.split(",") if part.strip()),
        partition_key=row["partition_key"],
        columns={column["name"]: column["type"] for column in columns},
        defaults={column["name"]: column["default_kind"] for column in columns if column["default_kind"]},
    )


def on_cluster(cluster: str | None) -> Sql:
    """The ``ON CLUSTER`` clause; nothing without a cluster. Raises ConfigurationError for what is no cluster's name."""
    if cluster is None:
        return Sql("")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*|\{[A-Za-z_]+\}", cluster, re.ASCII):
        raise ConfigurationError(f"PAYOUT_CLICKHOUSE_CLUSTER: {cluster!r} is no name of a cluster")
    return Sql(f"ON CLUSTER '{cluster}'")


def ensure_database(session: Session, name: str, cluster: str | None = None) -> None:
    """Create the database ``name`` if it is missing; raises WarehousePermanentError where that is not allowed."""
    if session.rows(statement("inspect_database"), {"name": name}, doing=f"looking for the database {name}"):
        return
    sql = f"CREATE DATABASE IF NOT EXISTS {quote_identifier(name)} {on_cluster(cluster)}".strip()
    try:
        session.command(sql, doing=f"creating the database {name}")
    except ClickHouseRefusedError as error:
        raise WarehousePermanentError(f"{error}\nThe statement that an administrator has to run: {sql}") from error


def check_names(settings: Settings) -> None:
    """Raise ConfigurationError where two variables name the same table or view: one would take the other's place."""
    named: dict[QualifiedName, str] = {}
    for variable, text in (
        ("PAYOUT_TARGET_TABLE", settings.target_table),
        ("PAYOUT_MARKET_RESOLUTIONS_TABLE", settings.market_resolutions_table),
        ("PAYOUT_TRUTH_VIEW", settings.truth_view),
        ("PAYOUT_PNL_VIEW", settings.pnl_view),
    ):
        if not text:
            continue
        name = QualifiedName.parse(text)
        if name in named:
            raise ConfigurationError(
                f"{named[name]} and {variable} are both {name}, and what is written to the one would change the other."
                "\nTo repair it: give each a name of its own."
            )
        named[name] = variable


def check_view_place(session: Session, settings: Settings) -> None:
    """Raise WarehouseSchemaError unless the truth view's name is free or a view's.

    ``CREATE OR REPLACE VIEW`` would drop a table with its rows. On a cluster only the host that is spoken to is looked at.
    """
    name = QualifiedName.parse(settings.truth_view)
    parameters = {"database": name.database, "name": name.name}
    found = session.rows(statement("inspect_table"), parameters, doing=f"looking at {name}")
    if found and found[0]["engine"] != "View":
        raise WarehouseSchemaError(
            f"PAYOUT_TRUTH_VIEW is {name}, which is no view but a table of engine {found[0]['engine']}. Rebuilding the "
            "view would drop it with its rows, so it was left as it is.\nTo repair it: set PAYOUT_TRUTH_VIEW to another "
            f"name, or RENAME TABLE {name.sql}."
        )


def ensure_market(session: Session, name: QualifiedName) -> Table:
    """The user's table of resolutions.

    Embedded, a missing one is created empty with its real shape; on a server its absence raises ConfigurationError.
    Raises WarehouseSchemaError where it lacks an id, numerators or a denominator in usable types.
    """
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
    problems = [] if table.id_column else [f"no column {' or '.join(ID_COLUMNS)}"]
    for column, kind in (
        ("payout_numerators", element_type(table.columns.get("payout_numerators", ""))),
        ("payout_denominator", table.columns.get("payout_denominator", "")),
    ):
        if not (integers(kind) or is_float(kind)):
            problems.append(f"{column} is {table.columns.get(column, 'missing')}, not of integers or floats")
    if problems:
        raise WarehouseSchemaError(
            f"the table {name} cannot be read as resolutions: {'; '.join(problems)}. It has "
            f"{', '.join(table.columns) or 'no columns'}.\n"
            "To repair it: set PAYOUT_MARKET_RESOLUTIONS_TABLE to a table or view that has them."
        )
    return table
