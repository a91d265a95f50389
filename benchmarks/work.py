"""R0 without start-up: fetch, ledger, load, view and checks as plain calls in one process that has loaded everything.

``python -m benchmarks.work`` runs them on the environment of the pipeline and prints JSON: ``wall`` and ``cpu`` seconds from
the first call to the last verdict, and of each part. No Dagster, so the check that reads its instance
(``all_workers_complete``) is not among them.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable

from payout_pipeline import backfill
from payout_pipeline.checks import fetched, stored, view
from payout_pipeline.checks.catalogue import ASSETS, FETCHED, STORED, VIEW, checks_of
from payout_pipeline.chunks import read_worklist
from payout_pipeline.fetch import fetch_worker
from payout_pipeline.ingest import ingest_worker, prepare_target, remember_prepared
from payout_pipeline.settings import load_settings
from payout_pipeline.truth import rebuild_truth
from payout_pipeline.verdict import Severity, Verdict


def main() -> None:
    """Do all of it once, and print what each part took."""
    settings, log = load_settings(), logging.getLogger("benchmarks.work")
    backfill._import_once(settings)
    prepare_target(settings, log)  # opens the engine and makes the tables: start-up
    remember_prepared(settings)
    names = {asset: {check.name for check in checks_of(asset, settings)} for asset in ASSETS}
    verdicts: list[Verdict] = []
    parts: dict[str, list[float]] = {}

    def measured(part: str, call: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        before = parts.get(part, [0.0, 0.0])
        parts[part] = [before[0] + time.perf_counter() - wall, before[1] + time.process_time() - cpu]

    wall, cpu = time.perf_counter(), time.process_time()
    worklist = read_worklist(settings)
    for number, worker in enumerate(worklist.workers, 1):
        measured("fetch and ledger", lambda number=number: fetch_worker(settings, number, log=log))
        measured("checks", lambda w=worker: verdicts.extend(fetched.verdicts(settings, w, names[FETCHED])))
        measured("load and read-back", lambda number=number: ingest_worker(settings, number, log=log))
        measured("checks", lambda w=worker: verdicts.extend(stored.verdicts(settings, w, names[STORED])))
    measured("view", lambda: rebuild_truth(settings, log=log))
    of_view = names[VIEW] - {"all_workers_complete"}
    measured("checks", lambda: verdicts.extend(view.verdicts(settings, None, worklist, of_view)))  # type: ignore[arg-type]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    failed = [verdict.check for verdict in verdicts if not verdict.passed and verdict.severity is Severity.ERROR]
    json.dump({"wall": wall, "cpu": cpu, "parts": parts, "failed": failed}, sys.stdout)


if __name__ == "__main__":
    main()
