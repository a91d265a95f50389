"""The numbers behind the checks on ClickHouse: each function runs one ``sql/checks/*.sql`` and returns what it says.

No verdicts here, and nothing is written. Each result carries the statement that was run. Conditions are counted once:
tables are read with FINAL where the engine needs it, ids lower-case without 0x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.schema import Table, ensure_market, inspect_table
from payout_pipeline.warehouse.statements import Sql, column, statement
from payout_pipeline.warehouse.target import SOURCE, TargetTable, check_target
from payout_pipeline.warehouse.view import Readings, normal_id, readings

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

SAMPLE = 20
#: Ids that travel to the database in one statement: its copies of them, not the view, decide how much memory a check takes.
_IDS_AT_ONCE = 1 << 17
WALLET_COLUMNS = ("wallet", "wallet_address")
PNL_COLUMNS = ("settled_pnl_usd", "total_pnl", "settled_value")


@dataclass(frozen=True, slots=True)
class Place:
    """The tables and views that the checks read, as they are now. ``view`` and ``pnl`` are None where missing."""

    target: TargetTable
    market: Table
    view_name: QualifiedName
    view: Table | None
    pnl: Table | None


def survey(session: Session, settings: Settings) -> Place:
    """Look at everything the checks read; creates nothing but, in embedded mode, the user's empty table.

    Raises ConfigurationError where the target or the user's table does not exist, WarehouseSchemaError where one of
    them cannot be used.
    """
    name = QualifiedName.parse(settings.target_table)
    table = inspect_table(session, name)
    if table is None:
        raise ConfigurationError(
            f"the target table {name} does not exist on {session.address}, so nothing was loaded yet.\n"
            "To repair it: run the backfill, or set PAYOUT_TARGET_TABLE to the table that it was run with."
        )
    view_name = QualifiedName.parse(settings.truth_view)
    return Place(
        target=check_target(table, settings.clickhouse_cluster),
        market=ensure_market(session, QualifiedName.parse(settings.market_resolutions_table)),
        view_name=view_name,
        view=inspect_table(session, view_name),
        pnl=inspect_table(session, QualifiedName.parse(settings.pnl_view)) if settings.pnl_view else None,
    )


def _view(place: Place) -> QualifiedName:
    if place.view is None:
        raise ConfigurationError(
            f"the view {place.view_name} does not exist yet.\nTo repair it: materialize vw_resolutions_truth."
        )
    return place.view_name


def _sides(place: Place, *wanted: str) -> dict[str, QualifiedName | Sql]:
    """``market_id``, ``target_eligible`` … : how the columns of the two tables are read."""
    parts: dict[str, QualifiedName | Sql] = {
        "market": place.market.name,
        "market_final": place.market.final,
        "market_name": Sql(place.market.name.name),
        "target": place.target.name,
        "target_final": place.target.table.final,
    }
    sides: dict[str, Readings] = {"market": readings(place.market), "target": readings(place.target.table)}
    for side in sides:
        for key in wanted:
            parts[f"{side}_{key}"] = getattr(sides[side], key)
    return parts


@dataclass(frozen=True, slots=True)
class SourceTotal:
    """One source's share of the target table."""

    source: str
    rows: int
    conditions: int


@dataclass(frozen=True, slots=True)
class UniqueConditions:
    """Distinct conditions and rows of ``goldsky-api``, and the totals of every source."""

    conditions: int
    rows: int
    by_source: tuple[SourceTotal, ...]
    sql: str


