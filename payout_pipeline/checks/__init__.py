"""Asset checks, as thin layers: one step an asset, one database session a step, a status per partition.

What is checked is in ``catalogue.py``; what the numbers mean in ``payout_pipeline/verification``.
"""

# No `from __future__ import annotations` here: Dagster compares the annotation of `context` with its own classes.

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import dagster as dg

from payout_pipeline.checks.basis import BasisReader
from payout_pipeline.checks.catalogue import ASSETS, FETCHED, VIEW, CheckInfo, checks_of
from payout_pipeline.checks.records import save
from payout_pipeline.checks.results import to_result
from payout_pipeline.checks.workers import worker_states
from payout_pipeline.errors import PayoutPipelineError, WarehouseUnavailableError, head_and_repair
from payout_pipeline.faults import reported_to_dagster
from payout_pipeline.ids.chunks import Worklist, read_worklist
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import NO_ANSWER, Severity, Verdict


def build_checks(partitions: dg.StaticPartitionsDefinition, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """The checks of all assets: partitioned like the workers for the first two, unpartitioned for the view."""
    unreachable: dict[str, list[PayoutPipelineError]] = defaultdict(list)  # by run, whose steps share a process
    return [_checks_of(asset, partitions if asset != VIEW else None, settings, unreachable) for asset in ASSETS]


def check_specs(
    asset: str, partitions: dg.StaticPartitionsDefinition | None, settings: Settings
) -> list[dg.AssetCheckSpec]:
    """Dagster's specs of the checks of ``asset``.

    ERROR checks are blocking, which fails the run that made them and keeps the rest of that run from building on a defect. It
    does not gate a backfill, so the assets raise by themselves what must never pass.
    """
    with warnings.catch_warnings():
        # `partitions_def` on a check spec is in preview. Without it a check of a partitioned asset keeps the status of the
        # partition checked last and no other, so there is no way around it; requirements.lock pins the version.
        warnings.filterwarnings("ignore", message=".*partitions_def.*")
        return [
            dg.AssetCheckSpec(
                info.name,
                asset=asset,
                description=info.description,
                blocking=info.severity is Severity.ERROR,
                partitions_def=partitions,
            )
            for info in checks_of(asset, settings)
        ]


def _checks_of(
    asset: str,
    partitions: dg.StaticPartitionsDefinition | None,
    settings: Settings,
    unreachable: dict[str, list[PayoutPipelineError]],
) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"check_{asset}",
        specs=check_specs(asset, partitions, settings),
        can_subset=True,
        description=f"The checks of {asset}, in one step.",
    )
    def checks(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[dg.AssetCheckResult]:
        wanted = {key.name for key in context.selected_asset_check_keys}
        by_partition: dict[str | None, list[Verdict]] = {}
        with reported_to_dagster():
            current = pipeline.settings()
            worklist = read_worklist(current)
            bases = BasisReader(context.instance, current, worklist)
            # A run without a partition, such as one of the job `verify`, makes the checks of all workers.
            keys = [None] if partitions is None else [worker.key for worker in worklist.workers]
            for partition in [context.partition_key] if context.has_partition_key and partitions is not None else keys:
                basis = bases.of(asset, partition)
                verdicts = make_verdicts(
                    current, context.instance, worklist, asset, partition, wanted, unreachable[context.run.run_id]
                )
                save(current, asset, partition, verdicts, basis, context.run.run_id)
                by_partition[partition] = verdicts
        for verdict in map(worst, zip(*by_partition.values(), strict=True)):
            result = to_result(verdict, asset)
            said = "NOTHING TO CHECK" if verdict.nothing else "PASSED" if verdict.passed else "FAILED"
            say = context.log.info if verdict.passed or verdict.nothing else context.log.warning
            say(f"{said} {verdict.check}: {result.description}")
            yield result

    return checks


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict to show for those of several workers: the first that failed, else the first."""
    return next((v for v in verdicts if not v.passed and not v.nothing), verdicts[0])


def make_verdicts(
    settings: Settings,
    instance: dg.DagsterInstance,
    worklist: Worklist,
    asset: str,
    partition: str | None,
    wanted: set[str],
    unreachable: list[PayoutPipelineError] | None = None,
) -> list[Verdict]:
    """The verdicts of the wanted checks, in the order of the catalogue. A fault fails the check that met it, and no other.

    ``unreachable``: the fault by which ClickHouse was found to be out of reach, empty where it was not; shared by the checks
    of a run, so that only the first of them waits for the server.
    """
    from payout_pipeline.verification import (
        baseline,
        goldsky_payouts,
        resolutions_external_ingest,
        vw_resolutions_truth,
    )
    from payout_pipeline.verification.workers import all_workers_complete
    from payout_pipeline.warehouse.client import Warehouse

    unreachable = [] if unreachable is None else unreachable
    infos = [info for info in checks_of(asset, settings) if info.name in wanted]
    if asset == FETCHED and partition is not None:
        return _made(settings, infos, goldsky_payouts.checks(settings, worklist, partition), [])
    if partition is not None:
        return _made(settings, infos, resolutions_external_ingest.checks(settings, partition), unreachable)
    without_database = {
        "all_workers_complete": lambda: all_workers_complete(worker_states(instance, settings, worklist))
    }
    found = _made(settings, [info for info in infos if info.name in without_database], without_database, [])
    of_view = [info for info in infos if info.name not in without_database]
    if not of_view:
        return found
    try:
        if unreachable:
            raise unreachable[0]
        with Warehouse(settings, "checks of the truth view").session("checking the truth view") as session:
            available = vw_resolutions_truth.checks(settings, worklist, session)
            found += _made(settings, of_view, available, unreachable)
            complete = len(infos) == len(checks_of(asset, settings))
            if complete and all(v.passed or v.nothing or v.severity is Severity.WARN for v in found):
                baseline.accept(settings, baseline.measure(session, settings))
    except PayoutPipelineError as fault:  # no session at all: none of these checks could be made
        _note_unreachable(settings, fault, unreachable)
        made = {verdict.check for verdict in found}
        found += [_no_answer(info, fault) for info in of_view if info.name not in made]
    return found


def _made(
    settings: Settings,
    infos: Iterable[CheckInfo],
    available: Mapping[str, Callable[[], Verdict]],
    unreachable: list[PayoutPipelineError],
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for info in infos:
        try:
            if unreachable:
                raise unreachable[0]
            verdicts.append(available[info.name]().of(info.name, info.severity))
        except PayoutPipelineError as fault:
            _note_unreachable(settings, fault, unreachable)
            verdicts.append(_no_answer(info, fault))
    return verdicts


def _no_answer(info: CheckInfo, fault: PayoutPipelineError) -> Verdict:
    """The verdict of a check that could not be made: something that it reads is missing, broken or of another shape."""
    head, repair = head_and_repair(str(fault))
    said = head[:1].upper() + head[1:]
    return Verdict(False, said, "an answer", NO_ANSWER, repair=repair).of(info.name, info.severity)


def _note_unreachable(settings: Settings, fault: PayoutPipelineError, unreachable: list[PayoutPipelineError]) -> None:
    """Add ``fault`` to ``unreachable`` where a new connection fails too: one statement without an answer says less."""
    from payout_pipeline.warehouse.client import FIRST_CONTACT_SECONDS, Warehouse

    if unreachable or settings.embedded or not isinstance(fault, WarehouseUnavailableError):
        return
    try:
        with Warehouse(settings, "checks", FIRST_CONTACT_SECONDS).session("reaching the server"):
            return
    except WarehouseUnavailableError:
        unreachable.append(fault)
    except PayoutPipelineError:
        return
