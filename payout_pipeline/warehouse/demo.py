"""Tables as the user has them, with made-up contents, so that the demo shows settled P&L move.

Used by the demo and by tests only, on the embedded engine: a quarter as many known resolutions as there are ids to
fetch (a part of them the same conditions, as in the real overlap), trades on some of each, and a P&L view with the
real column names that joins the truth view on the lower-case id without 0x.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.schema import ensure_database
from payout_pipeline.warehouse.statements import statement
from payout_pipeline.warehouse.target import ensure_sources

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings

logger = logging.getLogger(__name__)

TRADES = QualifiedName("default", "demo_trades")
_TRADED_CONDITIONS = 2_000


def create_demo_pnl(session: Session, settings: Settings, conditions: Path) -> None:
    """Make the user's tables and views with demo contents, once; what exists already is left as it is.

    ``conditions``: a CSV of ``condition_id,payouts,resolved_at`` as the local subgraph serves it. Raises
    ConfigurationError on a server: made-up trades have no place in a real warehouse.
    """
    if not session.embedded:
        raise ConfigurationError("demo data is made in the embedded database only; unset CLICKHOUSE_HOST")
    market = QualifiedName.parse(settings.market_resolutions_table)
    truth = QualifiedName.parse(settings.truth_view)
    ensure_sources(session, settings)
    ensure_database(session, truth.database)
    # Without Goldsky's vectors, as the user has it before the first backfill; the backfill replaces it.
    before = statement("demo/truth_before", view=truth, market=market)
    session.command(before, doing=f"creating the view {truth} as it is before the backfill")
    ids, binary = _sample(conditions)
    if not session.scalar(f"SELECT count() FROM {market.sql}", doing=f"counting {market}"):  # noqa: S608
        session.command(
            statement("demo/market_resolutions", table=market),
            {"ids": binary, "known": 20_000},
            doing=f"filling {market} with demo resolutions",
        )
    session.command(statement("demo/trades", table=TRADES), doing=f"creating {TRADES}")
    if not session.scalar(f"SELECT count() FROM {TRADES.sql}", doing=f"counting {TRADES}"):  # noqa: S608
        session.command(
            statement("demo/trades_rows", table=TRADES, market=market), {"ids": ids}, doing="making demo trades"
        )
    if settings.pnl_view:
        pnl = QualifiedName.parse(settings.pnl_view)
        ensure_database(session, pnl.database)
        sql = statement("demo/vw_wallet_pnl_settled", view=pnl, trades=TRADES, truth=truth)
        session.command(sql, doing=f"creating the view {pnl}")


def _sample(conditions: Path) -> tuple[list[str], list[str]]:
    """Ids spread over the file to trade on, and those among them that outcome 1 of two has won."""
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(
        conditions,
        convert_options=csv.ConvertOptions(column_types={"condition_id": pa.string(), "payouts": pa.string()}),
    )
    step = max(1, table.num_rows // _TRADED_CONDITIONS)
    ids: list[str] = []
    won: list[str] = []
    for at in range(0, table.num_rows, step):
        condition_id = table.column("condition_id")[at].as_py().lower().removeprefix("0x")
        ids.append(condition_id)
        if json.loads(table.column("payouts")[at].as_py() or "[]") == ["0", "1"]:
            won.append(condition_id)
    return ids, won[: len(won) // 4]
