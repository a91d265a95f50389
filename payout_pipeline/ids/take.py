"""Taking the list of ids that ``CONDITION_IDS_QUERY`` gives: what a materialization of ``condition_ids`` does."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from pydantic import BaseModel

from payout_pipeline.errors import InputError
from payout_pipeline.ids.chunks import partition_keys
from payout_pipeline.ids.id_list import IdList
from payout_pipeline.ids.today import CURRENT, TakenList, current_list, list_file, query_hash, read_list
from payout_pipeline.logs import forwarded_to
from payout_pipeline.settings import Settings
from payout_pipeline.storage import BACKFILL_RECORD, Store, open_store
from payout_pipeline.words import counted
from payout_pipeline.worker_lock import locks_for, worker_lock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from logging import Logger

#: Older lists that are kept, so that a reader that has just begun finds its file.
_KEPT = 7


class TakeSummary(BaseModel):
    """What a materialization of ``condition_ids`` did. ``kept_for`` names what is going on with the list, if it was kept."""

    taken: TakenList
    path: str
    added: int
    gone: int
    kept_for: str = ""
    sample: list[str]


def take_list(settings: Settings, *, log: Logger, run_id: str = "", going_on: Sequence[str] = ()) -> TakeSummary:
    """Run ``CONDITION_IDS_QUERY`` and make what it gives today's list, unless a backfill of the present one is in progress.

    ``going_on`` names runs that read the list, as far as the caller knows them. Raises InputError where the query or one of
    its ids cannot be used (the present list is then left as it is), LockHeldError, StorageError, and what a session raises.
    """
    from payout_pipeline.warehouse.id_query import query_ids

    store = open_store(settings.runtime_dir)
    with (
        forwarded_to(log, debug=settings.debug),
        worker_lock(settings, "condition_ids", purpose="condition_ids", run_id=run_id, log=log),
    ):
        former = current_list(store)
        reason = _in_progress(settings, store, going_on)
        if former is not None and reason and former.query == query_hash(settings):
            log.warning("the list of %s is kept: %s", counted(former.ids, "id"), reason)
            return _summary(store, former, read_list(settings.runtime_dir, former.sha256), 0, 0, reason)
        found = query_ids(settings)
        added, gone = _differences(settings, former, found)
        older = () if former is None else (former.sha256, *former.former)
        kept = tuple(dict.fromkeys(sha for sha in older if sha != found.sha256))
        taken = TakenList(
            sha256=found.sha256,
            ids=found.count,
            duplicates=found.duplicates,
            query=query_hash(settings),
            taken_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            former=kept[:_KEPT],
        )
        store.write(list_file(taken.sha256), b"".join(f"{i}\n".encode() for i in found.ids()))
        store.write(CURRENT, taken.model_dump_json(indent=2).encode())
        for sha in kept[_KEPT:]:
            store.delete(list_file(sha))
    log.info(
        f"CONDITION_IDS_QUERY gave {counted(found.count, 'id')}: {added:,} new in the list, {gone:,} not in it any more"
    )
    return _summary(store, taken, found, added, gone)


def _summary(store: Store, taken: TakenList, found: IdList, added: int, gone: int, kept_for: str = "") -> TakeSummary:
    return TakeSummary(
        taken=taken,
        path=store.describe(list_file(taken.sha256)),
        added=added,
        gone=gone,
        kept_for=kept_for,
        sample=found.ids(0, 5),
    )


def _in_progress(settings: Settings, store: Store, going_on: Sequence[str]) -> str:
    """Who reads the present list (runs, holders of a worker's lock, an unfinished backfill); empty where none does."""
    if going_on:
        return f"in progress: {', '.join(going_on)}"
    if (locks := locks_for(settings)) is not None:
        for key in partition_keys(settings.workers):
            if (holder := locks.holder(key)) is not None:
                return f"{key} is held by {holder}"
    if store.exists(BACKFILL_RECORD):
        return "a backfill whose view is not built yet; `payout-pipeline backfill` continues it"
    return ""


def _differences(settings: Settings, former: TakenList | None, found: IdList) -> tuple[int, int]:
    """How many ids are new in the list, and how many of the former one are not in it."""
    if former is None:
        return found.count, 0
    try:
        before = set(read_list(settings.runtime_dir, former.sha256).ids())
    except InputError:  # it was removed or damaged; what counts is the new one
        return found.count, former.ids
    now = set(found.ids())
    return len(now - before), len(before - now)
