"""The sensor ``alerts``: what is in trouble now, from Dagster's runs and the latest status of each check.

One sensor that looks at the state, and not Dagster's run-failure sensor: that one sees a run once, so what fails while it is
stopped or while the webhook is down is lost to it, it has no part for "well again", and it knows neither the checks of each
partition nor which failures have one cause. Trouble that ended between two ticks is not reported.
"""

# Dagster reads the annotations at run time, so they are not postponed here.

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

import dagster as dg

from payout_pipeline.alerts import TIMEOUT_SECONDS, Delivery, Sign, Trouble, settle
from payout_pipeline.checks.catalogue import ASSETS, REFRESH_JOB, VERIFY_JOB, VIEW
from payout_pipeline.checks.history import PARTITION_TAG, QUIET, CheckStatus, State, latest_statuses, made_by
from payout_pipeline.errors import PayoutPipelineError, head_and_repair
from payout_pipeline.faults import reported_to_dagster
from payout_pipeline.ids.chunks import PARTITION_KEY, partition_keys, read_worklist
from payout_pipeline.logs import forwarded_to
from payout_pipeline.refresh import FAILED_BELOW
from payout_pipeline.report.causes import (
    Cause,
    cause_key,
    distinct,
    fault_of_run,
    find_causes,
    for_all,
    general,
    split_repair,
    workers_option,
)
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import NO_ANSWER
from payout_pipeline.words import counted, duration

logger = logging.getLogger(__name__)

REFRESH_WITHIN = timedelta(hours=36)
_REFRESH, _NO_REFRESH = "the refresh", "no refresh"
_CHECKS = "the checks"  # what a run makes that makes no asset
_OURS = {"condition_ids", *ASSETS, _CHECKS, REFRESH_JOB}
_CANCELLED = (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.CANCELING)
_RUNS_LOOKED_AT = 500
_NAMED = 16
_SENTENCES = 5
#: An endpoint that goes away during a run is another fault than one that was away before; for the reader it is one.
_ONE_CAUSE = {"ErrorRateError": "GoldskyUnavailableError"}


