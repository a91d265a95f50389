"""The last step: the view that P&L reads, rebuilt once every worker is in, measured before and after."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import IncompleteError
from payout_pipeline.ledger import Ledger
from payout_pipeline.logs import forwarded_to
from payout_pipeline.settings import Settings
from payout_pipeline.storage import open_store
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.worklist import read_worklist

if TYPE_CHECKING:
    from logging import Logger

    from payout_pipeline.warehouse.client import Session

MEASUREMENTS_FILE = "vw_resolutions_truth/measurements.json"


@dataclass(frozen=True)
class TruthSummary:
    """What a rebuild did; rows are those of the view."""

    view: str
    rows_before: int
    rows_after: int
    workers: list[dict[str, Any]]
    seconds: float
    sql: str


def rebuild_truth(settings: Settings, *, log: Logger, run_id: str = "") -> TruthSummary:
    """Rebuild the truth view, or refuse while a worker is missing, naming all of them.

    Coverage and settled P&L are measured before it and kept for the checks, which measure them again afterwards. Raises
    IncompleteError, WarehousePermanentError where the user may not create views, and what a session raises.
    """
    from payout_pipeline.warehouse.queries import view_rows
    from payout_pipeline.warehouse.view import rebuild_view

    started = time.monotonic()
    workers = require_all_workers(settings)
    comment = f"payout-pipeline: vw_resolutions_truth run {run_id}"
    with (
        forwarded_to(log, debug=settings.debug),
        Warehouse.from_settings(settings, comment=comment).session("rebuild the truth view") as session,
    ):
        before = _measure(session, settings)
        sql = rebuild_view(session, settings)
        rows_after = view_rows(session, QualifiedName.parse(settings.truth_view))
    document = {
        "run_id": run_id,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "before": before["coverage"],
        "pnl_before": before["pnl"],
        "rows_after": rows_after,
    }
    open_store(settings.runtime_dir).write(MEASUREMENTS_FILE, json.dumps(document, indent=2).encode())
    rows_before = before["coverage"]["view_rows"]
    log.info(f"{settings.truth_view} rebuilt: {rows_before:,} rows before, {rows_after:,} after")
    return TruthSummary(settings.truth_view, rows_before, rows_after, workers, time.monotonic() - started, sql)


def require_all_workers(settings: Settings) -> list[dict[str, Any]]:
    """A row for each worker's finished ledger; IncompleteError names every worker that has none of today's input."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    store = open_store(settings.runtime_dir)
    for worker in read_worklist(settings).workers:
        info = Ledger(store, worker.key).finished()
        if info is None:
            missing.append(f"{worker.key} has no finished ledger")
        elif info.mode != settings.goldsky_mode or info.ids_sha256 != worker.fingerprint:
            missing.append(f"{worker.key} was made for other ids")
        else:
            rows.append({"worker": worker.key, "ids": info.ids, **info.counts, "block": info.pin.block_number})
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {settings.workers} workers are missing, so {settings.truth_view} was not rebuilt: "
            f"{'; '.join(missing)}.\nTo repair it: materialize goldsky_payouts and resolutions_external_ingest for them, "
            "or run `payout-pipeline backfill`."
        )
    return rows


def _measure(session: Session, settings: Settings) -> dict[str, Any]:
    from payout_pipeline.warehouse.queries import coverage, settled_pnl, survey
    from payout_pipeline.warehouse.target import ensure_sources

    ensure_sources(session, settings)
    place = survey(session, settings)
    pnl = settled_pnl(session, place) if settings.pnl_view else None
    return {"coverage": asdict(coverage(session, place)), "pnl": None if pnl is None else asdict(pnl)}