def unique_conditions(session: Session, place: Place) -> UniqueConditions:
    """The guide's first validation query."""
    sql = statement(
        "checks/unique_conditions",
        target=place.target.name,
        final=place.target.table.final,
        id=normal_id("m.condition_id"),
    )
    totals = tuple(
        SourceTotal(row["source"], row["total_payouts"], row["unique_conditions"])
        for row in session.rows(sql, doing=f"counting the conditions of {place.target.name}")
    )
    own = next((total for total in totals if total.source == SOURCE), SourceTotal(SOURCE, 0, 0))
    return UniqueConditions(own.conditions, own.rows, totals, sql)


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows with one denominator and one sum of numerators; the numbers as text, as the column may be of any type."""

    rows: int
    denominator: str
    total: str
    sound: bool
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PayoutQuality:
    """Rows of ``goldsky-api``; ``unsound`` ones have numerators that do not sum to the denominator (or to nothing)."""

    rows: int
    unsound: int
    shapes: tuple[Shape, ...]
    sql: str


def payout_quality(session: Session, place: Place) -> PayoutQuality:
    """The guide's second validation query, over all rows; unsound shapes first, then the commonest."""
    sql = statement("checks/payout_quality", target=place.target.name, final=place.target.table.final)
    shapes = tuple(
        Shape(
            row["count"],
            row["payout_denominator"],
            row["sum_check"],
            bool(row["sound"]),
            tuple(row["examples"]),
        )
        for row in session.rows(sql, {"source": SOURCE}, doing=f"checking the vectors of {place.target.name}")
    )
    return PayoutQuality(sum(s.rows for s in shapes), sum(s.rows for s in shapes if not s.sound), shapes, sql)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One stored row; ``defect`` is empty where it is well-formed."""

    condition_id: str
    payout_numerators: str
    payout_denominator: str
    winning_index: int
    defect: str


@dataclass(frozen=True, slots=True)
class PayoutSample:
    """Up to five rows of ``goldsky-api``."""

    rows: tuple[SampleRow, ...]
    sql: str


def payout_sample(session: Session, place: Place) -> PayoutSample:
    """The guide's third validation query."""
    sql = statement("checks/payout_sample", target=place.target.name, final=place.target.table.final)
    rows = session.rows(sql, {"source": SOURCE}, doing=f"taking a sample of {place.target.name}")
    return PayoutSample(tuple(SampleRow(**row) for row in rows), sql)


@dataclass(frozen=True, slots=True)
class NoNullPayouts:
    """``without_vector`` rows of the view are empty; ``missing`` of the ``resolved`` ids have no vector there."""

    view_rows: int
    without_vector: int
    resolved: int
    missing: int
    examples: tuple[str, ...]
    sql: str


def no_null_payouts(session: Session, place: Place, resolved: Iterable[pa.RecordBatch] = ()) -> NoNullPayouts:
    """Resolved markets without a vector. ``resolved``: ledger rows; those of status resolved have to be in the view."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from payout_pipeline.warehouse.load import slices

    view = _view(place)
    sql_view, sql = statement("checks/no_null_payouts_view", view=view), statement("checks/no_null_payouts", view=view)
    counts = session.rows(sql_view, doing=f"looking for empty vectors in {view}")[0]
    asked = missing = 0
    examples: list[str] = []
    for batch in slices((b.select(["condition_id", "status"]) for b in resolved), _IDS_AT_ONCE):
        ids = batch.filter(pc.equal(batch.column("status"), "resolved")).column("condition_id").cast(pa.string())
        asked += len(ids)
        found = session.arrow(
            sql,
            doing=f"looking for resolved conditions in {view}",
            external={"resolved": pa.record_batch({"condition_id": ids})},
        )
        missing += found.num_rows
        examples += found.column("condition_id").slice(0, SAMPLE - len(examples)).to_pylist()
    return NoNullPayouts(
        counts["rows"], counts["without_vector"], asked, missing, tuple(examples), f"{sql_view}\n;\n{sql}"
    )


@dataclass(frozen=True, slots=True)
class OneRowPerCondition:
    """Rows and conditions of the view; ``doubled`` conditions have more than one row."""

    rows: int
    conditions: int
    doubled: int
    examples: tuple[str, ...]
    sql: str


def one_row_per_condition(session: Session, place: Place) -> OneRowPerCondition:
    """Whether the view pays anybody twice."""
    sql = statement("checks/one_row_per_condition", view=_view(place))
    row = session.rows(sql, doing=f"counting the rows of {place.view_name}")[0]
    doubled, examples = 0, ()
    if row["rows"] != row["conditions"]:
        again = statement("checks/one_row_per_condition_doubled", view=place.view_name)
        found = session.rows(again, doing=f"looking for doubled conditions in {place.view_name}")[0]
        doubled, examples = found["doubled"], tuple(found["examples"])
    return OneRowPerCondition(row["rows"], row["conditions"], doubled, examples, sql)


@dataclass(frozen=True, slots=True)
class RowsIncluded:
    """Conditions with a usable external row, by where the view takes them from; ``missing`` from neither."""

    eligible: int
    from_external: int
    from_market: int
    missing: int
    examples: tuple[str, ...]
    sql: str


def goldsky_rows_included(session: Session, place: Place) -> RowsIncluded:
    """Whether every usable external row has made it into the view."""
    sql = statement("checks/goldsky_rows_included", view=_view(place), **_needed(place, "goldsky_rows_included"))
    row = session.rows(sql, doing=f"looking for external rows in {place.view_name}")[0]
    return RowsIncluded(
        row["eligible"], row["from_external"], row["from_market"], row["missing"], tuple(row["examples"]), sql
    )


def _needed(place: Place, name: str) -> dict[str, QualifiedName | Sql]:
    keys = {
        "goldsky_rows_included": ("id", "eligible"),
        "sources_agree": ("id", "numerators", "denominator", "eligible", "order"),
        "coverage_before_after": ("id", "eligible"),
    }
    return _sides(place, *keys[name])


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One condition with different vectors in the two sources."""

    condition_id: str
    market: str
    goldsky: str