def alerts_sensor() -> dg.SensorDefinition:
    """Looks every minute; off until it is switched on."""

    @dg.sensor(
        name="alerts",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            "Tells PAYOUT_ALERT_WEBHOOK of failed runs, failed ERROR checks and a view that was not rebuilt for 36 hours, and "
            "when that is over."
        ),
    )
    def alerts(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SkipReason:
        with reported_to_dagster():
            settings = pipeline.settings()
            if settings.alert_webhook is None:
                return dg.SkipReason("PAYOUT_ALERT_WEBHOOK is not set.")
            with forwarded_to(context.log, debug=settings.debug):
                told = alerts_now(settings, context.instance)
            waiting = f", {told.waiting} waiting: {told.problem}" if told.waiting else ""
            return dg.SkipReason(f"{counted(len(told.sent), 'message')} sent{waiting}")

    return alerts


def alerts_now(
    settings: Settings,
    instance: dg.DagsterInstance,
    now: datetime | None = None,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Delivery:
    """Tell the webhook what is new: what has failed, and what is well again.

    Raises StorageError where the runtime directory cannot be written; a webhook that is down is a warning.
    """
    now = now or datetime.now(timezone.utc)
    keys = set(partition_keys(settings.workers))
    failed, well = _runs(instance, keys)
    statuses: list[CheckStatus] | None = None
    try:
        statuses = latest_statuses(instance, settings, read_worklist(settings))
    except PayoutPipelineError as fault:  # such as an input that cannot be read, by which the runs fail as well
        logger.warning("The checks cannot be looked at: %s", head_and_repair(str(fault))[0])
    checks = {_item(status): status for status in statuses or ()}
    well |= {item for item, status in checks.items() if status.state in QUIET}

    def is_over(item: str) -> bool:
        worker = PARTITION_KEY.search(item)
        gone = statuses is not None and item.startswith("check ") and item not in checks
        return item in well or gone or (worker is not None and worker[0] not in keys)

    late, in_time = _refresh(settings, instance, now)
    if in_time:
        well.add(_REFRESH)
    troubles = _explained([*_of_runs(failed), *_of_checks(list(checks.values())), *late])
    return settle(settings, troubles, is_over, now, timeout_seconds=timeout_seconds)


# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class _FailedRun:
    """The latest run of ``items`` has failed by ``text``, a fault of the class ``kind``."""

    run_id: str
    made: tuple[str, ...]
    partition: str | None
    kind: str
    text: str
    at: datetime

    @property
    def items(self) -> list[str]:
        return [f"run {name} {self.partition or ''}".strip() for name in self.made]


def _runs(instance: dg.DagsterInstance, keys: set[str]) -> tuple[list[_FailedRun], set[str]]:
    """The failed runs that are the latest of what they make, and the items whose latest run did not fail.

    A cancelled run says nothing. One in which only a check failed, or a run of its own, is the trouble of that.
    """
    latest: dict[tuple[str, str | None], dg.RunRecord] = {}
    for record in instance.get_run_records(limit=_RUNS_LOOKED_AT):  # the latest first
        run = record.dagster_run
        partition = run.tags.get(PARTITION_TAG)
        if run.status in _CANCELLED or (partition is not None and partition not in keys):
            continue
        other = _CHECKS if run.asset_check_selection or run.job_name == VERIFY_JOB else run.job_name
        for name in made_by(run) or (other,):
            if name in _OURS:
                latest.setdefault((name, partition), record)
    by_run: dict[str, _FailedRun] = {}
    well: set[str] = set()
    for (name, partition), record in latest.items():
        run_id = record.dagster_run.run_id
        if run_id in by_run:
            by_run[run_id] = replace(by_run[run_id], made=(*by_run[run_id].made, name))
            continue
        kind, text = fault_of_run(instance, run_id) if record.dagster_run.is_failure else ("", "")
        one = _FailedRun(run_id, (name,), partition, _ONE_CAUSE.get(kind, kind), text, _ended(record))
        if text and kind != FAILED_BELOW:
            by_run[run_id] = one
        elif record.dagster_run.is_finished:
            well |= set(one.items)
    return sorted(by_run.values(), key=lambda one: (one.partition is None, one.partition or "")), well


def _ended(record: dg.RunRecord) -> datetime:
    if record.end_time is None:
        return record.create_timestamp.astimezone(timezone.utc)
    return datetime.fromtimestamp(record.end_time, timezone.utc)


def _of_runs(failed: Sequence[_FailedRun]) -> Iterator[Trouble]:
    """A trouble for each class of faults; without one, for each text."""
    groups: dict[str, list[_FailedRun]] = {}
    for one in failed:
        groups.setdefault(one.kind or general(head_and_repair(one.text)[0]), []).append(one)
    for cause, group in groups.items():
        said = [split_repair(one.text) for one in group]
        workers = [one.partition for one in group if one.partition is not None]
        repair = for_all(next((repair for _, repair in said if repair), ""), workers)
        otherwise = f"payout-pipeline backfill{workers_option(workers)}"
        key = f"run {cause}"
        yield Trouble(
            key,
            _runs_title(group, workers),
            min(one.at for one in group),
            distinct([head for head, _ in said])[:_SENTENCES],
            repair or ("payout-pipeline verify" if all(one.made == (_CHECKS,) for one in group) else otherwise),
            {item: Sign(topic=key, event=one.run_id) for one in group for item in one.items},
        )


def _runs_title(group: Sequence[_FailedRun], workers: Sequence[str]) -> str:
    made = ", ".join(dict.fromkeys(name for one in group for name in one.made))
    if not workers:
        return f"run of {made}"
    named = ", ".join(workers) if len(workers) <= _NAMED else f"{len(workers)} workers"
    return f"{'run' if len(group) == 1 else f'{len(group)} runs'} of {named} ({made})"


# -------------------------------------------------------------------------------------------------------------- checks


def _item(status: CheckStatus) -> str:
    return f"check {status.info.name} {status.partition or ''}".strip()


def _sign(status: CheckStatus) -> Sign:
    """Checks without an answer share the fault that kept them from it; else each check is a topic of its own."""
    unanswered = status.verdict is not None and status.verdict.actual == NO_ANSWER
    topic = cause_key(status) if unanswered else status.info.name
    return Sign(topic=f"check {topic}", event=status.run_id)


def _of_checks(statuses: Sequence[CheckStatus]) -> Iterator[Trouble]:
    """A trouble for each cause of failed ERROR checks, as the report has them; those of the view, made by one run, are one."""
    failed = [status for status in statuses if status.state is State.FAILED and status.blocks_success]
    groups: dict[str, list[Cause]] = {}
    for cause in find_causes(failed, lambda _run_id: ""):
        of_view = all(status.info.asset == VIEW for status in cause.statuses)
        groups.setdefault(VIEW if of_view else cause_key(cause.statuses[0]), []).append(cause)
    for key, causes in groups.items():
        own = [status for cause in causes for status in cause.statuses]
        names = ", ".join(dict.fromkeys(status.info.name for status in own))
        where = [*dict.fromkeys(status.info.asset for status in own), *causes[0].partitions[:_NAMED]]
        one = len(causes) == 1
        yield Trouble(
            f"check {key}",
            f"{'checks' if ',' in names else 'check'} {names} ({', '.join(where)})",
            min(status.at for status in own if status.at is not None),
            distinct(causes[0].sentences if one else [f"{s.info.name}: {s.sentence}" for s in own])[:_SENTENCES],
            causes[0].repair if one else "payout-pipeline report (which says what to do about each)",
            {_item(status): _sign(status) for status in own},
            {_item(status): _sign(status) for cause in causes for status in cause.consequences},
        )


def _explained(troubles: Sequence[Trouble]) -> list[Trouble]:
    """The troubles, without those that another one explains: they are its consequences.

    A worker's trouble keeps the view from being complete, and a failed run keeps it from being rebuilt in time.
    """
    workers = [trouble for trouble in troubles if any(map(PARTITION_KEY.search, trouble.items))]
    left: list[Trouble] = []
    for trouble in troubles:
        of_view = trouble.key == "run IncompleteError" and set(trouble.items) == {f"run {VIEW}"}
        roots: list[Trouble] = []
        if of_view or set(trouble.items) == {"check all_workers_complete"}:
            roots = workers
        elif trouble.key == _NO_REFRESH:
            roots = [other for other in left if other.key.startswith("run ") and f"run {_CHECKS}" not in other.items]
        if roots:
            roots[0].consequences.update(trouble.items)
        else:
            left.append(trouble)
    return left


# ------------------------------------------------------------------------------------------------------------- refresh


def _refresh(settings: Settings, instance: dg.DagsterInstance, now: datetime) -> tuple[list[Trouble], bool]:
    """The trouble of a view that was not rebuilt for too long, and whether it was in time. Neither where it was never built."""
    records = instance.fetch_materializations(dg.AssetKey(VIEW), limit=1).records
    if not records:
        return [], False
    last = datetime.fromtimestamp(records[0].timestamp, timezone.utc)
    if now - last <= REFRESH_WITHIN:
        return [], True
    late = Trouble(
        _NO_REFRESH,
        f"the refresh of {settings.truth_view}",
        last,
        [f"The view was last rebuilt {duration(now - last)} ago; the limit is {duration(REFRESH_WITHIN)}."],
        "see whether Dagster's daemon runs and the schedule daily_refresh is on, or: "
        "payout-pipeline backfill --refetch unresolved",
        {_REFRESH: Sign(topic=_NO_REFRESH, event=str(records[0].storage_id))},
    )
    return [late], False
