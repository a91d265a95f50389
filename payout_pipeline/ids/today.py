"""Today's condition ids: those of the user's file, or of the list that ``CONDITION_IDS_QUERY`` gave last.

The list of a query is kept in the runtime directory under its content's hash, so that all workers of a day read the same ids
although the user's tables go on changing:

    condition_ids/<sha256>.txt   one id a line, sorted
    condition_ids/current.json   which of them is today's
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from payout_pipeline.errors import InputError
from payout_pipeline.ids.id_list import IdList, packed_array, read_ids
from payout_pipeline.settings import Settings
from payout_pipeline.storage import Store, open_store
from payout_pipeline.words import counted

CURRENT = "condition_ids/current.json"
_TAKE = "`payout-pipeline backfill`, or dagster asset materialize -m payout_pipeline.definitions --select condition_ids"


class TakenList(BaseModel):
    """The list of ids that a query gave. ``query`` is the hash of its text, ``former`` the lists before it, latest first."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    ids: int
    duplicates: int
    query: str
    taken_at: str
    former: tuple[str, ...] = ()


def todays_ids(settings: Settings) -> IdList:
    """The ids that today's workers ask for; read again only where the file, or the list, is another one.

    Raises InputError where the file cannot be used, no list was taken yet, or it was taken by another query.
    """
    if settings.condition_ids_query:
        return read_list(settings.runtime_dir, todays_list(settings).sha256)
    path = settings.condition_ids_file
    try:
        found = path.stat()
    except OSError:
        return read_ids(path)  # which says what is wrong with it
    return _read_file(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


def source_of_ids(settings: Settings) -> str:
    """Where the ids come from, for messages."""
    return "CONDITION_IDS_QUERY" if settings.condition_ids_query else str(settings.condition_ids_file)


def todays_list(settings: Settings) -> TakenList:
    """The facts of the list that is today's; raises InputError where there is none of today's query."""
    taken = current_list(open_store(settings.runtime_dir))
    if taken is None:
        raise InputError(f"no list of ids was taken from CONDITION_IDS_QUERY yet.\nTo repair it: {_TAKE}")
    if taken.query != query_hash(settings):
        raise InputError(
            f"the list of {counted(taken.ids, 'id')} was taken at {taken.taken_at} by another CONDITION_IDS_QUERY.\n"
            f"To repair it: {_TAKE}"
        )
    return taken


def current_list(store: Store) -> TakenList | None:
    """The facts of the present list; None where there is none, or they are damaged (they are then set aside)."""
    try:
        return TakenList.model_validate_json(store.read(CURRENT))
    except FileNotFoundError:
        return None
    except ValidationError:
        store.set_aside(CURRENT)
        return None


def query_hash(settings: Settings) -> str:
    """Of the query's text."""
    return hashlib.sha256((settings.condition_ids_query or "").encode()).hexdigest()


def list_file(sha256: str) -> str:
    """The key of a list in the runtime directory."""
    return f"condition_ids/{sha256}.txt"


@lru_cache(maxsize=1)
def read_list(runtime_dir: str, sha256: str) -> IdList:
    """The ids of a list. Raises InputError where its file is missing or is not what its name says."""
    store = open_store(runtime_dir)
    try:
        packed = bytes.fromhex(store.read(list_file(sha256)).decode("ascii"))
    except (FileNotFoundError, ValueError):
        packed = b"damaged"
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise InputError(f"{store.describe(list_file(sha256))} is missing or damaged.\nTo repair it: {_TAKE}")
    return IdList(packed_array(packed))


@lru_cache(maxsize=1)
def _read_file(path: Path, _identity: tuple[int, ...]) -> IdList:
    return read_ids(path)
