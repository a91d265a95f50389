"""``vw_resolutions_truth``: the one place where a condition's resolution is read.

The column types are the same whatever the tables have: ``Array(UInt64)``, ``UInt64``, ``Int32``,
``Nullable(DateTime('UTC'))``, ``String``. Whole numbers are taken over as they are. A vector with fractions (in a
user's Float64 column, such as ``[0.54, 0.46]/1``) is scaled by 10^9, numerators and denominator alike, so that what a
wallet is paid stays the same to nine digits instead of being cut to zero. Vectors that are no vectors (negative, not
finite, beyond UInt64) are left out, and external ones that pay nothing. 1970-01-01 00:00:00 is an unknown time and shown as NULL.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from payout_pipeline.errors import WarehousePermanentError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.schema import Table, ensure_database, on_cluster
from payout_pipeline.warehouse.statements import Sql, column, statement
from payout_pipeline.warehouse.target import SOURCE, SourceTables, ensure_sources
from payout_pipeline.warehouse.types import MAX_UINT64, element_type, integers, is_float, is_nullable, unwrap

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings

_SCALE = 1_000_000_000
_RECENT_FIRST = ("fetched_at", "updated_at", "version")


@dataclass(frozen=True, slots=True)
class Readings:
    """How the columns of one table are read, as expressions over its alias ``m``."""

    id: Sql
    numerators: Sql
    denominator: Sql
    winning_index: Sql
    resolved_at: Sql
    eligible: Sql
    order: Sql


def normal_id(expression: str) -> Sql:
    """Lower case, without 0x."""
    text = f"lower(toString({expression}))"
    return Sql(f"if(startsWith({text}, '0x'), substring({text}, 3), {text})")


def readings(table: Table, *, external: bool) -> Readings:
    """The expressions for ``table``, by the types it has; an ``external`` vector counts only if it pays something."""
    inner_type = element_type(table.columns["payout_numerators"]) or ""
    outer_type = table.columns["payout_denominator"]
    if table.id_column is None:
        raise TypeError(f"{table.name} was not checked")
    raw_n = "m.payout_numerators"
    if is_nullable(inner_type):
        raw_n = f"arrayMap(x -> ifNull(x, 0), {raw_n})"
    raw_d = "m.payout_denominator"
    if is_nullable(outer_type):
        raw_d = f"ifNull({raw_d}, 0)"
    eligible = [f"{raw_d} > 0", *([f"arrayExists(x -> x > 0, {raw_n})"] if external else [])]
    if is_float(inner_type) or is_float(outer_type):
        limit = "18446744073709549568."  # the largest float below 2^64
        floats = f"arrayMap(x -> toFloat64(x), {raw_n})"
        total = f"toFloat64({raw_d})"
        eligible += [
            f"arrayAll(x -> isFinite(x) AND x >= 0 AND x <= {limit}, {floats})",
            f"isFinite({total}) AND {total} <= {limit}",
        ]
        whole = f"arrayAll(x -> x = floor(x), arrayPushBack({floats}, {total}))"
        scaled = f"arrayMap(x -> toUInt64(round(least(x, 1e9) * {_SCALE})), {floats})"
        scaled_total = f"toUInt64(round(least({total}, 1e9) * {_SCALE}))"
        near = f"abs(toInt64(arraySum({scaled})) - toInt64({scaled_total})) <= length({raw_n})"
        numerators = f"if({whole}, arrayMap(x -> toUInt64(x), {raw_n}), {scaled})"
        # Thirds as 0.333333333 sum to a hair less than 1; the denominator follows the numerators.
        denominator = f"if({whole}, toUInt64({raw_d}), if({near}, toUInt64(arraySum({scaled})), {scaled_total}))"
    else:
        eligible += [f"arrayAll(x -> x >= 0 AND x <= {MAX_UINT64}, {raw_n})", f"{raw_d} <= {MAX_UINT64}"]
        numerators = f"CAST(arrayMap(x -> toUInt64(x), {raw_n}), 'Array(UInt64)')"
        denominator = f"toUInt64({raw_d})"
    return Readings(
        id=normal_id(f"m.{table.id_column}"),
        numerators=Sql(numerators),
        denominator=Sql(denominator),
        winning_index=_winning_index(table),
        resolved_at=_resolved_at(table),
        eligible=Sql(" AND ".join(eligible)),
        order=_order(table),
    )


def _winning_index(table: Table) -> Sql:
    kind = table.columns.get("winning_index")
    if kind is not None and integers(kind) is not None:
        return Sql("toInt32(ifNull(m.winning_index, -1))")
    largest = "arrayMax(m.payout_numerators)"
    return Sql(
        f"if(countEqual(m.payout_numerators, {largest}) = 1, toInt32(indexOf(m.payout_numerators, {largest}) - 1), -1)"
    )


def _resolved_at(table: Table) -> Sql:
    kind = table.columns.get("resolved_at")
    if kind is None or not unwrap(kind).startswith("DateTime"):
        return Sql("CAST(NULL, 'Nullable(DateTime(\\'UTC\\'))')")
    return Sql("CAST(nullIf(toDateTime(m.resolved_at, 'UTC'), toDateTime(0, 'UTC')), 'Nullable(DateTime(\\'UTC\\'))')")


def _order(table: Table) -> Sql:
    keys = ["condition_id", f"toString(m.{table.id_column}) = condition_id DESC"]
    if "source" in table.columns:
        keys.append(f"ifNull(toString(m.source), '') = '{SOURCE}' DESC")
    keys += [f"m.{column(name)} DESC" for name in _RECENT_FIRST if name in table.columns]
    if "source" in table.columns:
        keys.append("ifNull(toString(m.source), '')")
    # By all that is left, so that the same rows always give the same one.
    rest = ("payout_numerators", "payout_denominator", "winning_index", "resolved_at")
    keys += [f"ifNull(toString(m.{column(name)}), '')" for name in rest if name in table.columns]
    return Sql(", ".join(keys))


def view_sql(name: QualifiedName, tables: SourceTables, cluster: str | None = None) -> str:
    """The statement that makes the view."""
    market, target = readings(tables.market, external=False), readings(tables.target.table, external=True)
    parts: dict[str, QualifiedName | Sql] = {
        "view": name,
        "on_cluster": on_cluster(cluster),
        "market": tables.market.name,
        "market_name": Sql(tables.market.name.name),
        "market_final": tables.market.final,
    }
    parts["market_id"], parts["market_eligible"] = market.id, market.eligible
    parts["market_side"] = _side(tables.market, market, Sql(f"'{tables.market.name.name}'"))
    parts["target_side"] = _side(tables.target.table, target, Sql("toString(m.source)"))
    return statement("vw_resolutions_truth", **parts)


def _side(table: Table, read: Readings, source: Sql) -> Sql:
    """The SELECT with one row per condition of ``table``."""
    parts: dict[str, QualifiedName | Sql] = {f.name: getattr(read, f.name) for f in fields(read)}
    text = statement("view_side", table=table.name, final=table.final, source=source, **parts)
    return Sql(text.strip().replace("\n", "\n        "))


def rebuild_view(session: Session, settings: Settings) -> str:
    """Make ``PAYOUT_TRUTH_VIEW`` anew and return its statement. Readers see the old view or the new one, never none.

    Raises WarehousePermanentError where the user may not create views (what was ingested stays), and as
    :func:`~payout_pipeline.warehouse.schema.ensure_sources` does.
    """
    name = QualifiedName.parse(settings.truth_view)
    tables = ensure_sources(session, settings)
    sql = view_sql(name, tables, settings.clickhouse_cluster)
    try:
        ensure_database(session, name.database, settings.clickhouse_cluster)
        session.command(sql, doing=f"rebuilding the view {name}")
    except ClickHouseRefusedError as error:
        if error.code != 497:
            raise
        raise WarehousePermanentError(
            f"the view {name} could not be rebuilt: the user may not create views. What was ingested into "
            f"{tables.target.name} is stored; only the view is as it was.\n{error}\nTo repair it: GRANT CREATE VIEW, "
            f"DROP VIEW ON {name.sql} to the user and materialize vw_resolutions_truth again, or let an administrator "
            f"run:\n{sql}"
        ) from error
    return sql
