"""What is known of each id: one row for every id of a chunk, in Parquet, safe against a crash at any point.

    goldsky_payouts/<partition>/ledger.parquet           the finished snapshot, each id once
    goldsky_payouts/<partition>/_running/run.json        the run that is going (or has died): plan, pin, totals
    goldsky_payouts/<partition>/_running/batch-00000.parquet
    goldsky_payouts/<partition>/_aside/…                 what was damaged or belongs to another plan

Parquet readers skip names that begin with an underscore, so reading the partition's directory gives the snapshot.
A batch is on disk before it counts. A finished run becomes the snapshot in one rename, under its run's id, so that a
death right after it is recognised and nothing counts twice. One writer at a time is the caller's business (locks.py).

``rows`` says what a row is, ``plans`` what a run asks, ``files`` what is on disk; ``running`` writes, ``accounting``
compares, and ``ledger`` puts them together. Each uses those named before it only.
"""

from payout_pipeline.ledger.accounting import Accounting
from payout_pipeline.ledger.files import DIRECTORY, SNAPSHOT
from payout_pipeline.ledger.ledger import Ledger
from payout_pipeline.ledger.plans import Pin, RunningInfo, RunPlan, SnapshotInfo
from payout_pipeline.ledger.rows import ERROR_STATUSES, STATUSES, Status, ledger_schema, rows_from_answer
from payout_pipeline.ledger.running import RunningLedger

__all__ = [
    "DIRECTORY",
    "ERROR_STATUSES",
    "SNAPSHOT",
    "STATUSES",
    "Accounting",
    "Ledger",
    "Pin",
    "RunPlan",
    "RunningInfo",
    "RunningLedger",
    "SnapshotInfo",
    "Status",
    "ledger_schema",
    "rows_from_answer",
]
