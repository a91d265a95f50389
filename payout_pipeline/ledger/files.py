"""The Parquet files of a ledger: how rows and the facts beside them are written, and how damage is recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from payout_pipeline.errors import LedgerError
from payout_pipeline.ledger.rows import ledger_schema
from payout_pipeline.storage import Store, join

if TYPE_CHECKING:
    import pyarrow as pa

DIRECTORY = "goldsky_payouts"
SNAPSHOT = "ledger.parquet"
# Parquet readers skip names that begin with an underscore, so reading the partition's directory gives the snapshot.
RUNNING = "_running"
RUN_FACTS = join(RUNNING, "run.json")
CARRIED = join(RUNNING, "carried.parquet")
CHANGES = "_changes"
ASIDE = "_aside"
BATCH_NAME = re.compile(r"batch-(\d{5,9})\.parquet")
FACTS_KEY = b"payout_pipeline"
_ROWS_AT_ONCE = 16_384


def batch_file(index: int) -> str:
    """Where a batch of a run is, under its partition."""
    return join(RUNNING, f"batch-{index:05d}.parquet")


def write_rows(store: Store, key: str, schema: pa.Schema, batches: Iterable[pa.Table], facts: str) -> None:
    """Write a Parquet file as a whole, with ``facts`` (JSON) in its footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        # Ids are random: a dictionary of them costs time and space.
        use_dictionary=[name for name in schema.names if name not in ("condition_id", "payout_numerators")],
        write_page_checksum=True,
        write_statistics=False,
    ) as writer:
        waiting: list[pa.Table] = []
        for table in batches:
            waiting.append(table)
            if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        writer.add_key_value_metadata({FACTS_KEY: facts.encode()})
    store.write(key, memoryview(sink.getvalue()))


def read_footer(store: Store, key: str) -> tuple[bytes, int]:
    """The facts of a file as JSON text, and its number of rows.

    Raises FileNotFoundError, and LedgerError where the file is damaged.
    """
    import pyarrow.parquet as pq

    with store.reading(key) as file:
        try:
            footer = pq.read_metadata(file)
            return bytes(footer.metadata[FACTS_KEY]), footer.num_rows
        except damage() as error:
            raise damaged(store, key, error) from error


def read_rows(
    store: Store, key: str, columns: Sequence[str] | None = None, statuses: Iterable[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, a part at a time. Raises FileNotFoundError, and LedgerError where it is damaged."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema = ledger_schema()
    wanted = list(schema.names) if columns is None else list(columns)
    target = pa.schema([schema.field(name) for name in wanted])
    chosen = None if statuses is None else pa.array(list(statuses), pa.string())
    needed = wanted if chosen is None or "status" in wanted else [*wanted, "status"]
    with store.reading(key) as file:
        try:
            # Its default is to hold the whole file in memory, 17 MB of half a million ids.
            parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=needed, use_threads=False):
                part = pa.Table.from_batches([batch])
                if chosen is not None:
                    part = part.filter(pc.is_in(part["status"], chosen))
                part = part.select(wanted).cast(target)
                part.validate(full=True)
                yield from part.to_batches()
        except damage() as error:
            raise damaged(store, key, error) from error


def read_table(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a file; raises as `read_rows`."""
    import pyarrow as pa

    empty = ledger_schema().empty_table().select(columns or ledger_schema().names)
    return pa.Table.from_batches(list(read_rows(store, key, columns)), empty.schema).combine_chunks()


def read_any(store: Store, key: str) -> pa.Table:
    """All rows of a Parquet file, whatever its columns; raises as `read_rows`."""
    import pyarrow.parquet as pq

    with store.reading(key) as file:
        try:
            # In this thread: a process in which Arrow has started threads may abort when it exits.
            return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False).read(use_threads=False)
        except damage() as error:
            raise damaged(store, key, error) from error


def damaged(store: Store, key: str, error: BaseException) -> LedgerError:
    """What is wrong with a file."""
    return LedgerError(f"{store.describe(key)} is damaged or no ledger ({type(error).__name__}: {str(error)[:200]!a})")


def damage() -> tuple[type[Exception], ...]:
    """What pyarrow raises on bytes that are not what they should be."""
    import pyarrow as pa

    return (
        pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
        MemoryError, RecursionError,
    )  # fmt: skip
