"""Asset checks, as thin layers: one step an asset, one database session a step, a status per partition.

What is checked and why is in ``catalogue.py``; what the numbers mean in ``verification.py``.
"""

# No `from __future__ import annotations` here: Dagster compares the annotation of `context` with its own classes, and
# a text such as "dg.AssetCheckExecutionContext" is none of them.

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import dagster as dg
from dagster_shared.utils.warnings import PreviewWarning

from payout_pipeline.checks.catalogue import ASSETS, FETCHED, STORED, VIEW, checks_of
from payout_pipeline.checks.history import scope_of
from payout_pipeline.checks.results import to_result
from payout_pipeline.faults import reported_to_dagster
from payout_pipeline.resources import PipelineResource
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity, Verdict
from payout_pipeline.worklist import WorkerInput, Worklist, read_worklist

_POOLS = {FETCHED: None, STORED: "clickhouse", VIEW: "clickhouse"}


def build_checks(partitions: dg.StaticPartitionsDefinition, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """The checks of all assets: partitioned like the workers for the first two, unpartitioned for the view."""
    return [_checks_of(asset, partitions if asset != VIEW else None, settings) for asset in ASSETS]


def check_specs(
    asset: str, partitions: dg.StaticPartitionsDefinition | None, settings: Settings
) -> list[dg.AssetCheckSpec]:
    """Dagster's specs of the checks of ``asset``.

    ERROR checks are blocking, which fails the run that made them and keeps the rest of that run from building on a
    defect. It does not gate a backfill, so the assets raise by themselves what must never pass.
    """
    with warnings.catch_warnings():
        # `partitions_def` on a check spec is in preview. Without it a check of a partitioned asset keeps the status of
        # the partition checked last and no other, so there is no way around it; requirements.lock pins the version.
        warnings.simplefilter("ignore", PreviewWarning)
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
        pool=_POOLS[asset],
        description=f"The checks of {asset}, in one step.",
    )
    def checks(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[dg.AssetCheckResult]:
        wanted = {key.name for key in context.selected_asset_check_keys}
        with reported_to_dagster():
            current = pipeline.settings()
            worklist = read_worklist(current)
            if partitions is None:
                fingerprint = worklist.fingerprint
                verdicts = _view(current, context.instance, worklist, wanted)
            else:
                worker = worklist.of(context.partition_key)
                fingerprint = worker.fingerprint
                verdicts = _WORKER_CHECKS[asset](current, worker, wanted)
        for verdict in verdicts:
            result = to_result(verdict, asset, fingerprint, scope_of(asset, current))
            say = context.log.info if verdict.passed else context.log.warning
            say(f"{'PASSED' if verdict.passed else 'FAILED'} {verdict.check}: {result.description}")
            yield result

    return checks


def _fetched(settings: Settings, worker: WorkerInput, names: Collection[str]) -> Sequence[Verdict]:
    from payout_pipeline.checks import fetched

    return fetched.verdicts(settings, worker, names)


def _stored(settings: Settings, worker: WorkerInput, names: Collection[str]) -> Sequence[Verdict]:
    from payout_pipeline.checks import stored

    return stored.verdicts(settings, worker, names)


def _view(
    settings: Settings, instance: dg.DagsterInstance, worklist: Worklist, names: Collection[str]
) -> Sequence[Verdict]:
    from payout_pipeline.checks import view

    return view.verdicts(settings, instance, worklist, names)


_WORKER_CHECKS: dict[str, Callable[[Settings, WorkerInput, Collection[str]], Sequence[Verdict]]] = {
    FETCHED: _fetched,
    STORED: _stored,
}
