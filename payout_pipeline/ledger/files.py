"""The files of a ledger: the finished snapshot, the batches of a run, and what was set aside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import LedgerError
from payout_pipeline.ledger.plans import VERSION, Facts, SnapshotInfo, pin_from
from payout_pipeline.ledger.rows import STATUSES, ledger_schema
from payout_pipeline.storage import LogLine, Store, join, open_store

if TYPE_CHECKING:
    import pyarrow as pa

DIRECTORY = "goldsky_payouts"
SNAPSHOT = "ledger.parquet"
RUNNING = "_running"
ASIDE = "_aside"
FACTS_KEY = b"payout_pipeline"
BATCH_NAME = re.compile(r"batch-(\d{5,9})\.parquet")
ROWS_IN_GROUP = 16_384
_KEPT_ASIDE = 5


class LedgerFiles:
    """The files of one partition's ledger: where they are, what is in them, and how damage is kept out of the way.

    Args:
        root: the runtime directory (path, URL or store).
        partition: the partition's key.
        log: told, in one line each, what was set aside, resumed or left out.
    """

    def __init__(self, root: Store | Path | str, partition: str, log: LogLine | None = None) -> None:
        self.store = root if isinstance(root, Store) else open_store(root)
        self.partition = partition
        self.prefix = join(DIRECTORY, partition)
        self.log = log or _no_log

    @property
    def snapshot_key(self) -> str:
        """The key of the finished snapshot's file."""
        return join(self.prefix, SNAPSHOT)

    @property
    def place(self) -> str:
        """Where the finished snapshot is, for people."""
        return self.store.describe(self.snapshot_key)

    @property
    def repair(self) -> str:
        """The command that makes the snapshot anew."""
        return f"dagster asset materialize --select goldsky_payouts --partition {self.partition}"

    def finished(self) -> SnapshotInfo | None:
        """The facts of the finished snapshot, from the footer of its file; None if there is none or it is damaged.

        Damage is logged; only `start` sets the file aside.
        """
        try:
            return self.snapshot()
        except LedgerError as error:
            self.log(str(error))
            return None

    def snapshot(self) -> SnapshotInfo | None:
        """As `finished`; raises LedgerError where the file is damaged."""
        import pyarrow.parquet as pq

        try:
            file = self.store.reading(self.snapshot_key)
        except FileNotFoundError:
            return None
        with file:
            try:
                footer = pq.read_metadata(file)
                fields = json.loads(footer.metadata[FACTS_KEY])
                info = SnapshotInfo(**{**fields, "pin": pin_from(fields["pin"])})
                rows = footer.num_rows
                if info.version != VERSION or info.partition != self.partition:
                    raise ValueError(f"it is of version {info.version} and partition {info.partition}")
                if rows != info.ids or sorted(info.counts) != sorted(STATUSES) or sum(info.counts.values()) != rows:
                    raise ValueError(f"it has {rows} rows instead of {info.ids}")
            except _damage() as error:
                raise self._damaged(error) from error
        return info

    def _damaged(self, error: BaseException) -> LedgerError:
        return LedgerError(
            f"{self.place} is damaged or no ledger ({type(error).__name__}: {str(error)[:200]!a}); "
            f"the next run keeps it aside and asks anew: {self.repair}"
        )

    def read(
        self, columns: Sequence[str] | None = None, statuses: Iterable[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of the finished snapshot, a part at a time.

        Args:
            columns: these columns only; all of `ledger_schema` by default.
            statuses: rows of these statuses only.

        Raises:
            LedgerError: there is no finished snapshot, or it is damaged.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        schema = ledger_schema()
        wanted = list(schema.names) if columns is None else list(columns)
        target = pa.schema([schema.field(name) for name in wanted])
        chosen = None if statuses is None else pa.array(list(statuses), pa.string())
        needed = wanted if chosen is None or "status" in wanted else [*wanted, "status"]
        try:
            file = self.store.reading(self.snapshot_key)
        except FileNotFoundError as error:
            raise LedgerError(f"{self.place} does not exist: nothing was fetched yet; run {self.repair}") from error
        with file:
            try:
                # Its default is to hold the whole file in memory, 17 MB of half a million ids.
                parquet = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
                for batch in parquet.iter_batches(ROWS_IN_GROUP, columns=needed, use_threads=False):
                    part = pa.Table.from_batches([batch])
                    if chosen is not None:
                        part = part.filter(pc.is_in(part["status"], chosen))
                    yield from part.select(wanted).cast(target).to_batches()
            except _damage() as error:
                raise self._damaged(error) from error

    def read_batch(self, name: str) -> tuple[Facts, dict[str, Any], pa.Table]:
        """The run's facts, the batch's own and its rows; LedgerError where it is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = self.store.read(join(self.prefix, RUNNING, name))
        try:
            # Without threads: handing a thousand rows to other threads costs more than reading them.
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
            own = json.loads(table.schema.metadata[FACTS_KEY])
            facts = Facts.from_json(own["run"])
            table = table.replace_schema_metadata(None).cast(ledger_schema())
            table.validate(full=True)
        except _damage() as error:
            raise LedgerError(f"{name} is damaged ({type(error).__name__}: {str(error)[:200]!a})") from error
        return facts, own, table

    def set_aside(self, name: str, reason: str, kind: str = "corrupt") -> None:
        """Keep a file or directory of this partition out of the way, loudly; the oldest of what is kept goes."""
        aside = join(self.prefix, ASIDE)
        stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        target = join(aside, f"{name.rpartition('/')[2]}.{kind}-{stamp}")
        self.store.move(join(self.prefix, name), target)
        self.log(f"{self.partition}: SET ASIDE {name} as {self.store.describe(target)}: {reason}")
        kept = sorted(self.store.names(aside), key=lambda item: item.rpartition("-")[2])
        for old in kept[:-_KEPT_ASIDE]:
            self.store.delete(join(aside, old))


def _damage() -> tuple[type[Exception], ...]:
    """What pyarrow and json raise on bytes that are not what they should be."""
    import pyarrow as pa

    return (
        pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError,
        MemoryError, RecursionError,
    )  # fmt: skip


def batch_name(index: int) -> str:
    """The name of a batch's file among those of its run."""
    return f"batch-{index:05d}.parquet"


def parquet_options(*, lasting: bool) -> dict[str, Any]:
    """How a snapshot (``lasting``) or a batch is written."""
    # Ids are random: a dictionary of them costs time and space. Checksums find what a disk has changed. A batch is read
    # once and removed within the minute, which is not worth the time that compressing it takes.
    return {
        "compression": "zstd" if lasting else "none",
        "compression_level": 1 if lasting else None,
        "use_dictionary": [
            "status", "payouts", "payout_numerators.list.element", "payout_denominator", "winning_index",
            "block_number", "fetched_at", "error",
        ],
        "write_page_checksum": True,
        "write_statistics": False,
    }  # fmt: skip


def _no_log(line: str) -> None:
    """For callers that do not listen."""
