"""What the report knows: the statuses of today's checks and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import TYPE_CHECKING

from payout_pipeline.checks.history import QUIET, CheckStatus, State, latest_statuses
from payout_pipeline.ids.chunks import Worklist, read_worklist
from payout_pipeline.report.causes import Cause, fault_of_run, find_causes
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import Settings
from payout_pipeline.what_changed import WhatChanged, what_changed
from payout_pipeline.words import counted

if TYPE_CHECKING:
    import dagster as dg

_STATES = tuple(State)
BEFORE_ANY_RUN = "No check has run yet for this input: payout-pipeline backfill"


@dataclass(frozen=True)
class Report:
    """The statuses in the order of the catalogue, and what they add up to."""

    made_at: datetime
    worklist: Worklist
    target_table: str
    truth_view: str
    endpoint: str
    statuses: tuple[CheckStatus, ...]
    causes: tuple[Cause, ...] = ()
    changes: WhatChanged | None = None

    @cached_property
    def counts(self) -> Counter[State]:
        """Statuses by state."""
        return Counter(status.state for status in self.statuses)

    @property
    def worst_first(self) -> list[CheckStatus]:
        """What blocks success, then warnings, then what passed; within each in the order of the catalogue."""
        return sorted(self.statuses, key=_rank)

    @property
    def exit_code(self) -> int:
        """0 where every ERROR check has a current pass; 1 otherwise. Warnings do not count."""
        return int(any(status.blocks_success for status in self.statuses))

    @property
    def nothing_ran(self) -> bool:
        """Whether there is no result of any check."""
        return set(self.counts) == {State.NEVER}

    @property
    def age(self) -> timedelta | None:
        """Of the oldest result; None where there is none."""
        times = [status.at for status in self.statuses if status.at is not None and status.verdict is not None]
        return self.made_at - min(times) if times else None

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        if self.nothing_ran:
            return BEFORE_ANY_RUN
        counts = self.counts
        parts = [f"{counts[State.PASSED]} passed"]
        if counts[State.NOTHING]:
            parts.append(f"{counts[State.NOTHING]} had nothing to check")
        warned = sum(status.state not in QUIET and not status.blocks_success for status in self.statuses)
        if warned:
            parts.append(counted(warned, "warning"))
        rest = ", ".join(parts)
        if not self.exit_code:
            return f"SUCCESS: {rest}"
        blocking = Counter(status.state for status in self.statuses if status.blocks_success)
        kinds = ", ".join(f"{blocking[state]} {state.value}" for state in _STATES if blocking[state])
        what = counted(sum(blocking.values()), "ERROR check")
        return f"NOT A SUCCESS: {what} without a current pass ({kinds}); {rest}"


def _rank(status: CheckStatus) -> tuple[int, int]:
    group = 0 if status.blocks_success else 2 if status.state in QUIET else 1
    return group, _STATES.index(status.state)


def build_report(
    settings: Settings,
    instance: dg.DagsterInstance,
    now: datetime | None = None,
    runs: Mapping[str | None, str] | None = None,
) -> Report:
    """Read the latest statuses from ``instance`` and compare them with today's input.

    ``runs``: what just ran, by partition (None: the view); a result of another run does not count for these.

    Raises InputError where the input file cannot be read: without it nothing can be said about today's input.
    """
    worklist = read_worklist(settings)
    statuses = tuple(latest_statuses(instance, settings, worklist))
    if runs is not None:
        everything = len(runs) == 1
        statuses = tuple(
            _of_run(status, runs[None if everything else status.partition])
            if everything or status.partition in runs
            else status
            for status in statuses
        )
    return Report(
        made_at=now or datetime.now(timezone.utc),
        worklist=worklist,
        target_table=settings.target_table,
        truth_view=settings.truth_view,
        endpoint=scrub(settings.goldsky_endpoint.split("?", 1)[0]),
        statuses=statuses,
        causes=tuple(find_causes(statuses, lambda run_id: fault_of_run(instance, run_id)[1])),
        changes=what_changed(settings.runtime_dir, [worker.key for worker in worklist.workers]),
    )


def _of_run(status: CheckStatus, run_id: str) -> CheckStatus:
    """The status, or that the run did not make the check."""
    if status.run_id == run_id or status.state is State.RUNNING:
        return status
    return replace(status, state=State.NOT_MADE, reason="It could not be made now.", verdict=None, run_id=run_id)


def read_report(settings: Settings) -> Report:
    """The report from the instance that the UI and the commands share; raises InputError where the input cannot be read."""
    import dagster as dg

    from payout_pipeline.dagster_home import ensure_dagster_home

    ensure_dagster_home()
    with dg.DagsterInstance.get() as instance:
        return build_report(settings, instance)
