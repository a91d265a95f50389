"""``all_workers_complete``: each worker is fetched and loaded for today's input and has no failed or outdated check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from payout_pipeline.ids.chunks import worker_numbers
from payout_pipeline.ledger import STATUSES
from payout_pipeline.verdict import Table, Verdict
from payout_pipeline.words import counted, is_

_TOLD = 5


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What is known of one worker. ``ids``: of today's input, None in scan mode; ``trouble``: why its checks do not count."""

    partition: str
    ids: int | None
    fetched: bool
    for_todays_input: bool
    loaded: bool
    counts: Mapping[str, int]
    trouble: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """Why the worker does not count as complete; empty where it does."""
        if not self.fetched:
            return "never fetched"
        if not self.for_todays_input:
            return "fetched for another input"
        if not self.loaded:
            return "fetched but not loaded since"
        if self.trouble:
            return "; ".join(self.trouble)
        total = sum(self.counts.values())
        if self.ids is not None and total != self.ids:
            return f"{total:,} of {self.ids:,} ids accounted for"
        return ""


def all_workers_complete(workers: Sequence[WorkerState]) -> Verdict:
    """A table with a row a worker, and a pass where each is complete."""
    complete = [worker for worker in workers if not worker.problem]
    troubled = [worker for worker in workers if worker.problem]
    rows = tuple(
        (
            worker.partition,
            "all" if worker.ids is None else worker.ids,
            *(worker.counts.get(status, 0) for status in STATUSES),
            worker.loaded,
            worker.problem or "complete",
        )
        for worker in workers
    )
    sentence = f"{len(complete)} of {counted(len(workers), 'worker')} {is_(len(complete))} complete for today's input"
    repair = ""
    if troubled:
        told = "; ".join(f"{worker.partition}: {worker.problem}" for worker in troubled[:_TOLD])
        more = f" and {len(troubled) - _TOLD} more" if len(troubled) > _TOLD else ""
        sentence = f"{sentence}; {told}{more}"
        option = worker_numbers(worker.partition for worker in troubled)
        repair = (
            f"Run `payout-pipeline backfill --workers {option}`, or materialize goldsky_payouts and "
            "resolutions_external_ingest for these partitions; then materialize vw_resolutions_truth again. Where only "
            "checks are outdated, `payout-pipeline verify` makes them again."
        )
    else:
        sentence += f", with {counted(sum(sum(worker.counts.values()) for worker in complete), 'id')} accounted for"
    return Verdict(
        not troubled,
        f"{sentence}.",
        len(workers),
        len(complete),
        tables=(Table("workers", ("worker", "ids", *STATUSES, "loaded", "state"), rows),),
        repair=repair,
    )
