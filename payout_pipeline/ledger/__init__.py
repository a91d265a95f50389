"""What is known of each id: one row for every id of a chunk, in Parquet, safe against a crash at any point.

    goldsky_payouts/<partition>/ledger.parquet           the finished snapshot, each id once
    goldsky_payouts/<partition>/_running/run.json        the facts of the run that is going or was interrupted
    goldsky_payouts/<partition>/_running/batch-00000.parquet
    goldsky_payouts/<partition>/_running/carried.parquet resolved rows of the former snapshot, in a refresh
    goldsky_payouts/<partition>/_changes/<id>.parquet    what the snapshot changed against the one before it
    goldsky_payouts/<partition>/_aside/…                 what was damaged or belongs to another plan

A batch is on disk before it counts. A finished run becomes the snapshot in one rename, under its run's id, so that a crash
right after it is recognised and nothing counts twice. The caller makes sure of one writer at a time (locks.py).

``rows`` says what a row is, ``info`` what a run asks, ``files`` how both are on disk; ``accounting`` and ``changes``
compare; ``ledger`` reads, ``start`` and ``running`` write; ``checkpoint`` has the guide's files, a view of it all.
"""

from payout_pipeline.goldsky.pin import Pin
from payout_pipeline.ledger.accounting import Accounting
from payout_pipeline.ledger.files import DIRECTORY, SNAPSHOT
from payout_pipeline.ledger.info import SnapshotInfo
from payout_pipeline.ledger.ledger import Ledger
from payout_pipeline.ledger.rows import ERROR_STATUSES, STATUSES, Status, ledger_schema
from payout_pipeline.ledger.running import RunningLedger
from payout_pipeline.ledger.start import start_run

__all__ = [
    "DIRECTORY",
    "ERROR_STATUSES",
    "SNAPSHOT",
    "STATUSES",
    "Accounting",
    "Ledger",
    "Pin",
    "RunningLedger",
    "SnapshotInfo",
    "Status",
    "ledger_schema",
    "start_run",
]
