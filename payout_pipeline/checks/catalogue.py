"""Every asset check of the success report: its name, its asset, its severity, and what it means in the user's words.

The one list from which Dagster's specs are built and against which the report looks for checks that never ran. What a
check computes is in ``verification/``, how it is run in the package itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity

FETCHED = "goldsky_payouts"
STORED = "resolutions_external_ingest"
VIEW = "vw_resolutions_truth"
ASSETS = (FETCHED, STORED, VIEW)
WORKER_JOB = "goldsky_backfill"
VIEW_JOB = "truth_view"
VERIFY_JOB = "verify"
IDS_JOB = "take_condition_ids"
REFRESH_JOB = "daily_refresh"


@dataclass(frozen=True, slots=True)
class CheckInfo:
    """One check. ``partitioned`` ones have a status per worker."""

    name: str
    asset: str
    severity: Severity
    description: str

    @property
    def partitioned(self) -> bool:
        """Whether the check is made once a worker."""
        return self.asset != VIEW


_ALL = (
    CheckInfo(
        "every_id_accounted_for",
        FETCHED,
        Severity.ERROR,
        "The ledger holds each id of the worker's chunk exactly once, with a status: resolved, unresolved, absent, "
        "invalid or failed. Nothing that was asked for is silently missing, and nothing is there that was not.",
    ),
    CheckInfo(
        "error_rate",
        FETCHED,
        Severity.ERROR,
        "Ids without a usable answer (failed: no answer within the retries; invalid: a vector that cannot be stored "
        "exactly) stay within PAYOUT_MAX_ERROR_RATE of the chunk. They are listed with their last error.",
    ),
    CheckInfo(
        "source_is_fresh",
        FETCHED,
        Severity.WARN,
        "When the worker pinned its snapshot, the subgraph's head was younger than 24 hours and the subgraph had no "
        "indexing errors. A stale source answers without a fault and simply does not know the latest resolutions.",
    ),
    CheckInfo(
        "ids_are_known",
        FETCHED,
        Severity.WARN,
        "At most 5 % of the chunk's ids are unknown to the subgraph. More look like question or token ids, or like an endpoint "
        "that is another subgraph than the ids come from.",
    ),
    CheckInfo(
        "vectors_unchanged",
        FETCHED,
        Severity.WARN,
        "No id that was resolved before has another vector now. A reorganisation or a corrected resolution moves money; the "
        "changed ones are listed, old and new.",
    ),
    CheckInfo(
        "stored_equals_fetched",
        STORED,
        Severity.ERROR,
        "ClickHouse holds exactly the resolved rows of the worker's chunk: none missing, none left over from an "
        "earlier answer, none twice, and every vector equal number by number. A truncated or edited table is found.",
    ),
    CheckInfo(
        "all_workers_complete",
        VIEW,
        Severity.ERROR,
        "Each worker has a finished ledger for today's input file and no failed check: the guide's "
        "“all 4 workers show COMPLETE”, as a table with a row a worker.",
    ),
    CheckInfo(
        "unique_conditions",
        VIEW,
        Severity.ERROR,
        "The number of distinct ids of the input stored with source goldsky-api reaches "
        "PAYOUT_MIN_UNIQUE_CONDITIONS (the guide's 120,000 of 170,448). The table has the "
        "rows and distinct conditions of every source.",
    ),
    CheckInfo(
        "payout_quality",
        VIEW,
        Severity.ERROR,
        "In every row of goldsky-api and of the view the numerators sum to the denominator. The table is the guide's "
        "distribution: rows by denominator and sum.",
    ),
    CheckInfo(
        "payout_sample",
        VIEW,
        Severity.ERROR,
        "A sample of five rows, each well-formed: an id of 64 hex digits, at least two outcomes, and a winning index "
        "that points at the largest payout (-1 where several share it).",
    ),
    CheckInfo(
        "no_null_payouts",
        VIEW,
        Severity.ERROR,
        "No resolved market is without a payout vector: neither a row of the view with an empty vector nor an id that "
        "the ledger knows as resolved and the view does not have.",
    ),
    CheckInfo(
        "one_row_per_condition",
        VIEW,
        Severity.ERROR,
        "The view has as many rows as conditions. Every row too many pays the wallets of its condition twice.",
    ),
    CheckInfo(
        "goldsky_rows_included",
        VIEW,
        Severity.ERROR,
        "Every usable row of the external table is in the view, or its condition comes from market_resolutions_final.",
    ),
    CheckInfo(
        "market_rows_included",
        VIEW,
        Severity.ERROR,
        "Every eligible row of market_resolutions_final is in the view.",
    ),
    CheckInfo(
        "view_equals_sources",
        VIEW,
        Severity.ERROR,
        "Each row of the view equals, in all six columns, the row of the source that the precedence names, and there is no "
        "other row. What the view should hold is worked out from the two tables outside of the database.",
    ),
    CheckInfo(
        "sources_agree",
        VIEW,
        Severity.WARN,
        "No condition has one payout vector in market_resolutions_final and a different one from Goldsky. The view "
        "takes the former; the conditions that differ are listed, because one of the two is wrong.",
    ),
    CheckInfo(
        "coverage_before_after",
        VIEW,
        Severity.ERROR,
        "The view covers at least as many conditions after its rebuild as before: the guide's coverage analysis.",
    ),
    CheckInfo(
        "settled_pnl",
        VIEW,
        Severity.ERROR,
        "Settled P&L, read before and after the rebuild: the number of wallets that have it does not fall, redemption "
        "values are part of it where the view has them, and no wallet is paid twice for one condition.",
    ),
)


def catalogue(settings: Settings) -> tuple[CheckInfo, ...]:
    """The checks in the order of the assets; without ``settled_pnl`` where PAYOUT_PNL_VIEW is empty."""
    return tuple(info for info in _ALL if info.name != "settled_pnl" or settings.pnl_view)


def checks_of(asset: str, settings: Settings) -> tuple[CheckInfo, ...]:
    """The checks of one asset."""
    return tuple(info for info in catalogue(settings) if info.asset == asset)
