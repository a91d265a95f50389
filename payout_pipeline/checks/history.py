"""The latest status of every check, per partition, as the Dagster instance knows it.

Dagster's own headline for a partitioned asset is that of the partition checked last; here each partition keeps its
own. A status counts only if it belongs to today's input and to the latest materialization.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from payout_pipeline.checks.catalogue import FETCHED, STORED, VIEW, CheckInfo, catalogue
from payout_pipeline.checks.results import from_evaluation
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity, Verdict
from payout_pipeline.worklist import Worklist


class State(str, Enum):
    """What is known of one check."""

    FAILED = "failed"
    NOT_MADE = "not made"  # its run ended before the check could be made
    NEVER = "never ran"
    OUTDATED = "outdated"  # ran, but for another input, another target or an earlier materialization
    RUNNING = "running"
    PASSED = "passed"
    NOTHING = "nothing to check"


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
        """That of the result, where there is one: a check may judge a mild case as a warning."""
        return self.verdict.severity if self.verdict is not None else self.info.severity

    @property
    def blocks_success(self) -> bool:
        """Whether the backfill must not be called a success because of it."""
        return self.state is not State.PASSED and self.info.severity is Severity.ERROR

    @property
    def sentence(self) -> str:
        """What the check said, behind the reason why that does not count, where it does not."""
        said = self.verdict.description if self.verdict is not None else ""
        if said and self.state is State.OUTDATED:
            said = f"At that time: {said}"
        return " ".join(part for part in (self.reason, said) if part)


def scope_of(asset: str, settings: Settings) -> str:
    """Where the checks of ``asset`` look, without secrets: the endpoint, or the table or view and its server."""
    where = (settings.clickhouse_host or "embedded").rsplit("@", 1)[-1]
    if asset == FETCHED:
        return settings.goldsky_endpoint.split("?", 1)[0]
    return f"{settings.target_table if asset == STORED else settings.truth_view} ({where})"


def latest_statuses(
    instance: dg.DagsterInstance,
    settings: Settings,
    worklist: Worklist,
    assets: Iterable[str] = (FETCHED, STORED, VIEW),
) -> list[CheckStatus]:
    """The status of each check of ``assets``, in the order of the catalogue, per partition of today's workers."""
    infos = [info for info in catalogue(settings) if info.asset in set(assets)]
    per_worker = [info for info in infos if info.partitioned]
    reader = _Reader(instance, settings)
    found: dict[tuple[str, str, str | None], CheckStatus] = {}
    for worker in worklist.workers if per_worker else ():
        for status in reader.read(per_worker, worker.key, worker.fingerprint):
            found[status.info.asset, status.info.name, worker.key] = status
    for status in reader.read([info for info in infos if not info.partitioned], None, worklist.fingerprint):
        found[status.info.asset, status.info.name, None] = status
    keys: list[str | None] = [worker.key for worker in worklist.workers]
    return [found[info.asset, info.name, key] for info in infos for key in (keys if info.partitioned else [None])]


class _Reader:
    """One look at an instance; remembers runs and materializations that several checks share."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings) -> None:
        self._instance = instance
        self._settings = settings
        self._materialized: dict[str, dict[str | None, int]] = {}
        self._runs: dict[str, dg.DagsterRun | None] = {}

    def read(self, infos: list[CheckInfo], partition: str | None, fingerprint: str) -> list[CheckStatus]:
        if not infos:
            return []
        keys = {dg.AssetCheckKey(dg.AssetKey(info.asset), info.name): info for info in infos}
        records = self._instance.event_log_storage.get_latest_asset_check_execution_by_key(
            list(keys), PartitionKeyFilter(key=partition)
        )
        return [self._status(info, partition, fingerprint, records.get(key)) for key, info in keys.items()]

    def _status(
        self, info: CheckInfo, partition: str | None, fingerprint: str, record: AssetCheckExecutionRecord | None
    ) -> CheckStatus:
        if record is None:
            return CheckStatus(info, partition, State.NEVER, "Never ran for today's input.")
        at = datetime.fromtimestamp(record.create_timestamp, timezone.utc)
        evaluation = record.evaluation
        if record.status is AssetCheckExecutionRecordStatus.PLANNED or evaluation is None:
            state, reason = self._planned(record.run_id)
            return CheckStatus(info, partition, state, reason, None, record.run_id, at)
        verdict, judged, scope = from_evaluation(evaluation)
        event = record.event
        if event is not None:
            at = datetime.fromtimestamp(event.timestamp, timezone.utc)
        reason = self._outdated(info, partition, record, judged == fingerprint, scope)
        if reason:
            return CheckStatus(info, partition, State.OUTDATED, reason, verdict, record.run_id, at)
        state = State.PASSED if verdict.passed else State.FAILED
        return CheckStatus(info, partition, state, "", verdict, record.run_id, at)

    def _run(self, run_id: str) -> dg.DagsterRun | None:
        if run_id not in self._runs:
            self._runs[run_id] = self._instance.get_run_by_id(run_id)
        return self._runs[run_id]

    def _planned(self, run_id: str) -> tuple[State, str]:
        run = self._run(run_id)
        if run is not None and not run.is_finished:
            return State.RUNNING, f"Its run {run_id[:8]} is still going."
        ended = "was deleted" if run is None else f"ended as {run.status.value}"
        return State.NOT_MADE, f"Its run {run_id[:8]} {ended} before the check could be made."

    def _latest_materialization(self, asset: str, partition: str | None) -> int | None:
        """The storage id of the latest materialization, None where there is none."""
        known = self._materialized.setdefault(asset, {})
        if partition is None and None not in known:
            latest = self._instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
            if latest:
                known[None] = latest[0].storage_id
        elif partition is not None and not known:
            known.update(
                self._instance.event_log_storage.get_latest_storage_id_by_partition(
                    dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION
                )
            )
        return known.get(partition)

    def _outdated(
        self, info: CheckInfo, partition: str | None, record: AssetCheckExecutionRecord, same_input: bool, scope: str
    ) -> str:
        if not same_input:
            return "Never ran for today's input: the ids or PAYOUT_WORKERS have changed since."
        today = scope_of(info.asset, self._settings)
        # An endpoint may move while its answers stay what they are; a result for another table says nothing of this one.
        if info.asset != FETCHED and scope != today:
            return f"Never ran for {today}: it looked at {scope or 'another place'}."
        latest = self._latest_materialization(info.asset, partition)
        evaluation: Any = record.evaluation
        target = evaluation.target_materialization_data
        # Without a target the check ran in the same run as the asset (an unpartitioned asset in a partition's run).
        if latest is not None and target is not None and target.storage_id < latest:
            return f"{info.asset} was materialized again since, and this check was not made after it."
        return ""
