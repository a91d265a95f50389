"""Asset checks, as thin layers: one step an asset, one database session a step, a status per partition.

What is checked is in ``catalogue.py``; what the numbers mean in ``payout_pipeline/verification``.
"""

# No `from __future__ import annotations` here: Dagster compares the annotation of `context` with its own classes.

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import dagster as dg

from payout_pipeline.checks.basis import BasisReader
from payout_pipeline.checks.catalogue import ASSETS, FETCHED, VIEW, checks_of
from payout_pipeline.checks.records import save
from payout_pipeline.checks.results import to_result
from payout_pipeline.checks.workers import worker_states
from payout_pipeline.chunks import Worklist, read_worklist
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.faults import reported_to_dagster
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity, Verdict


def build_checks(partitions: dg.StaticPartitionsDefinition, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """The checks of all assets: partitioned like the workers for the first two, unpartitioned for the view."""
    return [_checks_of(asset, partitions if asset != VIEW else None, settings) for asset in ASSETS]


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
    asset: str, partitions: dg.StaticPartitionsDefinition | None, settings: Settings
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
                verdicts = make_verdicts(current, context.instance, worklist, asset, partition, wanted)
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
    """The verdict that stands for those of several workers: the first that failed, else the first."""
    return next((v for v in verdicts if not v.passed and not v.nothing), verdicts[0])


def make_verdicts(
    settings: Settings,
    instance: dg.DagsterInstance,
    worklist: Worklist,
    asset: str,
    partition: str | None,
    wanted: set[str],
) -> list[Verdict]:
    """The verdicts of the wanted checks, in the order of the catalogue. A fault that one meets fails that one only; a
    database that does not answer fails all that need it.
    """
    from payout_pipeline.verification import (
        baseline,
        goldsky_payouts,
        resolutions_external_ingest,
        vw_resolutions_truth,
    )
    from payout_pipeline.verification.workers import all_workers_complete
    from payout_pipeline.warehouse.client import Warehouse

    if partition is not None:
        module = goldsky_payouts if asset == FETCHED else resolutions_external_ingest
        return _made(settings, asset, wanted, module.checks(settings, worklist, partition))
    workers = {"all_workers_complete": lambda: all_workers_complete(worker_states(instance, settings, worklist))}
    found = _made(settings, asset, wanted, workers)
    of_view = wanted - set(workers)
    if not of_view:
        return found
    try:
        with Warehouse(settings, "checks of the truth view").session("checking the truth view") as session:
            found += _made(settings, asset, of_view, vw_resolutions_truth.checks(settings, worklist, session))
            names = {info.name for info in checks_of(asset, settings)}
            if wanted >= names and all(v.passed or v.nothing or v.severity is Severity.WARN for v in found):
                baseline.accept(settings, baseline.measure(session, settings))
    except PayoutPipelineError as fault:  # no session at all: it is each check's own fault that it could not be made
        made = {verdict.check for verdict in found}
        found += [
            vw_resolutions_truth.could_not_be_made(info.name, info.severity, str(fault))
            for info in checks_of(asset, settings)
            if info.name in of_view - made
        ]
    return found


def _made(
    settings: Settings, asset: str, wanted: set[str], available: Mapping[str, Callable[[], Verdict]]
) -> list[Verdict]:
    from payout_pipeline.verification.vw_resolutions_truth import could_not_be_made

    verdicts: list[Verdict] = []
    for info in checks_of(asset, settings):
        if info.name in wanted and info.name in available:
            try:
                verdicts.append(available[info.name]())
            except PayoutPipelineError as fault:
                verdicts.append(could_not_be_made(info.name, info.severity, str(fault)))
    return verdicts
