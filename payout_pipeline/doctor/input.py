"""What the doctor sees of the input: the file of ids, or what the query gives at this moment."""

from __future__ import annotations

from dataclasses import dataclass

from payout_pipeline.doctor.finding import Finding
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.ids.chunks import Worklist, read_worklist, worklist_of
from payout_pipeline.ids.id_list import IdList
from payout_pipeline.ids.today import source_of_ids, todays_ids
from payout_pipeline.settings import Settings
from payout_pipeline.words import counted

_FIRST_IDS = 3
#: The query may take longer than what else the doctor asks of ClickHouse.
_QUERY_SECONDS = 60.0


@dataclass(frozen=True)
class InputSeen:
    """The input, as far as it can be read; ``ids`` is None in scan mode too."""

    ids: IdList | None
    worklist: Worklist | None
    findings: list[Finding]


def look_at_input(settings: Settings) -> InputSeen:
    """Today's input and its findings. A query is run, and its result is not kept."""
    if settings.goldsky_mode == "scan":
        text = "GOLDSKY_MODE=scan: every resolved condition of the subgraph"
        return InputSeen(None, read_worklist(settings), [Finding("input", "ok", text)])
    try:
        found = _of_the_query(settings) if settings.condition_ids_query else todays_ids(settings)
    except PayoutPipelineError as fault:
        return InputSeen(None, None, [Finding.of_fault("input", fault)])
    if found is None:
        text = "CONDITION_IDS_QUERY was not run: the embedded database will be made by the first run"
        return InputSeen(None, None, [Finding("input", "warning", text)])
    worklist = worklist_of(settings, found)
    return InputSeen(found, worklist, _findings(settings, found, worklist))


def _of_the_query(settings: Settings) -> IdList | None:
    """What the query gives; None where there is no database yet, since the doctor makes none."""
    from payout_pipeline.warehouse.client import Warehouse
    from payout_pipeline.warehouse.id_query import query_ids

    warehouse = Warehouse.existing(settings, "doctor", _QUERY_SECONDS)
    return None if warehouse is None else query_ids(settings, warehouse)


def _findings(settings: Settings, found: IdList, worklist: Worklist) -> list[Finding]:
    largest = max(worker.ids or 0 for worker in worklist.workers)
    repeated = f", {counted(found.duplicates, 'repeated line')} left out" if found.duplicates else ""
    text = (
        f"{source_of_ids(settings)}: {counted(found.count, 'condition id')}{repeated}; "
        f"{counted(settings.workers, 'worker')} with up to {largest:,} each"
    )
    if settings.condition_ids_query:
        text += f"; the first: {', '.join(found.ids(0, _FIRST_IDS))}" if found.count else ": nothing is missing"
    findings = [Finding("input", "ok", text)]
    bar = settings.success_bar(found.count)
    if found.count and bar > found.count:
        findings.append(
            Finding(
                "input",
                "warning",
                f"the success bar of {bar:,} conditions cannot be reached: the list has {counted(found.count, 'id')}",
                "Lower PAYOUT_MIN_UNIQUE_CONDITIONS; below 1 it is a share of the ids.",
            )
        )
    return findings