@dataclass(frozen=True, slots=True)
class SourcesAgree:
    """``overlap`` conditions are resolved by both sources, ``differing`` of them differently."""

    overlap: int
    differing: int
    examples: tuple[Disagreement, ...]
    sql: str


def sources_agree(session: Session, place: Place) -> SourcesAgree:
    """Whether the user's resolutions and Goldsky's say the same, in lowest terms."""
    sql = statement("checks/sources_agree", **_needed(place, "sources_agree"))
    row = session.rows(sql, {"source": SOURCE}, doing="comparing the two sources")[0]
    # ClickHouse names the fields of an unnamed tuple 1, 2, 3.
    examples = tuple(Disagreement(*example.values()) for example in row["examples"])
    return SourcesAgree(row["overlap"], row["differing"], examples, sql)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Conditions with a vector. ``view_*`` are 0 while the view does not exist; ``view_exists`` tells the two apart."""

    market_rows: int
    market_conditions: int
    external_conditions: int
    either_conditions: int
    view_conditions: int
    view_rows: int
    view_exists: bool
    sql: str


def coverage(session: Session, place: Place) -> Coverage:
    """The guide's coverage analysis; to be asked before and after the rebuild."""
    counts = "SELECT toUInt64(0) AS view_conditions, toUInt64(0) AS view_rows"
    if place.view is not None:
        counts = statement("view_counts", view=place.view_name)
    sql = statement(
        "checks/coverage_before_after",
        view_counts=Sql(counts),
        **_needed(place, "coverage_before_after"),
    )
    row = session.rows(sql, doing="counting the conditions that are covered")[0]
    return Coverage(**row, view_exists=place.view is not None, sql=sql)


def view_rows(session: Session, view: QualifiedName) -> int:
    """The rows of the truth view."""
    return int(session.scalar(statement("view_rows", view=view), doing=f"counting the rows of {view}"))


@dataclass(frozen=True, slots=True)
class SettledPnl:
    """Settled P&L as the user's view has it.

    ``total`` is the sum of ``pnl_column`` in its unit (USD). ``redemption_total`` is None where the view has no
    redemptions; ``not_added_up`` wallets have a total that is not trading plus redemptions. ``doubled_wallets`` stand
    in the view more than once (``examples``: wallet and rows), ``doubled_conditions`` in the truth view: both pay a
    wallet twice for the same thing, while a newly covered condition adds a wallet or an amount once.
    """

    wallet_column: str
    pnl_column: str
    rows: int
    wallets: int
    wallets_with_pnl: int
    total: float
    redemption_total: float | None
    positions: int | None
    not_added_up: int
    doubled_wallets: int
    doubled_conditions: int
    examples: tuple[tuple[str, int], ...]
    sql: str


