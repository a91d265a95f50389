"""The vectors that ids had when they were last resolved, whichever worker's list they were in.

A ledger holds the ids of one list. Where the list changes, an id may come back after days, and in the chunk of another worker;
where an id got no usable answer, its ledger has no vector. So what a snapshot knew is kept beside it before it is replaced:

    goldsky_payouts/<partition>/_known.parquet   condition_id, vector (text), fetched_at
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from payout_pipeline.ids.chunks import Chunk
from payout_pipeline.ledger import files
from payout_pipeline.ledger.changes import vector_texts
from payout_pipeline.ledger.ledger import Ledger
from payout_pipeline.ledger.rows import id_array
from payout_pipeline.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

_KNOWN = "_known.parquet"
_COLUMNS = ("condition_id", "payout_numerators", "payout_denominator", "fetched_at")


def remember(ledger: Ledger) -> None:
    """Add the vectors of the finished snapshot to those that are known. Call it before the snapshot is replaced.

    Raises LedgerError where a file is damaged, StorageError where it cannot be written.
    """
    table = _latest([_kept(ledger), *_resolved(ledger)])
    files.write_rows(ledger.store, ledger.key(_KNOWN), table.schema, [table], "{}")


def last_known(store: Store, chunk: Chunk) -> pa.Table:
    """The latest known vectors of the ids of ``chunk``, of all partitions: ``condition_id`` and ``vector``.

    Raises LedgerError where a file is damaged.
    """
    import pyarrow.compute as pc

    ids: pa.StringArray | None = None  # some 70 bytes an id, which a first run does not need
    found: list[pa.Table] = []
    for partition in store.names(files.DIRECTORY):
        ledger = Ledger(store, partition)
        # In this order: a snapshot that is replaced meanwhile has left its vectors beside it before.
        for part in filter(len, (*_resolved(ledger), _kept(ledger))):
            ids = id_array(chunk) if ids is None else ids
            found.append(part.filter(pc.is_in(part["condition_id"], value_set=ids)))
    return _latest(found).select(["condition_id", "vector"])


def _resolved(ledger: Ledger) -> Iterator[pa.Table]:
    """The resolved rows of the finished snapshot."""
    if ledger.finished() is None:
        return
    for batch in ledger.read(_COLUMNS, ["resolved"]):
        vectors = vector_texts(batch["payout_numerators"], batch["payout_denominator"])
        yield _table(batch["condition_id"], vectors, batch["fetched_at"])


def _kept(ledger: Ledger) -> pa.Table:
    """What was remembered of the snapshots before."""
    key = ledger.key(_KNOWN)
    try:
        table = files.read_any(ledger.store, key)
        return _table(table["condition_id"], table["vector"], table["fetched_at"])
    except FileNotFoundError:
        return _table([], [], [])
    except KeyError as error:
        raise files.damaged(ledger.store, key, error) from error


def _latest(tables: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    ordered = pa.concat_tables([_table([], [], []), *tables]).sort_by("fetched_at")
    last = ordered.group_by("condition_id", use_threads=False).aggregate([("vector", "last"), ("fetched_at", "last")])
    return _table(last["condition_id"], last["vector_last"], last["fetched_at_last"])


def _table(ids: Any, vectors: Any, times: Any) -> pa.Table:
    import pyarrow as pa

    fields = [("condition_id", pa.string()), ("vector", pa.string()), ("fetched_at", pa.timestamp("ms", "UTC"))]
    table = pa.table({"condition_id": ids, "vector": vectors, "fetched_at": times})
    return table.cast(pa.schema(fields))
