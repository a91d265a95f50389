"""The vectors that ids had when they were last resolved, whichever worker's list they were in.

A ledger holds the ids of one list. Where the list changes, an id may come back after days, and in the chunk of another worker;
where an id got no usable answer, its ledger has no vector. So what a snapshot knew is kept beside it before it is replaced:

    goldsky_payouts/<partition>/_known.parquet   condition_id, vector (text), fetched_at
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from payout_pipeline.ledger import files
from payout_pipeline.ledger.changes import vector_texts
from payout_pipeline.ledger.ledger import Ledger
from payout_pipeline.storage import Store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_KNOWN = "_known.parquet"
_COLUMNS = ("condition_id", "payout_numerators", "payout_denominator", "fetched_at")


def remember(ledger: Ledger) -> None:
    """Add the vectors of the finished snapshot to those that are known. Call it before the snapshot is replaced.

    Raises LedgerError where a file is damaged, StorageError where it cannot be written.
    """
    import pyarrow as pa

    table = pa.Table.from_pandas(_latest([_kept(ledger), *_resolved(ledger)]), preserve_index=False)
    files.write_rows(ledger.store, ledger.key(_KNOWN), table.schema, [table], lambda: "{}")


def last_known(store: Store, ids: pa.Array) -> pd.DataFrame:
    """The latest known vectors of ``ids``, of all partitions: ``condition_id`` and ``vector``.

    Raises LedgerError where a file is damaged.
    """
    wanted = set(ids.to_pylist())
    frames: list[pd.DataFrame] = []
    for partition in store.names(files.DIRECTORY):
        ledger = Ledger(store, partition)
        # In this order: a snapshot that is replaced meanwhile has left its vectors beside it before.
        parts = [*_resolved(ledger), _kept(ledger)]
        frames += [part[part["condition_id"].isin(wanted)] for part in parts]
    return _latest(frames)[["condition_id", "vector"]]


def _resolved(ledger: Ledger) -> list[pd.DataFrame]:
    """The resolved rows of the finished snapshot."""
    if ledger.finished() is None:
        return []
    parts: list[pd.DataFrame] = []
    for batch in ledger.read(_COLUMNS, ["resolved"]):
        part = batch.select(["condition_id", "fetched_at"]).to_pandas()
        part["vector"] = vector_texts(batch["payout_numerators"], batch["payout_denominator"]).to_pandas()
        parts.append(part)
    return parts


def _kept(ledger: Ledger) -> pd.DataFrame:
    """What was remembered of the snapshots before."""
    import pandas as pd
    import pyarrow.parquet as pq

    key = ledger.key(_KNOWN)
    try:
        with ledger.store.reading(key) as file:
            frame: pd.DataFrame = pq.read_table(file, page_checksum_verification=True).to_pandas()
            return frame[["condition_id", "vector", "fetched_at"]]
    except FileNotFoundError:
        return pd.DataFrame({"condition_id": [], "vector": [], "fetched_at": pd.to_datetime([], utc=True)})
    except files.damage() as error:
        raise files.damaged(ledger.store, key, error) from error


def _latest(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame({"condition_id": [], "vector": [], "fetched_at": []}, dtype=str)
    ordered = pd.concat(filled).sort_values("fetched_at", kind="stable")
    return ordered.drop_duplicates("condition_id", keep="last")