def settled_pnl(session: Session, place: Place, doubled_conditions: int | None = None) -> SettledPnl | None:
    """The guide's P&L query on the column names that the view really has; None where there is no such view.

    ``doubled_conditions``: of :func:`one_row_per_condition` where that was asked already, which saves a read.
    Raises ConfigurationError where the view has no wallet or no P&L column.
    """
    if place.pnl is None:
        return None
    columns = place.pnl.columns
    wallet = next((name for name in WALLET_COLUMNS if name in columns), None)
    pnl = next((name for name in PNL_COLUMNS if name in columns), None)
    if wallet is None or pnl is None:
        raise ConfigurationError(
            f"the view {place.pnl.name} has no {' or '.join(WALLET_COLUMNS)} or no {' or '.join(PNL_COLUMNS)}; it has "
            f"{', '.join(columns)}.\nTo repair it: set PAYOUT_PNL_VIEW to the view of settled P&L, or leave it empty."
        )
    redemption = "redemption_pnl" in columns
    adds_up = redemption and "trading_pnl" in columns and "total_pnl" in columns
    others = [
        "toFloat64(ifNull(m.redemption_pnl, 0)) AS redemption" if redemption else "0. AS redemption",
        "toUInt64(m.positions_settled) AS positions_of"
        if "positions_settled" in columns
        else "toUInt64(0) AS positions_of",
        # Float sums differ in the last digits with the order of addition.
        "abs(m.total_pnl - m.trading_pnl - m.redemption_pnl) > 1e-6 * (1 + abs(m.total_pnl)) AS off"
        if adds_up
        else "0 AS off",
    ]
    sql = statement(
        "checks/settled_pnl",
        view=place.pnl.name,
        wallet=Sql(f"m.{column(wallet)}"),
        pnl=Sql(f"m.{column(pnl)}"),
        others=Sql(", ".join(others)),
        redemption_total=Sql("sum(redemption)"),
        positions=Sql("sum(positions_of)"),
        not_added_up=Sql("countIf(off)"),
    )
    row = session.rows(sql, doing=f"reading {place.pnl.name}")[0]
    doubled: list[tuple[str, int]] = []
    if row["rows"] != row["wallets"]:
        again = statement("checks/settled_pnl_doubled", view=place.pnl.name, wallet=column(wallet))
        doubled = [(r["wallet"], r["rows_of_wallet"]) for r in session.rows(again, doing=f"reading {place.pnl.name}")]
    if doubled_conditions is None:
        doubled_conditions = one_row_per_condition(session, place).doubled if place.view is not None else 0
    return SettledPnl(
        wallet_column=wallet,
        pnl_column=pnl,
        rows=row["rows"],
        wallets=row["wallets"],
        wallets_with_pnl=row["wallets_with_pnl"],
        total=row["total"],
        redemption_total=row["redemption_total"] if redemption else None,
        positions=row["positions"] if "positions_settled" in columns else None,
        not_added_up=row["not_added_up"],
        doubled_wallets=row["rows"] - row["wallets"],
        doubled_conditions=doubled_conditions,
        examples=tuple(doubled),
        sql=sql,
    )


def stored_rows(session: Session, place: Place) -> int:
    """Rows of ``goldsky-api`` in the target table, for a progress display."""
    sql = statement("count_own_rows", target=place.target.name, final=place.target.table.final)
    return int(session.scalar(sql, {"source": SOURCE}, doing=f"counting the rows of {place.target.name}"))


@dataclass(frozen=True, slots=True)
class StoredVector:
    """What a table has of one condition, as text."""

    condition_id: str
    table: str
    vector: str
    winning_index: int
    source: str


def stored_vectors(session: Session, place: Place, ids: Iterable[str]) -> list[StoredVector]:
    """What the target and the view hold of these conditions (lower-case, without 0x), for looking at."""
    wanted = list(ids)
    found: list[StoredVector] = []
    for name, final, present in (
        (place.target.name, place.target.table.final, True),
        (place.view_name, Sql(""), place.view is not None),
    ):
        if not present:
            continue
        sql = statement("stored_vectors", table=name, final=final, id=normal_id("m.condition_id"))
        for row in session.rows(sql, {"ids": wanted}, doing=f"reading {len(wanted)} conditions of {name}"):
            found.append(StoredVector(table=str(name), **row))
    return found
