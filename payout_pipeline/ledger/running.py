"""A run that is going: its batches as they come, and the one rename that makes them the snapshot."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from payout_pipeline.conditions import ID_BYTES, Batch, IdSpool, hash_ids, pack_ids, unpack_ids
from payout_pipeline.errors import LedgerError
from payout_pipeline.ledger.files import (
    BATCH_NAME,
    FACTS_KEY,
    ROWS_IN_GROUP,
    RUNNING,
    LedgerFiles,
    batch_name,
    parquet_options,
)
from payout_pipeline.ledger.plans import Facts, Pin, RunPlan, SnapshotInfo, now
from payout_pipeline.ledger.rows import Status, counts_of, empty_counts, ledger_schema, packed_column, packed_rows
from payout_pipeline.storage import join

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class RunningLedger:
    """A run that is going: batches are written as their answers come, in any order and from several threads."""

    def __init__(self, files: LedgerFiles, plan: RunPlan, facts: Facts, remaining: IdSpool | None) -> None:
        self._files = files
        self._plan = plan
        self._facts = facts
        self._remaining = remaining
        self._lock = threading.Lock()
        self._finished: set[int] = set()
        self._partial: set[int] = set()
        self._totals = empty_counts()
        self._totals["resolved"] = facts.carried
        self._unbroken = 0
        self._result: SnapshotInfo | None = None
        # Of the batches that this process wrote; they are asked again, and need not be read from disk for that.
        self._absent: dict[int, bytes] = {}
        self.notes: dict[int, str] = {}
        """What the writer noted with each batch (a scan: where it stands)."""

    @classmethod
    def of_finished(cls, files: LedgerFiles, plan: RunPlan, finished: SnapshotInfo) -> RunningLedger:
        """The run of a finished snapshot: nothing is left to be asked."""
        facts = Facts(
            finished.snapshot_id, finished.fingerprint, finished.refetch, finished.started_at, plan.ids, None,
            finished.carried, finished.batches, finished.pin,
        )  # fmt: skip
        running = cls(files, plan, facts, None)
        running._result = finished
        running._finished = set(range(finished.batches))
        return running

    # -- facts

    @property
    def run_id(self) -> str:
        """The id of this run; it becomes the id of the snapshot."""
        return self._facts.run_id

    @property
    def started_at(self) -> str:
        """When the run began (ISO 8601, UTC), before any interruption."""
        return self._facts.started_at

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be asked, since `finish` has been done before."""
        return self._result is not None

    @property
    def ids_total(self) -> int:
        """Ids of the chunk, carried ones included; 0 in a scan."""
        return self._facts.ids

    @property
    def carried(self) -> int:
        """Resolved ids taken over from the former snapshot."""
        return self._facts.carried

    @property
    def batch_count(self) -> int:
        """Number of batches to ask; in a scan those written so far."""
        return len(self._finished) if self._facts.batches is None else self._facts.batches

    @property
    def finished_batches(self) -> set[int]:
        """The batches that are on disk and need not be asked (a copy)."""
        with self._lock:
            return set(self._finished)

    @property
    def partial_batches(self) -> set[int]:
        """The batches on disk of which failed ids are asked again (a copy)."""
        with self._lock:
            return set(self._partial)

    @property
    def missing_batches(self) -> list[int]:
        """The batches still to be asked, in order."""
        with self._lock:
            return [index for index in range(self._facts.batches or 0) if index not in self._finished]

    @property
    def counts(self) -> dict[str, int]:
        """Ids by status: carried ones and those of the batches on disk, without those that are asked again."""
        if self._result is not None:
            return dict(self._result.counts)
        with self._lock:
            return dict(self._totals)

    @property
    def batches_done(self) -> int:
        """Number of batches on disk that need not be asked again."""
        with self._lock:
            return len(self._finished)

    @property
    def last_batch_index(self) -> int:
        """The last batch of the unbroken row of finished ones from the first on; -1: none."""
        with self._lock:
            while self._unbroken in self._finished:
                self._unbroken += 1
            return self._unbroken - 1

    @property
    def pin(self) -> Pin | None:
        """The block of this run; None until `set_pin`."""
        return self._facts.pin

    def set_pin(self, pin: Pin) -> bool:
        """Fix the block of this run, durably, before the first batch.

        Rows of another deployment are never mixed into a snapshot: where the carried rows come from another one, this
        run asks all ids instead.

        Returns:
            Whether the plan of the batches stayed as it was.

        Raises:
            LedgerError: the run has another pin already.
        """
        if self._facts.pin is not None:
            if self._facts.pin == pin:
                return True
            raise LedgerError(f"run {self.run_id} is pinned to block {self._facts.pin.block_number} already")
        kept = True
        if self._facts.carried_snapshot is not None:
            former = self._files.finished()
            if former is None or former.pin.deployment != pin.deployment:
                self._files.log(
                    f"{self._files.partition}: the subgraph's deployment changed since the finished snapshot; "
                    "asking all ids"
                )
                self._totals["resolved"] -= self._facts.carried
                self._facts.carried_snapshot, self._facts.carried = None, 0
                self._facts.batches = self._plan.batches(self._facts.ids)
                self._remaining = None
                kept = False
        self._facts.pin = pin
        self.save_facts()
        return kept

    def save_facts(self) -> None:
        """Write run.json."""
        self._files.store.write(self._key("run.json"), self._facts.to_json().encode())

    def _key(self, name: str) -> str:
        return join(self._files.prefix, RUNNING, name)

    # -- batches

    def batches(self) -> list[Batch]:
        """The batches still to be asked (positions among the ids to ask)."""
        size, total = self._plan.batch_size, self._ids_to_ask_in_all()
        return [Batch(index, index * size, min((index + 1) * size, total)) for index in self.missing_batches]

    def _ids_to_ask_in_all(self) -> int:
        return self._facts.ids - self._facts.carried

    def ids_to_ask(self, index: int) -> list[str]:
        """The ids of a batch that are still to be asked: all of them, or those that failed before the interruption."""
        with self._lock:
            if index in self._finished:
                return []
            partial = index in self._partial
        return unpack_ids(self._failed_part(index)[0] if partial else self._packed(index))

    def _packed(self, index: int) -> bytes:
        size = self._plan.batch_size
        if self._facts.batches is None or not 0 <= index < self._facts.batches:
            raise LedgerError(f"there is no batch {index} in run {self.run_id}")
        if self._remaining is not None:
            return self._remaining.packed(index * size, (index + 1) * size)
        assert self._plan.chunk is not None  # noqa: S101
        return self._plan.chunk.packed(index * size, (index + 1) * size)

    def _failed_part(self, index: int) -> tuple[bytes, pa.Table]:
        """The failed ids of a batch on disk, and its rows."""
        import pyarrow.compute as pc

        _, _, table = self._files.read_batch(batch_name(index))
        failed = table.filter(pc.equal(table["status"], "failed"))
        return pack_ids(failed["condition_id"].to_pylist()), table

    def write_batch(self, index: int, table: pa.Table | pa.RecordBatch, note: str = "") -> None:
        """Store the rows of a batch; on disk when this returns, and counted only then. Safe from several threads.

        Args:
            index: the batch (in a scan: any new number).
            table: rows of `ledger_schema`, exactly the ids of `ids_to_ask` in their order.
            note: text kept with the batch.

        Raises:
            LedgerError: the rows are not those of the batch, or the run has no pin yet; nothing was written.
            StorageError: the place cannot be written; the batch does not count.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._facts.pin is None or self._result is not None:
            raise LedgerError(f"run {self.run_id} takes no batch: it has no pin yet, or is finished")
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        self._check_rows(index, table)
        with self._lock:
            if index in self._finished:
                raise LedgerError(f"batch {index} of run {self.run_id} is finished already")
            partial = index in self._partial
        if partial:
            _, former = self._failed_part(index)
            kept = former.filter(pc.not_equal(former["status"], "failed"))
            rows = self._in_order(index, pa.concat_tables([kept, table]))
        else:
            rows = table
        self._write(index, rows, note)
        with self._lock:
            self._finished.add(index)
            self._partial.discard(index)
            # Of a batch with failed ids the others were counted when it was loaded.
            self._add(counts_of(table), 1)
            if note:
                self.notes[index] = note

    def _add(self, counts: Mapping[str, int], sign: int) -> None:
        for status, count in counts.items():
            self._totals[status] += sign * count

    def ids_with_status(self, status: Status, without: Collection[int] = ()) -> Iterator[tuple[int, list[str]]]:
        """The ids of a status, batch by batch, of the batches on disk but ``without`` these.

        Raises:
            LedgerError: a batch was damaged meanwhile.
        """
        import pyarrow.compute as pc

        if not self._totals[status]:
            return
        for index in sorted(self.finished_batches.difference(without)):
            if status == "absent" and index in self._absent:
                yield index, unpack_ids(self._absent[index])
                continue
            _, _, table = self._files.read_batch(batch_name(index))
            yield index, table.filter(pc.equal(table["status"], status))["condition_id"].to_pylist()

    def amend(self, index: int, table: pa.Table) -> None:
        """Replace the rows of some ids of a batch on disk by those of a later answer at the same block.

        Args:
            index: a batch on disk.
            table: rows of `ledger_schema`; each id is one of the batch.

        Raises:
            LedgerError: the rows are not of this batch; nothing was written.
            StorageError: the place cannot be written; the batch is as it was.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        _, own, former = self._files.read_batch(batch_name(index))
        ids = table["condition_id"]
        _, fault = packed_rows(table)
        if fault is None and not pc.all(pc.is_in(ids, value_set=former["condition_id"].combine_chunks())).as_py():
            fault = "it has ids of another batch"
        if fault is None and len(set(ids.to_pylist())) != len(ids):
            fault = "it has an id twice"
        if fault is not None:
            raise LedgerError(f"batch {index} of {self._files.partition} is not amended: {fault}")
        kept = former.filter(pc.invert(pc.is_in(former["condition_id"], value_set=ids.combine_chunks())))
        merged = self._in_order(index, pa.concat_tables([kept, table]))
        self._write(index, merged, str(own.get("note") or ""))
        with self._lock:
            self._add(counts_of(former), -1)
            self._add(counts_of(merged), 1)

    def _in_order(self, index: int, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        position = {condition_id: at for at, condition_id in enumerate(table["condition_id"].to_pylist())}
        return table.take(pa.array([position[condition_id] for condition_id in unpack_ids(self._packed(index))]))

    def _write(self, index: int, table: pa.Table, note: str) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        own = json.dumps({"run": self._facts.to_json(), "batch": index, "note": note})
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({FACTS_KEY: own.encode()}), sink, **parquet_options(lasting=False))
        self._files.store.write(self._key(batch_name(index)), sink.getvalue().to_pybytes())
        self._absent[index] = pack_ids(table.filter(pc.equal(table["status"], "absent"))["condition_id"].to_pylist())

    def _check_rows(self, index: int, table: pa.Table) -> None:
        packed, fault = packed_rows(table)
        if fault is None and self._facts.batches is not None:
            with self._lock:
                partial = index in self._partial
            expected = self._failed_part(index)[0] if partial else self._packed(index)
            if packed != expected:
                fault = f"its {table.num_rows} ids are not the {len(expected) // ID_BYTES} asked, in their order"
        elif fault is None:
            fault = self._fault_in_scan(table)
        if fault is not None:
            raise LedgerError(f"batch {index} of {self._files.partition} is not stored: {fault}")

    def _fault_in_scan(self, table: pa.Table) -> str | None:
        ids = table["condition_id"].to_pylist()
        assert self._plan.prefixes is not None  # noqa: S101
        if any(not self._plan.prefixes.holds(condition_id) for condition_id in ids):
            return "it has ids outside of its range of prefixes"
        return None if len(set(ids)) == len(ids) else "it has an id twice"

    def load_batches(self) -> None:
        """Take over the batches on disk after an interruption; set aside what is damaged or of another run."""
        asked_again = 0
        for name in self._files.store.names(join(self._files.prefix, RUNNING)):
            match = BATCH_NAME.fullmatch(name)
            if name == "run.json":
                continue
            try:
                if match is None:
                    raise LedgerError("no file of a run")
                index = int(match[1])
                facts, own, table = self._files.read_batch(name)
                if facts.run_id != self.run_id or own.get("batch") != index or facts.pin is None:
                    raise LedgerError(f"it belongs to batch {own.get('batch')} of run {facts.run_id}")
                if self._facts.pin is not None and facts.pin != self._facts.pin:
                    raise LedgerError(f"it was asked at block {facts.pin.block_number} of {facts.pin.deployment}")
                self._check_rows(index, table)
            except LedgerError as error:
                self._files.set_aside(join(RUNNING, name), str(error))
                continue
            if self._facts.pin is None:  # an older run.json was put back; a batch is only written with a pin
                self._facts.pin = facts.pin
                self.save_facts()
            counts = counts_of(table)
            if own.get("note"):
                self.notes[index] = str(own["note"])
            if counts["failed"]:
                self._partial.add(index)
                asked_again += counts["failed"]
                counts["failed"] = 0
            else:
                self._finished.add(index)
            self._add(counts, 1)
        found = sum(self._totals.values())
        again = f"; {asked_again:,} failed ids are asked again" if asked_again else ""
        self._files.log(f"{self._files.partition}: {found:,} of {self._facts.ids:,} ids are on disk{again}")

    # -- the end

    def finish(self, stats: Mapping[str, Any] | None = None) -> SnapshotInfo:
        """Make all batches (and the carried rows) the finished snapshot, and remove the run.

        Args:
            stats: facts of the fetch to keep with it; JSON values.

        Raises:
            LedgerError: batches are missing, or one was damaged meanwhile (it is set aside; the next run asks it).
            StorageError: the place cannot be written; the run stays as it is.
        """
        if self._result is not None:
            return self._result
        pin = self._facts.pin
        missing = self.missing_batches
        if pin is None or missing:
            raise LedgerError(
                f"{self._files.partition} cannot be finished: {len(missing):,} of {self.batch_count:,} batches are "
                f"missing (first: {missing[:5]}); run it again: {self._files.repair}"
            )
        counts: Counter[str] = Counter(empty_counts())
        info: SnapshotInfo | None = None
        try:
            info = self._write_snapshot(pin, counts, dict(stats or {}))
        except _DamagedBatchError as error:
            self._files.set_aside(join(RUNNING, error.name), str(error))
            raise LedgerError(f"{error}; it was set aside, run again to ask it: {self._files.repair}") from error
        self._files.store.delete(join(self._files.prefix, RUNNING))
        self._result = info
        return info

    def _write_snapshot(self, pin: Pin, counts: Counter[str], stats: dict[str, Any]) -> SnapshotInfo:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = ledger_schema()
        hashes: list[NDArray[np.uint64]] = []
        with self._files.store.writing(self._files.snapshot_key) as file:
            writer = pq.ParquetWriter(file, schema, **parquet_options(lasting=True))
            try:
                waiting: list[pa.Table] = []
                rows = 0
                for table in self._all_rows():
                    counts.update(counts_of(table))
                    if self._facts.batches is None:
                        hashes.append(hash_ids(packed_column(table["condition_id"].combine_chunks())[0]))
                    waiting.append(table)
                    rows += table.num_rows
                    if rows >= ROWS_IN_GROUP:
                        writer.write_table(pa.concat_tables(waiting), row_group_size=rows)
                        waiting, rows = [], 0
                if waiting:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=max(rows, 1))
                total = sum(counts.values())
                self._check_total(total, hashes)
                info = SnapshotInfo(
                    snapshot_id=self.run_id,
                    partition=self._files.partition,
                    fingerprint=self._facts.fingerprint,
                    ids_sha256=self._plan.ids_sha256,
                    endpoint_sha256=self._plan.endpoint_sha256,
                    schema_kind=self._plan.schema_kind,
                    mode=self._plan.mode,
                    batch_size=self._plan.batch_size,
                    refetch=self._facts.refetch,
                    pin=pin,
                    started_at=self._facts.started_at,
                    finished_at=now(),
                    ids=total,
                    counts=dict(counts),
                    carried=self._facts.carried,
                    batches=self.batch_count,
                    stats=stats,
                )
                writer.add_key_value_metadata({FACTS_KEY: json.dumps(asdict(info)).encode()})
            finally:
                writer.close()
        return info

    def _all_rows(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        if self._facts.carried_snapshot is not None:
            for batch in self._files.read(statuses=["resolved"]):
                yield pa.Table.from_batches([batch])
        for index in sorted(self._finished):
            name = batch_name(index)
            try:
                facts, _, table = self._files.read_batch(name)
            except FileNotFoundError as error:
                raise LedgerError(
                    f"{self._key(name)} was removed while the run was going; run again: {self._files.repair}"
                ) from error
            except LedgerError as error:
                raise _DamagedBatchError(str(error), name, index) from error
            if facts.run_id != self.run_id:
                raise _DamagedBatchError(f"{name} belongs to another run", name, index)
            yield table

    def _check_total(self, total: int, hashes: list[NDArray[np.uint64]]) -> None:
        if self._facts.batches is not None:
            if total != self._facts.ids:
                raise LedgerError(
                    f"{self._files.partition}: {total:,} rows for {self._facts.ids:,} ids; "
                    f"run again: {self._files.repair}"
                )
            return
        import numpy as np

        if hashes and len(np.unique(np.concatenate(hashes))) != total:
            raise LedgerError(f"{self._files.partition}: the scan gave an id twice; run again: {self._files.repair}")

    def discard(self) -> None:
        """Give this run up, with its batches: its snapshot is lost (a moved deployment, a pruned block)."""
        self._files.store.delete(join(self._files.prefix, RUNNING))
        self._files.log(f"{self._files.partition}: gave up run {self.run_id} and its batches")


class _DamagedBatchError(Exception):
    """A batch changed on disk after it was written."""

    def __init__(self, message: str, name: str, index: int) -> None:
        super().__init__(message)
        self.name = name
        self.index = index
