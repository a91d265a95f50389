"""A run that is going: its batches as they come, and the one rename that makes them the snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import LedgerError
from payout_pipeline.goldsky.pin import Pin
from payout_pipeline.ids.chunks import Chunk, PrefixRange
from payout_pipeline.ledger import files
from payout_pipeline.ledger.changes import COMPARED_COLUMNS, compare, states, with_last_known
from payout_pipeline.ledger.info import SnapshotInfo, now
from payout_pipeline.ledger.known import last_known, remember
from payout_pipeline.ledger.ledger import Ledger
from payout_pipeline.ledger.rows import (
    ERROR_STATUSES,
    STATUSES,
    Status,
    counts_of,
    fault_in_rows,
    id_array,
    ledger_schema,
)

if TYPE_CHECKING:
    import pyarrow as pa


class RunningLedger:
    """A run that is going: batches are written as their answers come, in any order; `start_run` makes one.

    In a list a batch is ``batch_size`` ids; in a scan it is one prefix, counted from the first of the range.
    """

    def __init__(self, ledger: Ledger, info: SnapshotInfo, ids: Chunk | PrefixRange) -> None:
        self._ledger, self.info, self._ids = ledger, info, ids
        self._asked: pa.StringArray | None = None  # where it is not the whole chunk
        self.carried = 0
        self._on_disk: dict[int, dict[str, int]] = {}
        if isinstance(ids, Chunk):
            self.ids_total = ids.count
            self._take_carried(ids)
            self.batch_count = -(-(ids.count - self.carried) // info.batch_size)
        else:
            self.ids_total = 0
            self.batch_count = len(ids.prefixes)
        self._load_batches()
        self._retried = {index for index, counts in self._on_disk.items() if counts["failed"]}

    # -- facts

    @property
    def pin(self) -> Pin:
        """The block of this run."""
        return self.info.pin

    @property
    def missing_batches(self) -> list[int]:
        """The batches still to be asked, in order: not on disk yet, or with ids that failed before an interruption."""
        return [index for index in range(self.batch_count) if index not in self._on_disk or index in self._retried]

    @property
    def counts(self) -> dict[str, int]:
        """Ids by status: carried ones and those of the batches on disk."""
        batches = list(self._on_disk.values())
        counts = {str(status): sum(batch[status] for batch in batches) for status in STATUSES}
        counts["resolved"] += self.carried
        return counts

    @property
    def batches_done(self) -> int:
        """Number of batches on disk."""
        return len(self._on_disk)

    @property
    def last_batch_index(self) -> int:
        """The last batch of the unbroken row of those on disk from the first on; -1: none."""
        return next((index for index in range(self.batch_count) if index not in self._on_disk), self.batch_count) - 1

    # -- resuming

    def _take_carried(self, chunk: Chunk) -> None:
        import pyarrow.compute as pc

        key = self._ledger.key(files.CARRIED)
        try:
            carried = files.read_table(self._ledger.store, key, ["condition_id"])["condition_id"].combine_chunks()
        except FileNotFoundError:
            return
        except LedgerError as error:
            self._ledger.set_aside(files.CARRIED, str(error))
            return
        everything = id_array(chunk)
        self._asked = everything.filter(pc.invert(pc.is_in(everything, value_set=carried)))
        self.carried = len(everything) - len(self._asked)
        self._ledger.log(
            f"{self._ledger.partition}: carrying {self.carried:,} resolved ids over, asking the other {len(self._asked):,}"
        )

    def _load_batches(self) -> None:
        """Take over the batches on disk; what is damaged or of another run is set aside."""
        names = self._ledger.store.names(self._ledger.key(files.RUNNING))
        for name in names:
            place = f"{files.RUNNING}/{name}"
            match = files.BATCH_NAME.fullmatch(name)
            if place in (files.RUN_FACTS, files.CARRIED):
                continue
            try:
                if match is None:
                    raise LedgerError("no file of a run")
                table = self._read_batch(int(match[1]))
                fault = self._fault(int(match[1]), table, whole=True)
                if fault is not None:
                    raise LedgerError(fault)
            except LedgerError as error:
                self._ledger.set_aside(place, str(error))
                continue
            self._on_disk[int(match[1])] = counts_of(table)
        if self._on_disk:
            found = sum(self.counts.values())
            self._ledger.log(f"{self._ledger.partition}: {found:,} of {self.ids_total:,} ids are on disk")

    def _read_batch(self, index: int) -> pa.Table:
        """The rows of a batch on disk; LedgerError where it is damaged or of another run."""
        key = self._ledger.key(files.batch_file(index))
        facts, _ = files.read_footer(self._ledger.store, key)
        if facts.decode(errors="replace") != self._footer(index):
            raise LedgerError(f"{key} belongs to another run, block or batch")
        return files.read_table(self._ledger.store, key)

    def _footer(self, index: int) -> str:
        """What a batch says of itself; run.json can be made again from it."""
        return self.info.model_copy(update={"stats": {"batch": index}}).model_dump_json()

    # -- batches

    def _all_ids(self, index: int) -> list[str]:
        size = self.info.batch_size
        if not 0 <= index < self.batch_count or isinstance(self._ids, PrefixRange):
            raise LedgerError(f"there is no list of ids for batch {index} of run {self.info.snapshot_id}")
        if self._asked is not None:
            return [str(i) for i in self._asked.slice(index * size, size).to_pylist()]
        return self._ids.ids(index * size, (index + 1) * size)

    def prefix(self, index: int) -> str:
        """The prefix that a batch of a scan asks for."""
        assert isinstance(self._ids, PrefixRange)  # noqa: S101
        return self._ids.prefixes[index]

    def ids_to_ask(self, index: int) -> list[str]:
        """The ids of a batch that are still to be asked: all of them, or those that failed before the interruption."""
        if index not in self._on_disk:
            return self._all_ids(index)
        return self._with_status(index, "failed")

    def _with_status(self, index: int, status: Status) -> list[str]:
        import pyarrow.compute as pc

        if not self._on_disk[index][status]:
            return []
        table = self._read_batch(index)
        return [str(i) for i in table.filter(pc.equal(table["status"], status))["condition_id"].to_pylist()]

    def ids_with_status(self, status: Status) -> Iterator[tuple[int, list[str]]]:
        """The ids of a status on disk, batch by batch. Raises LedgerError where a batch was damaged meanwhile."""
        for index in sorted(self._on_disk):
            if ids := self._with_status(index, status):
                yield index, ids

    def write_batch(self, index: int, table: pa.Table) -> None:
        """Store rows of a batch; on disk when this returns, and counted only then. Not for two threads at a time.

        Args:
            index: the batch.
            table: rows of `ledger_schema`: all of the batch in the order of `ids_to_ask`, or later answers for some ids
                of a batch on disk, whose rows they replace.

        Raises LedgerError where the rows are not those of the batch (nothing was written), StorageError where the place
        cannot be written (the batch does not count).
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        fault = self._fault(index, table, whole=index not in self._on_disk)
        if fault is not None:
            raise LedgerError(f"batch {index} of {self._ledger.partition} is not stored: {fault}")
        if index in self._on_disk:
            former = self._read_batch(index)
            replaced = pc.is_in(former["condition_id"], value_set=table["condition_id"].combine_chunks())
            merged = pa.concat_tables([former.filter(pc.invert(replaced)), table]).combine_chunks()
            order = pc.index_in(former["condition_id"], value_set=merged["condition_id"])
            table = merged.take(order)
        key = self._ledger.key(files.batch_file(index))
        files.write_rows(self._ledger.store, key, ledger_schema(), [table], self._footer(index))
        self._on_disk[index] = counts_of(table)
        self._retried.discard(index)

    def _fault(self, index: int, table: pa.Table, *, whole: bool) -> str | None:
        """Why these cannot be rows of the batch; None if they can."""
        fault = fault_in_rows(table)
        if fault is not None:
            return fault
        ids = table["condition_id"].to_pylist()
        if isinstance(self._ids, PrefixRange):
            if not 0 <= index < self.batch_count or not all(i.startswith(self.prefix(index)) for i in ids):
                return "it has ids outside of its prefix"
        else:
            expected = self._all_ids(index)
            if whole and ids != expected:
                return f"its {len(ids)} ids are not the {len(expected)} asked, in their order"
            if not set(ids) <= set(expected):
                return "it has ids of another batch"
        return None if len(set(ids)) == len(ids) else "it has an id twice"

    # -- the end

    def finish(self, stats: Mapping[str, Any] | None = None) -> SnapshotInfo:
        """Make all batches (and the carried rows) the finished snapshot, and remove the run.

        ``stats`` are facts of the fetch to keep with it, as JSON values. Raises LedgerError where batches are missing or
        one was damaged meanwhile (it is set aside; the next run asks it), StorageError where the place cannot be written
        (the run stays as it is).
        """
        ledger = self._ledger
        missing = [index for index in range(self.batch_count) if index not in self._on_disk]
        if missing:
            raise LedgerError(
                f"{ledger.partition} cannot be finished: {len(missing):,} of {self.batch_count:,} batches are missing "
                f"(first: {missing[:5]}); run it again: {ledger.repair}"
            )
        counts = self.counts
        total = sum(counts.values())
        if isinstance(self._ids, Chunk) and total != self.ids_total:
            raise LedgerError(
                f"{ledger.partition}: {total:,} rows for {self.ids_total:,} ids; run again: {ledger.repair}"
            )
        info = self.info.model_copy(
            update={
                "finished_at": now(), "ids": total, "counts": counts, "carried": self.carried,
                "batches": self.batch_count, "stats": dict(stats or {}),
            }
        )  # fmt: skip
        self._write_changes(info)
        files.write_rows(
            ledger.store, ledger.key(files.SNAPSHOT), ledger_schema(), self._all_rows(), info.model_dump_json()
        )
        ledger.store.delete(ledger.key(files.RUNNING))
        for name in ledger.store.names(ledger.key(files.CHANGES)):
            if name != f"{info.snapshot_id}.parquet":
                ledger.store.delete(ledger.key(files.CHANGES, name))
        return info

    def _all_rows(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        if self._asked is not None:
            for batch in files.read_rows(self._ledger.store, self._ledger.key(files.CARRIED)):
                yield pa.Table.from_batches([batch])
        for index in sorted(self._on_disk):
            try:
                table = self._read_batch(index)
                if counts_of(table) != self._on_disk[index]:
                    raise LedgerError(f"batch {index} has other rows than were written")
            except FileNotFoundError as error:
                raise LedgerError(
                    f"batch {index} was removed while the run was going; run again: {self._ledger.repair}"
                ) from error
            except LedgerError as error:
                self._ledger.set_aside(files.batch_file(index), str(error))
                raise LedgerError(f"{error}; it was set aside, run again to ask it: {self._ledger.repair}") from error
            yield table

    def _write_changes(self, info: SnapshotInfo) -> None:
        """Compare with the finished snapshot that this one replaces, and with what is known of ids that it does not have."""
        ledger = self._ledger
        former = ledger.finished()
        same_list = former is not None and former.ids_sha256 == info.ids_sha256
        try:
            before = states(ledger.read(COMPARED_COLUMNS) if former is not None else ())
            if isinstance(self._ids, Chunk) and not (same_list and former and _all_usable(former)):
                before = with_last_known(before, last_known(ledger.store, self._ids))
            if former is not None and not (same_list and _all_usable(info)):
                remember(ledger)
        except LedgerError as error:
            ledger.log(f"{ledger.partition}: what changed since the former snapshot is not known: {error}")
            return
        if former is None and not len(before):
            return
        after = (batch.select(COMPARED_COLUMNS) for table in self._all_rows() for batch in table.to_batches())
        whole = former is not None and former.mode == info.mode == "scan"
        table = compare(before, after, whole=whole)
        key = ledger.key(files.CHANGES, f"{info.snapshot_id}.parquet")
        files.write_rows(ledger.store, key, table.schema, [table], "{}")

    def discard(self) -> None:
        """Give this run up, with its batches: its snapshot is lost (a moved deployment, a pruned block)."""
        self._ledger.store.delete(self._ledger.key(files.RUNNING))
        self._ledger.log(f"{self._ledger.partition}: gave up run {self.info.snapshot_id} and its batches")


def _all_usable(info: SnapshotInfo) -> bool:
    """Whether each id of a finished snapshot has an answer that counts."""
    return not any(info.counts[status] for status in ERROR_STATUSES)
