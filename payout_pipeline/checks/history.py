"""The latest status of every check, per partition: its result, if that still counts, or why there is none.

Dagster's own headline for a partitioned asset is that of the partition checked last; here each partition keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

import dagster as dg

from payout_pipeline.checks.basis import BasisReader, why_outdated
from payout_pipeline.checks.catalogue import FETCHED, IDS_JOB, STORED, VIEW, VIEW_JOB, WORKER_JOB, CheckInfo, catalogue
from payout_pipeline.checks.records import CheckRecord, load
from payout_pipeline.ids.chunks import Worklist
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity, Verdict

PARTITION_TAG = "dagster/partition"
_RUNS_LOOKED_AT = 500


class State(str, Enum):
    """What is known of one check."""

    FAILED = "failed"
    NOT_MADE = "not made"  # the latest run of its asset ended before the check could be made
    NEVER = "never ran"
    OUTDATED = "outdated"  # something beneath the result has changed since
    RUNNING = "running"
    PASSED = "passed"
    NOTHING = "nothing to check"


#: States that need no action.
QUIET = (State.PASSED, State.NOTHING)


@dataclass(frozen=True, slots=True)
class CheckStatus:
    """The latest status of one check of one partition (None for the view's checks)."""

    info: CheckInfo
    partition: str | None
    state: State
    reason: str
    verdict: Verdict | None = None
    run_id: str = ""
    at: datetime | None = None

    @property
    def severity(self) -> Severity:
        """That of the result, where there is one."""
        return self.verdict.severity if self.verdict is not None else self.info.severity

    @property
    def blocks_success(self) -> bool:
        """Whether the backfill must not be called a success because of it."""
        return self.state not in (State.PASSED, State.NOTHING) and self.info.severity is Severity.ERROR

    @property
    def sentence(self) -> str:
        """What the check said, behind the reason why that does not count, where it does not."""
        said = self.verdict.description if self.verdict is not None else ""
        if said and self.state is State.OUTDATED:
            said = f"At that time: {said}"
        return " ".join(part for part in (self.reason, said) if part)


def latest_statuses(
    instance: dg.DagsterInstance,
    settings: Settings,
    worklist: Worklist,
    assets: Iterable[str] = (FETCHED, STORED, VIEW),
) -> list[CheckStatus]:
    """The status of each check of ``assets``, in the order of the catalogue, per partition of today's workers."""
    reader = _Reader(instance, settings, worklist)
    keys: list[str | None] = [worker.key for worker in worklist.workers]
    infos = [info for info in catalogue(settings) if info.asset in set(assets)]
    return [reader.status(info, key) for info in infos for key in (keys if info.partitioned else [None])]


class _Reader:
    """Reads results and runs; what several checks share is read once."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings, worklist: Worklist) -> None:
        self._settings = settings
        self._bases = BasisReader(instance, settings, worklist)
        self._runs = instance.get_run_records(limit=_RUNS_LOOKED_AT)  # the latest first
        self._known: dict[tuple[str, str | None], tuple[dict[str, CheckRecord], dict[str, str]]] = {}

    def status(self, info: CheckInfo, partition: str | None) -> CheckStatus:
        key = (info.asset, partition)
        if key not in self._known:
            self._known[key] = (load(self._settings, *key), self._bases.of(*key))
        records, basis = self._known[key]
        record = records.get(info.name)
        run = self._run_without_result(info.asset, partition, record)
        if run is not None and not run.dagster_run.is_finished:
            reason = f"Its run {run.dagster_run.run_id[:8]} is still going."
            return CheckStatus(info, partition, State.RUNNING, reason, None, run.dagster_run.run_id)
        if run is not None and not run.dagster_run.is_success:
            ended = run.dagster_run.status.value
            reason = f"Its run {run.dagster_run.run_id[:8]} ended as {ended} before the check could be made."
            at = run.create_timestamp.astimezone(timezone.utc)
            return CheckStatus(info, partition, State.NOT_MADE, reason, None, run.dagster_run.run_id, at)
        if record is None:
            return CheckStatus(info, partition, State.NEVER, "Never ran for today's input.")
        verdict = record.verdict
        reason = why_outdated(record.basis, basis)
        state = State.NOTHING if verdict.nothing else State.PASSED if verdict.passed else State.FAILED
        return CheckStatus(
            info, partition, State.OUTDATED if reason else state, reason, verdict, record.run_id, record.at
        )

    def _run_without_result(self, asset: str, partition: str | None, record: CheckRecord | None) -> dg.RunRecord | None:
        """The latest run that was to make the asset (of the partition), where it is newer than the result."""
        for run in self._runs:
            if not _is_of(run.dagster_run, asset, partition):
                continue
            newer = record is None or (
                run.dagster_run.run_id != record.run_id and run.create_timestamp.timestamp() > record.at.timestamp()
            )
            return run if newer else None
        return None


def _is_of(run: dg.DagsterRun, asset: str, partition: str | None) -> bool:
    """Whether the run makes ``asset`` (of the partition)."""
    return run.tags.get(PARTITION_TAG) == partition and asset in made_by(run)


def made_by(run: dg.DagsterRun) -> tuple[str, ...]:
    """The assets that the run makes: those of its selection, or what its job always makes. None where it only makes checks."""
    if run.asset_selection:
        return tuple(sorted(key.to_user_string() for key in run.asset_selection))
    if run.asset_check_selection:
        return ()
    return {WORKER_JOB: (FETCHED, STORED), VIEW_JOB: (VIEW,), IDS_JOB: ("condition_ids",)}.get(run.job_name, ())
