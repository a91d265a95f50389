"""Numbers that are read before a backfill and after it: coverage, the view's size, settled P&L. No verdicts here."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.schema import Table, ensure_market, inspect_table
from payout_pipeline.warehouse.statements import Sql, column, statement
from payout_pipeline.warehouse.target import SOURCE, TargetTable, check_target
from payout_pipeline.warehouse.types import integers, is_float
from payout_pipeline.warehouse.view import normal_id, readings

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

WALLET_COLUMNS = ("wallet", "wallet_address")
PNL_COLUMNS = ("settled_pnl_usd", "total_pnl", "settled_value")


class Place:
    """The tables and views that are read, each inspected when it is first asked for: a broken one fails who needs it."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self.session, self.settings = session, settings
        self.view_name = QualifiedName.parse(settings.truth_view)

    @cached_property
    def target(self) -> TargetTable:
        """Raises ConfigurationError where it does not exist, WarehouseSchemaError where it cannot be used."""
        name = QualifiedName.parse(self.settings.target_table)
        table = inspect_table(self.session, name)
        if table is None:
            raise ConfigurationError(
                f"the target table {name} does not exist on {self.session.address}, so nothing is stored.\n"
                "To repair it: run the backfill, or set PAYOUT_TARGET_TABLE to the table that it was run with."
            )
        return check_target(table, self.settings.clickhouse_cluster)

    @cached_property
    def market(self) -> Table:
        """The user's table of resolutions; raises as :func:`ensure_market`."""
        return ensure_market(self.session, QualifiedName.parse(self.settings.market_resolutions_table))

    @cached_property
    def view(self) -> QualifiedName:
        """The truth view's name; raises ConfigurationError where there is none."""
        if inspect_table(self.session, self.view_name) is None:
            raise ConfigurationError(
                f"the view {self.view_name} does not exist.\nTo repair it: materialize vw_resolutions_truth."
            )
        return self.view_name

    @property
    def target_parts(self) -> dict[str, QualifiedName | Sql]:
        """``target``, ``target_final``, ``target_id``, ``target_eligible`` for a statement."""
        read = readings(self.target.table, external=True)
        return {
            "target": self.target.name,
            "target_final": self.target.table.final,
            "target_id": read.id,
            "target_eligible": read.eligible,
        }

    @property
    def market_parts(self) -> dict[str, QualifiedName | Sql]:
        """The same of the market table."""
        read = readings(self.market, external=False)
        return {
            "market": self.market.name,
            "market_final": self.market.final,
            "market_id": read.id,
            "market_eligible": read.eligible,
        }


def coverage(session: Session, settings: Settings) -> dict[str, Any]:
    """``market``, ``external`` and ``either``: distinct conditions with a vector in the two tables; and the statement."""
    place = Place(session, settings)
    sql = statement("checks/coverage_before_after", **place.market_parts, **place.target_parts)
    return {**session.rows(sql, doing="counting the conditions that are covered")[0], "sql": sql}


def view_conditions(session: Session, settings: Settings) -> dict[str, Any]:
    """``view``: distinct conditions of the truth view; ``no_view`` where there is none."""
    name = QualifiedName.parse(settings.truth_view)
    if inspect_table(session, name) is None:
        return {"no_view": True}
    row = session.rows(statement("view_counts", view=name), doing=f"counting the conditions of {name}")[0]
    return {"view": row["conditions"], "view_rows": row["rows"]}


def settled_pnl(session: Session, settings: Settings) -> dict[str, Any]:
    """The guide's P&L query on the columns that the view really has; ``no_pnl`` where there is no such view.

    ``wallets`` have a row, whatever their P&L; ``doubled`` rows pay a wallet again; ``without_wallet`` rows name no wallet;
    ``not_numbers`` rows hold NULL, NaN or infinity; ``not_added_up`` ones have a total that is not trading plus redemption.
    Raises ConfigurationError where the view has no wallet or no P&L column.
    """
    name = QualifiedName.parse(settings.pnl_view)
    table = inspect_table(session, name)
    if table is None:
        return {"no_pnl": True}
    columns = table.columns
    wallet = next((c for c in WALLET_COLUMNS if c in columns), None)
    pnl = next((c for c in PNL_COLUMNS if c in columns), None)
    if wallet is None or pnl is None:
        raise ConfigurationError(
            f"the view {name} has no {' or '.join(WALLET_COLUMNS)} or no {' or '.join(PNL_COLUMNS)}; it has "
            f"{', '.join(columns)}.\nTo repair it: set PAYOUT_PNL_VIEW to the view of settled P&L, or leave it empty."
        )
    numbers = [c for c, kind in columns.items() if is_float(kind) or integers(kind) or "Decimal" in kind]
    not_numbers = " OR ".join(f"NOT isFinite(ifNull(toFloat64(m.{column(c)}), nan))" for c in numbers)
    has_redemption = "redemption_pnl" in columns
    adds_up = has_redemption and {"trading_pnl", "total_pnl"} <= set(columns)
    sql = statement(
        "checks/settled_pnl",
        view=name,
        wallet=_wallet(wallet),
        pnl=Sql(f"m.{column(pnl)}"),
        redemption=Sql("m.redemption_pnl" if has_redemption else "0"),
        not_a_number=Sql(not_numbers or "0"),
        # Float sums differ in the last digits with the order of addition.
        off=Sql(
            "abs(toFloat64(m.total_pnl) - toFloat64(m.trading_pnl) - toFloat64(m.redemption_pnl))"
            " > 1e-6 * (1 + abs(toFloat64(m.total_pnl)))"
            if adds_up
            else "0"
        ),
    )
    row = session.rows(sql, doing=f"reading {name}")[0]
    found = {**row, "doubled": row["rows"] - row["wallets"] - row["without_wallet"], "examples": [], "sql": sql}
    if not has_redemption:
        found["redemptions"] = None
    if found["doubled"] > 0:
        again = statement("checks/settled_pnl_doubled", view=name, wallet=_wallet(wallet))
        rows = session.rows(again, doing=f"reading {name}")
        found["examples"] = [(r["wallet"], r["rows_of_wallet"]) for r in rows]
    return found


def _wallet(name: str) -> Sql:
    """An address in lower case, however its checksum spells it; NULL where it is empty."""
    return Sql(f"nullIf(lower(toString(m.{column(name)})), '')")


def id_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The ids of ledger rows, as an external table of a statement."""
    import pyarrow as pa

    return pa.record_batch({"condition_id": batch.column("condition_id").cast(pa.string())})


def stored_rows(session: Session, settings: Settings) -> int:
    """Rows of ``goldsky-api`` in the target table; 0 where it does not exist."""
    name = QualifiedName.parse(settings.target_table)
    table = inspect_table(session, name)
    if table is None:
        return 0
    sql = statement("count_own_rows", target=name, final=table.final)
    return int(session.scalar(sql, {"source": SOURCE}, doing=f"counting the rows of {name}"))


def stored_vectors(session: Session, settings: Settings, ids: list[str]) -> list[dict[str, Any]]:
    """What the target and the view hold of these conditions (lower-case, without 0x), as text."""
    found: list[dict[str, Any]] = []
    for text in (settings.target_table, settings.truth_view):
        name = QualifiedName.parse(text)
        table = inspect_table(session, name)
        if table is None:
            continue
        sql = statement("stored_vectors", table=name, final=table.final, id=normal_id("m.condition_id"))
        rows = session.rows(sql, {"ids": ids}, doing=f"reading {len(ids)} conditions of {name}")
        found += [{"table": str(name), **row} for row in rows]
    return found
