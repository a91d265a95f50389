"""The last step: the view that P&L reads, rebuilt once every worker is in, measured before and after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import IncompleteError
from payout_pipeline.ids.chunks import read_worklist
from payout_pipeline.ingest import why_not_todays
from payout_pipeline.ledger import Ledger
from payout_pipeline.logs import forwarded_to
from payout_pipeline.settings import Settings
from payout_pipeline.storage import BACKFILL_RECORD, open_store
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.statements import statement
from payout_pipeline.what_changed import WhatChanged, what_changed

if TYPE_CHECKING:
    from logging import Logger


@dataclass(frozen=True)
class TruthSummary:
    """What a rebuild did; rows are those of the view."""

    view: str
    rows_after: int
    workers: list[dict[str, Any]]
    changes: WhatChanged | None
    seconds: float
    sql: str


def rebuild_truth(settings: Settings, *, log: Logger, run_id: str = "") -> TruthSummary:
    """Rebuild the truth view, or refuse while a worker is missing, naming all of them.

    Neither the old view nor the P&L view need be readable: what could not be measured before is said by its check. Raises
    IncompleteError, WarehousePermanentError where the user may not create views, and what a session raises.
    """
    from payout_pipeline.verification.baseline import remember_before
    from payout_pipeline.warehouse.view import rebuild_view

    started = time.monotonic()
    workers = require_all_workers(settings)
    comment = f"payout-pipeline: vw_resolutions_truth run {run_id}"
    with (
        forwarded_to(log, debug=settings.debug),
        Warehouse(settings, comment=comment).session("rebuild the truth view") as session,
    ):
        remember_before(session, settings)
        sql = rebuild_view(session, settings)
        open_store(settings.runtime_dir).delete(BACKFILL_RECORD)  # the backfill is over, whatever the checks say
        view = QualifiedName.parse(settings.truth_view)
        rows_after = int(session.scalar(statement("view_rows", view=view), doing=f"counting the rows of {view}"))
    log.info(f"{settings.truth_view} rebuilt: {rows_after:,} rows")
    changes = what_changed(settings.runtime_dir, [row["worker"] for row in workers])
    if changes is not None:
        log.info(f"since the ledgers before: {changes.sentence}")
    return TruthSummary(settings.truth_view, rows_after, workers, changes, time.monotonic() - started, sql)


def require_all_workers(settings: Settings) -> list[dict[str, Any]]:
    """A row for each worker's finished ledger; IncompleteError names every worker that has none of today's input."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    store = open_store(settings.runtime_dir)
    for worker in read_worklist(settings).workers:
        info = Ledger(store, worker.key).finished()
        reason = why_not_todays(settings, info, worker)
        if info is None or reason:
            missing.append(f"{worker.key} {reason}")
        else:
            rows.append({"worker": worker.key, "ids": info.ids, **info.counts, "block": info.pin.block_number})
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {settings.workers} workers are missing, so {settings.truth_view} was not rebuilt: "
            f"{'; '.join(missing)}.\nTo repair it: materialize goldsky_payouts and resolutions_external_ingest for them, "
            "or run `payout-pipeline backfill`."
        )
    return rows
