"""What is known of each id: one row for every id of a chunk, in Parquet, safe against a crash at any point.

    goldsky_payouts/<partition>/ledger.parquet           the finished snapshot, each id once
    goldsky_payouts/<partition>/_running/run.json        the run that is going (or has died): plan, pin, totals
    goldsky_payouts/<partition>/_running/batch-00000.parquet
    goldsky_payouts/<partition>/_aside/…                 what was damaged or belongs to another plan

Parquet readers skip names that begin with an underscore, so reading the partition's directory gives the snapshot.
A batch is on disk before it counts. A finished run becomes the snapshot in one rename, under its run's id, so that a
death right after it is recognised and nothing counts twice. One writer at a time is the caller's business (locks.py).
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from payout_pipeline.conditions import (
    ID_BYTES,
    ID_DIGITS,
    Batch,
    Chunk,
    IdSpool,
    PrefixRange,
    hash_ids,
    pack_ids,
    unpack_ids,
)
from payout_pipeline.errors import LedgerError
from payout_pipeline.payouts import InvalidVector, Vector
from payout_pipeline.storage import LogLine, Store, join, open_store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

VERSION = 1
DIRECTORY = "goldsky_payouts"
SNAPSHOT = "ledger.parquet"
RUNNING = "_running"
ASIDE = "_aside"

Status = Literal["resolved", "unresolved", "absent", "invalid", "failed"]
STATUSES: tuple[Status, ...] = ("resolved", "unresolved", "absent", "invalid", "failed")
ERROR_STATUSES: tuple[Status, ...] = ("invalid", "failed")
_HEX_DIGITS = b"0123456789abcdef"

Refetch = Literal["all", "unresolved"]
Mode = Literal["list", "scan"]

_FACTS_KEY = b"payout_pipeline"
_BATCH_NAME = re.compile(r"batch-(\d{5,9})\.parquet")
_ROWS_IN_GROUP = 16_384
_KEPT_ASIDE = 5
_SAMPLE = 20
_VERIFIED_AT_ONCE = 1 << 18


def ledger_schema() -> pa.Schema:
    """The columns of a ledger.

    ``condition_id`` 64 lower-case hex digits; ``status`` one of STATUSES; ``payouts`` JSON text as answered; the vector
    in lowest terms; ``resolved_at`` from the subgraph, never the time of the fetch; ``block_number`` the pinned block;
    ``error`` the reason of ``invalid`` and ``failed``. Null where not applicable.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("condition_id", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("payouts", pa.string()),
            pa.field("payout_numerators", pa.list_(pa.uint64())),
            pa.field("payout_denominator", pa.uint64()),
            pa.field("winning_index", pa.int32()),
            pa.field("resolved_at", pa.timestamp("s", "UTC")),
            pa.field("block_number", pa.uint64()),
            pa.field("fetched_at", pa.timestamp("ms", "UTC")),
            pa.field("error", pa.string()),
        ]
    )


def __getattr__(name: str) -> Any:
    # A constant in use, without importing pyarrow in processes that never touch a ledger.
    if name == "LEDGER_SCHEMA":
        return ledger_schema()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def rows_from_answer(
    asked: Sequence[str],
    answered: Mapping[str, Vector | InvalidVector | None],
    *,
    raw: Mapping[str, str | None],
    block_number: int,
    fetched_at: datetime,
    resolved_at: Mapping[str, int | None] | None = None,
    failed: Mapping[str, str] | None = None,
) -> pa.Table:
    """The ledger rows of one batch, in the order asked.

    Args:
        asked: the ids of the batch.
        answered: what the subgraph said of each id that it knows; ids missing here and in ``failed`` are ``absent``.
        raw: the payouts as answered, as JSON text.
        block_number: the pinned block.
        fetched_at: when the answer came; an aware datetime.
        resolved_at: seconds since 1970 by id, where the subgraph has a resolution time.
        failed: the last error by id, of ids that got no answer.

    Returns:
        A table of `ledger_schema` with one row an id.
    """
    import pyarrow as pa

    times = resolved_at or {}
    faults = failed or {}
    statuses: list[str] = []
    payouts: list[str | None] = []
    numerators: list[tuple[int, ...] | None] = []
    denominators: list[int | None] = []
    winners: list[int | None] = []
    seconds: list[int | None] = []
    errors: list[str | None] = []
    for condition_id in asked:
        vector: Vector | InvalidVector | None = None
        error: str | None = None
        if condition_id in faults:
            status, error = "failed", faults[condition_id] or "no answer"
        elif condition_id not in answered:
            status = "absent"
        else:
            vector = answered[condition_id]
            status = "unresolved"
        if type(vector) is Vector:
            statuses.append("resolved")
            numerators.append(vector.numerators)
            denominators.append(vector.denominator)
            winners.append(vector.winning_index)
            seconds.append(times.get(condition_id))
        else:
            if isinstance(vector, InvalidVector):
                status, error = "invalid", vector.reason
            statuses.append(status)
            numerators.append(None)
            denominators.append(None)
            winners.append(None)
            seconds.append(None)
        payouts.append(raw.get(condition_id) if error is None or status == "invalid" else None)
        errors.append(error)
    schema = ledger_schema()
    count = len(statuses)
    columns: list[Any] = [
        list(asked), statuses, payouts, numerators, denominators, winners, seconds,
        pa.repeat(pa.scalar(block_number, pa.uint64()), count),
        pa.repeat(pa.scalar(fetched_at, pa.timestamp("ms", "UTC")), count),
        errors,
    ]  # fmt: skip
    arrays = [
        pa.array(values, type=kind.type) if isinstance(values, list) else values
        for values, kind in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


# ------------------------------------------------------------------------------------------------------------ plans


@dataclass(frozen=True)
class Pin:
    """The block that every batch of a run asks, and the deployment that answers."""

    block_number: int
    deployment: str
    kind: Literal["number", "number_gte"] = "number"
    head_number: int | None = None
    head_timestamp: int | None = None
    has_indexing_errors: bool = False


@dataclass(frozen=True)
class RunPlan:
    """What a run is to ask. Two runs with equal fingerprints ask the same batches."""

    endpoint: str
    batch_size: int
    schema_kind: str
    chunk: Chunk | None = None
    """The ids, in ``list`` mode."""
    prefixes: PrefixRange | None = None
    """The range of ids, in ``scan`` mode."""
    mode: Mode = "list"
    refetch: Refetch = "all"
    """``unresolved`` carries the resolved rows of the finished snapshot over and asks the other ids only."""

    def __post_init__(self) -> None:
        if (self.mode == "list") != (self.chunk is not None) or (self.mode == "scan") != (self.prefixes is not None):
            raise ValueError("a list has a chunk, a scan has a range of prefixes")

    @property
    def ids_sha256(self) -> str:
        """Of the ids asked (list), or of the range (scan)."""
        if self.chunk is not None:
            return self.chunk.sha256
        assert self.prefixes is not None  # noqa: S101
        return hashlib.sha256(f"{self.prefixes.first}-{self.prefixes.stop}".encode()).hexdigest()

    @property
    def endpoint_sha256(self) -> str:
        """Stands for the endpoint on disk, since its URL may carry a key."""
        return hashlib.sha256(self.endpoint.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what a batch asks: ids, endpoint, batch size, schema, mode, version."""
        parts = [self.ids_sha256, self.endpoint, self.batch_size, self.schema_kind, self.mode, VERSION]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class SnapshotInfo:
    """The facts of a finished snapshot, kept in the footer of its file."""

    snapshot_id: str
    partition: str
    fingerprint: str
    ids_sha256: str
    endpoint_sha256: str
    schema_kind: str
    mode: str
    batch_size: int
    refetch: str
    pin: Pin
    started_at: str
    finished_at: str
    ids: int
    counts: dict[str, int]
    carried: int
    """Rows taken over from the former snapshot instead of asked."""
    batches: int
    stats: dict[str, Any] = field(default_factory=dict)
    """What the fetch wants to be remembered: requests, retries, waits."""
    version: int = VERSION

    @property
    def payouts_found(self) -> int:
        """Number of resolved ids."""
        return self.counts["resolved"]

    @property
    def errors(self) -> int:
        """Number of failed and invalid ids."""
        return sum(self.counts[status] for status in ERROR_STATUSES)


@dataclass(frozen=True)
class RunningInfo:
    """The facts of a run that is going or has died, without reading its batches."""

    run_id: str
    fingerprint: str
    refetch: str
    started_at: str
    ids: int
    carried: int
    batches: int | None
    batches_written: int
    pin: Pin | None


@dataclass(frozen=True)
class Accounting:
    """How the ledger's ids compare with the chunk's: exact counts, and the first 20 ids of each kind of difference."""

    expected: int
    rows: int
    missing: int
    extra: int
    duplicated: int
    """Rows beyond the first of an id."""
    counts: dict[str, int]
    missing_sample: list[str] = field(default_factory=list)
    extra_sample: list[str] = field(default_factory=list)
    duplicated_sample: list[str] = field(default_factory=list)

    @property
    def closes(self) -> bool:
        """Whether each id of the chunk is there once and no other."""
        return not (self.missing or self.extra or self.duplicated) and sum(self.counts.values()) == self.expected


@dataclass
class _Facts:
    """run.json; also inside each batch, so that it can be made again from any of them."""

    run_id: str
    fingerprint: str
    refetch: str
    started_at: str
    ids: int
    carried_snapshot: str | None
    carried: int
    batches: int | None
    pin: Pin | None
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes | str) -> _Facts:
        """Raises ValueError where the text is anything but what `to_json` writes."""
        try:
            fields = json.loads(text)
            pin = fields.pop("pin")
            facts = cls(pin=None if pin is None else _pin_from(pin), **fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not the facts of a run: {error}") from error
        texts = (facts.run_id, facts.fingerprint, facts.refetch, facts.started_at)
        numbers = (facts.ids, facts.carried, 0 if facts.batches is None else facts.batches)
        if (
            facts.version != VERSION
            or not all(isinstance(value, str) and value for value in texts)
            or not all(type(value) is int and 0 <= value < 2**53 for value in numbers)
            or not (facts.carried_snapshot is None or isinstance(facts.carried_snapshot, str))
        ):
            raise ValueError("not the facts of a run of this version")
        return facts


def _pin_from(fields: Any) -> Pin:
    pin = Pin(**fields)
    if type(pin.block_number) is not int or pin.block_number < 0 or not isinstance(pin.deployment, str):
        raise ValueError("not a pin")
    return pin


def _now() -> str:
    # With an offset instead of a Z, which fromisoformat of Python 3.10 does not read.
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _no_log(line: str) -> None:
    """For callers that do not listen."""


def _empty_counts() -> dict[str, int]:
    return dict.fromkeys(STATUSES, 0)


# ----------------------------------------------------------------------------------------------------------- ledger


class Ledger:
    """The ledger of one partition.

    Args:
        root: the runtime directory (path, URL or store).
        partition: the partition's key.
        log: told, in one line each, what was set aside, resumed or left out.
    """

    def __init__(self, root: Store | Path | str, partition: str, log: LogLine | None = None) -> None:
        self.store = root if isinstance(root, Store) else open_store(root)
        self.partition = partition
        self.prefix = join(DIRECTORY, partition)
        self._log = log or _no_log

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

    # -- reading

    def finished(self) -> SnapshotInfo | None:
        """The facts of the finished snapshot, from the footer of its file; None if there is none or it is damaged.

        Damage is logged; only `start` sets the file aside.
        """
        try:
            return self._finished()
        except LedgerError as error:
            self._log(str(error))
            return None

    def _finished(self) -> SnapshotInfo | None:
        import pyarrow.parquet as pq

        try:
            file = self.store.reading(self.snapshot_key)
        except FileNotFoundError:
            return None
        with file:
            try:
                footer = pq.read_metadata(file)
                fields = json.loads(footer.metadata[_FACTS_KEY])
                info = SnapshotInfo(**{**fields, "pin": _pin_from(fields["pin"])})
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
                for batch in parquet.iter_batches(_ROWS_IN_GROUP, columns=needed, use_threads=False):
                    part = pa.Table.from_batches([batch])
                    if chosen is not None:
                        part = part.filter(pc.is_in(part["status"], chosen))
                    yield from part.select(wanted).cast(target).to_batches()
            except _damage() as error:
                raise self._damaged(error) from error

    def failures(self, limit: int = _SAMPLE) -> list[tuple[str, str, str]]:
        """The first failed and invalid ids of the finished snapshot: (id, status, error)."""
        found: list[tuple[str, str, str]] = []
        for batch in self.read(["condition_id", "status", "error"], ERROR_STATUSES):
            for row in batch.slice(0, limit - len(found)).to_pylist():
                found.append((row["condition_id"], row["status"], row["error"] or ""))
            if len(found) >= limit:
                break
        return found

    def verify(self, chunk: Chunk, *, all_columns: bool = False) -> Accounting:
        """Compare the ids of the finished snapshot with those of the chunk, exactly.

        Args:
            chunk: the ids that have to be there once each.
            all_columns: read the other columns too, to find damage in them.

        Raises:
            LedgerError: there is no finished snapshot, or it is damaged.
        """
        counts: Counter[str] = Counter(_empty_counts())
        digest = hashlib.sha256()
        odd: list[str] = []
        spool = IdSpool()
        try:
            for batch in self.read(None if all_columns else ["condition_id", "status"]):
                counts.update({row["values"]: row["counts"] for row in batch.column(1).value_counts().to_pylist()})
                packed, strange = _packed_column(batch.column(0))
                digest.update(packed)
                spool.extend(packed)
                odd.extend(strange)
            spool.flush()
            if not odd and len(spool) == chunk.count and digest.hexdigest() == chunk.sha256:
                # The same ids in the same order; distinct, since the chunk's are.
                return Accounting(chunk.count, chunk.count, 0, 0, 0, dict(counts))
            return _compare(chunk, spool, odd, dict(counts))
        finally:
            spool.close()

    def running(self) -> RunningInfo | None:
        """The run that is going or has died, from run.json and the names of its batches; None if there is none."""
        try:
            facts = _Facts.from_json(self.store.read(join(self.prefix, RUNNING, "run.json")))
        except (FileNotFoundError, ValueError):
            return None
        written = sum(1 for name in self.store.names(join(self.prefix, RUNNING)) if _BATCH_NAME.fullmatch(name))
        return RunningInfo(
            facts.run_id, facts.fingerprint, facts.refetch, facts.started_at, facts.ids, facts.carried,
            facts.batches, written, facts.pin,
        )  # fmt: skip

    def remove(self) -> None:
        """Remove all that is known of this partition: the snapshot, the run, and what was set aside."""
        self.store.delete(self.prefix)

    # -- writing

    def start(self, plan: RunPlan, *, reuse_finished: bool = False) -> RunningLedger:
        """Go on with the run that died, if it has this plan; otherwise begin a new one.

        Args:
            plan: what is to be asked.
            reuse_finished: take a finished snapshot of the same fingerprint as this run's result instead of asking
                anew. For a caller that finds a snapshot which nobody has recorded as delivered.

        Raises:
            StorageError: the place cannot be written.
        """
        self.store.clean(self.prefix, self._log)
        self.store.clean(join(self.prefix, RUNNING), self._log)
        finished = self._finished_or_aside()
        facts = self._facts_of_the_run()
        if facts is not None and finished is not None and facts.run_id == finished.snapshot_id:
            # It died between putting the snapshot into place and removing its batches.
            self._log(f"{self.partition}: removed the batches of run {facts.run_id}, whose snapshot is complete")
            self.store.delete(join(self.prefix, RUNNING))
            facts = None
        if (
            reuse_finished
            and finished is not None
            and finished.fingerprint == plan.fingerprint
            and self._is_whole(plan)
        ):
            if facts is None:
                self._clear_running()
            self._log(f"{self.partition}: took the finished snapshot {finished.snapshot_id}, not delivered yet")
            return RunningLedger._of_finished(self, plan, finished)
        if facts is not None:
            reason = _why_other_plan(facts, plan, finished)
            if reason is not None:
                self._set_aside(RUNNING, f"the run that died {reason}", "superseded")
                facts = None
        remaining: IdSpool | None = None
        if facts is not None and facts.carried_snapshot is not None:
            if self._is_whole(plan):
                remaining = self._ids_not_resolved()
            if remaining is None or len(remaining) != facts.ids - facts.carried:
                self._set_aside(RUNNING, "the snapshot that it carries rows of is damaged", "superseded")
                facts = None
        if facts is None:
            return self._begin(plan, finished)
        self._log(f"{self.partition}: resuming run {facts.run_id} of {facts.started_at}")
        running = RunningLedger(self, plan, facts, remaining)
        running._load_batches()
        return running

    def _begin(self, plan: RunPlan, finished: SnapshotInfo | None) -> RunningLedger:
        carried_snapshot, carried, remaining = self._carry(plan, finished)
        total = 0 if plan.chunk is None else plan.chunk.count
        asked = total if remaining is None else len(remaining)
        facts = _Facts(
            run_id=uuid4().hex,
            fingerprint=plan.fingerprint,
            refetch=plan.refetch,
            started_at=_now(),
            ids=total,
            carried_snapshot=carried_snapshot,
            carried=carried,
            batches=None if plan.chunk is None else -(-asked // plan.batch_size),
            pin=None,
        )
        self._clear_running()
        running = RunningLedger(self, plan, facts, remaining)
        running._save_facts()
        return running

    def _clear_running(self) -> None:
        """Make room for a run; what cannot be recognised is kept aside."""
        if self.store.names(join(self.prefix, RUNNING)):
            self._set_aside(RUNNING, "it holds no run that can be recognised")
        elif self.store.exists(join(self.prefix, RUNNING)):
            self.store.delete(join(self.prefix, RUNNING))

    def _carry(self, plan: RunPlan, finished: SnapshotInfo | None) -> tuple[str | None, int, IdSpool | None]:
        """The former snapshot to carry resolved rows from, their number, and the ids that remain to be asked."""
        if plan.refetch != "unresolved" or plan.chunk is None:
            return None, 0, None
        if finished is None:
            self._log(f"{self.partition}: there is no finished snapshot to refresh; asking all ids")
            return None, 0, None
        same = (
            finished.ids_sha256 == plan.ids_sha256
            and finished.endpoint_sha256 == plan.endpoint_sha256
            and finished.schema_kind == plan.schema_kind
            and finished.mode == plan.mode
        )
        if not same:
            self._log(f"{self.partition}: the finished snapshot has other ids, endpoint or schema; asking all ids")
            return None, 0, None
        if not self._is_whole(plan):
            return None, 0, None
        remaining = self._ids_not_resolved()
        carried = plan.chunk.count - len(remaining)
        self._log(f"{self.partition}: carrying {carried:,} resolved ids over, asking the other {len(remaining):,}")
        return finished.snapshot_id, carried, remaining

    def _is_whole(self, plan: RunPlan) -> bool:
        """Whether the finished snapshot can be read to its end and has each id of the plan; set aside if not."""
        try:
            if plan.chunk is None:
                for _ in self.read():
                    pass
            elif not self.verify(plan.chunk, all_columns=True).closes:
                raise LedgerError(f"{self.place} does not hold each id of the input once")
        except LedgerError as error:
            if self.store.exists(self.snapshot_key):
                self._set_aside(SNAPSHOT, str(error))
            return False
        return True

    def _ids_not_resolved(self) -> IdSpool:
        spool = IdSpool()
        for batch in self.read(["condition_id"], [status for status in STATUSES if status != "resolved"]):
            spool.extend(_packed_column(batch.column(0))[0])
        spool.flush()
        return spool

    def _finished_or_aside(self) -> SnapshotInfo | None:
        try:
            return self._finished()
        except LedgerError as error:
            self._set_aside(SNAPSHOT, str(error))
            return None

    def _facts_of_the_run(self) -> _Facts | None:
        """run.json; made again from a batch where it is damaged or missing."""
        key = join(self.prefix, RUNNING, "run.json")
        try:
            return _Facts.from_json(self.store.read(key))
        except FileNotFoundError:
            pass
        except ValueError as error:
            self._set_aside(join(RUNNING, "run.json"), str(error))
        for name in self.store.names(join(self.prefix, RUNNING)):
            if not _BATCH_NAME.fullmatch(name):
                continue
            try:
                facts, _, _ = self._read_batch(name)
            except LedgerError:
                continue  # it is set aside when the batches are loaded
            self._log(f"{self.partition}: run.json was damaged or missing; made it again from {name}")
            self.store.write(key, facts.to_json().encode())
            return facts
        return None

    def _read_batch(self, name: str) -> tuple[_Facts, dict[str, Any], pa.Table]:
        """The run's facts, the batch's own and its rows; LedgerError where it is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = self.store.read(join(self.prefix, RUNNING, name))
        try:
            # Without threads: handing a thousand rows to other threads costs more than reading them.
            table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
            own = json.loads(table.schema.metadata[_FACTS_KEY])
            facts = _Facts.from_json(own["run"])
            table = table.replace_schema_metadata(None).cast(ledger_schema())
            table.validate(full=True)
        except _damage() as error:
            raise LedgerError(f"{name} is damaged ({type(error).__name__}: {str(error)[:200]!a})") from error
        return facts, own, table

    def _set_aside(self, name: str, reason: str, kind: str = "corrupt") -> None:
        """Keep a file or directory of this partition out of the way, loudly; the oldest of what is kept goes."""
        aside = join(self.prefix, ASIDE)
        stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        target = join(aside, f"{name.rpartition('/')[2]}.{kind}-{stamp}")
        self.store.move(join(self.prefix, name), target)
        self._log(f"{self.partition}: SET ASIDE {name} as {self.store.describe(target)}: {reason}")
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


def _why_other_plan(facts: _Facts, plan: RunPlan, finished: SnapshotInfo | None) -> str | None:
    """Why the run that died cannot be gone on with; None if it can."""
    if facts.fingerprint != plan.fingerprint:
        return "had other ids, another endpoint, batch size, schema or mode"
    if facts.refetch != plan.refetch:
        return f"was to ask {facts.refetch} ids, this one {plan.refetch}"
    if facts.carried_snapshot is not None and (finished is None or finished.snapshot_id != facts.carried_snapshot):
        return "carried rows of a snapshot that is not there any more"
    total = 0 if plan.chunk is None else plan.chunk.count
    expected = None if plan.chunk is None else -(-(total - facts.carried) // plan.batch_size)
    if facts.ids != total or facts.batches != expected or facts.carried > total:
        return "has totals that do not fit its ids"
    return None


class RunningLedger:
    """A run that is going: batches are written as their answers come, in any order and from several threads."""

    def __init__(self, ledger: Ledger, plan: RunPlan, facts: _Facts, remaining: IdSpool | None) -> None:
        self._ledger = ledger
        self._plan = plan
        self._facts = facts
        self._remaining = remaining
        self._lock = threading.Lock()
        self._finished: set[int] = set()
        self._partial: set[int] = set()
        self._totals = _empty_counts()
        self._totals["resolved"] = facts.carried
        self._unbroken = 0
        self._result: SnapshotInfo | None = None
        # Of the batches that this process wrote; they are asked again, and need not be read from disk for that.
        self._absent: dict[int, bytes] = {}
        self.notes: dict[int, str] = {}
        """What the writer noted with each batch (a scan: where it stands)."""

    @classmethod
    def _of_finished(cls, ledger: Ledger, plan: RunPlan, finished: SnapshotInfo) -> RunningLedger:
        total = 0 if plan.chunk is None else plan.chunk.count
        facts = _Facts(
            finished.snapshot_id, finished.fingerprint, finished.refetch, finished.started_at, total, None,
            finished.carried, finished.batches, finished.pin,
        )  # fmt: skip
        running = cls(ledger, plan, facts, None)
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
            former = self._ledger.finished()
            if former is None or former.pin.deployment != pin.deployment:
                self._ledger._log(
                    f"{self._ledger.partition}: the subgraph's deployment changed since the finished snapshot; "
                    "asking all ids"
                )
                self._totals["resolved"] -= self._facts.carried
                self._facts.carried_snapshot, self._facts.carried = None, 0
                self._facts.batches = -(-self._facts.ids // self._plan.batch_size)
                self._remaining = None
                kept = False
        self._facts.pin = pin
        self._save_facts()
        return kept

    def _save_facts(self) -> None:
        self._ledger.store.write(self._key("run.json"), self._facts.to_json().encode())

    def _key(self, name: str) -> str:
        return join(self._ledger.prefix, RUNNING, name)

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

        _, _, table = self._ledger._read_batch(_batch_name(index))
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
            self._add(_counts_of(table), 1)
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
            _, _, table = self._ledger._read_batch(_batch_name(index))
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

        _, own, former = self._ledger._read_batch(_batch_name(index))
        ids = table["condition_id"]
        _, fault = _packed_rows(table)
        if fault is None and not pc.all(pc.is_in(ids, value_set=former["condition_id"].combine_chunks())).as_py():
            fault = "it has ids of another batch"
        if fault is None and len(set(ids.to_pylist())) != len(ids):
            fault = "it has an id twice"
        if fault is not None:
            raise LedgerError(f"batch {index} of {self._ledger.partition} is not amended: {fault}")
        kept = former.filter(pc.invert(pc.is_in(former["condition_id"], value_set=ids.combine_chunks())))
        merged = self._in_order(index, pa.concat_tables([kept, table]))
        self._write(index, merged, str(own.get("note") or ""))
        with self._lock:
            self._add(_counts_of(former), -1)
            self._add(_counts_of(merged), 1)

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
        pq.write_table(
            table.replace_schema_metadata({_FACTS_KEY: own.encode()}), sink, **_parquet_options(lasting=False)
        )
        self._ledger.store.write(self._key(_batch_name(index)), sink.getvalue().to_pybytes())
        self._absent[index] = pack_ids(table.filter(pc.equal(table["status"], "absent"))["condition_id"].to_pylist())

    def _check_rows(self, index: int, table: pa.Table) -> None:
        packed, fault = _packed_rows(table)
        if fault is None and self._facts.batches is not None:
            with self._lock:
                partial = index in self._partial
            expected = self._failed_part(index)[0] if partial else self._packed(index)
            if packed != expected:
                fault = f"its {table.num_rows} ids are not the {len(expected) // ID_BYTES} asked, in their order"
        elif fault is None:
            fault = self._fault_in_scan(table)
        if fault is not None:
            raise LedgerError(f"batch {index} of {self._ledger.partition} is not stored: {fault}")

    def _fault_in_scan(self, table: pa.Table) -> str | None:
        ids = table["condition_id"].to_pylist()
        assert self._plan.prefixes is not None  # noqa: S101
        if any(not self._plan.prefixes.holds(condition_id) for condition_id in ids):
            return "it has ids outside of its range of prefixes"
        return None if len(set(ids)) == len(ids) else "it has an id twice"

    def _load_batches(self) -> None:
        """Take over the batches on disk after an interruption; set aside what is damaged or of another run."""
        asked_again = 0
        for name in self._ledger.store.names(join(self._ledger.prefix, RUNNING)):
            match = _BATCH_NAME.fullmatch(name)
            if name == "run.json":
                continue
            try:
                if match is None:
                    raise LedgerError("no file of a run")
                index = int(match[1])
                facts, own, table = self._ledger._read_batch(name)
                if facts.run_id != self.run_id or own.get("batch") != index or facts.pin is None:
                    raise LedgerError(f"it belongs to batch {own.get('batch')} of run {facts.run_id}")
                if self._facts.pin is not None and facts.pin != self._facts.pin:
                    raise LedgerError(f"it was asked at block {facts.pin.block_number} of {facts.pin.deployment}")
                self._check_rows(index, table)
            except LedgerError as error:
                self._ledger._set_aside(join(RUNNING, name), str(error))
                continue
            if self._facts.pin is None:  # an older run.json was put back; a batch is only written with a pin
                self._facts.pin = facts.pin
                self._save_facts()
            counts = _counts_of(table)
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
        self._ledger._log(f"{self._ledger.partition}: {found:,} of {self._facts.ids:,} ids are on disk{again}")

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
                f"{self._ledger.partition} cannot be finished: {len(missing):,} of {self.batch_count:,} batches are "
                f"missing (first: {missing[:5]}); run it again: {self._ledger.repair}"
            )
        counts: Counter[str] = Counter(_empty_counts())
        info: SnapshotInfo | None = None
        try:
            info = self._write_snapshot(pin, counts, dict(stats or {}))
        except _DamagedBatchError as error:
            self._ledger._set_aside(join(RUNNING, error.name), str(error))
            raise LedgerError(f"{error}; it was set aside, run again to ask it: {self._ledger.repair}") from error
        self._ledger.store.delete(join(self._ledger.prefix, RUNNING))
        self._result = info
        return info

    def _write_snapshot(self, pin: Pin, counts: Counter[str], stats: dict[str, Any]) -> SnapshotInfo:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = ledger_schema()
        hashes: list[NDArray[np.uint64]] = []
        with self._ledger.store.writing(self._ledger.snapshot_key) as file:
            writer = pq.ParquetWriter(file, schema, **_parquet_options(lasting=True))
            try:
                waiting: list[pa.Table] = []
                rows = 0
                for table in self._all_rows():
                    counts.update(_counts_of(table))
                    if self._facts.batches is None:
                        hashes.append(hash_ids(_packed_column(table["condition_id"].combine_chunks())[0]))
                    waiting.append(table)
                    rows += table.num_rows
                    if rows >= _ROWS_IN_GROUP:
                        writer.write_table(pa.concat_tables(waiting), row_group_size=rows)
                        waiting, rows = [], 0
                if waiting:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=max(rows, 1))
                total = sum(counts.values())
                self._check_total(total, hashes)
                info = SnapshotInfo(
                    snapshot_id=self.run_id,
                    partition=self._ledger.partition,
                    fingerprint=self._facts.fingerprint,
                    ids_sha256=self._plan.ids_sha256,
                    endpoint_sha256=self._plan.endpoint_sha256,
                    schema_kind=self._plan.schema_kind,
                    mode=self._plan.mode,
                    batch_size=self._plan.batch_size,
                    refetch=self._facts.refetch,
                    pin=pin,
                    started_at=self._facts.started_at,
                    finished_at=_now(),
                    ids=total,
                    counts=dict(counts),
                    carried=self._facts.carried,
                    batches=self.batch_count,
                    stats=stats,
                )
                writer.add_key_value_metadata({_FACTS_KEY: json.dumps(asdict(info)).encode()})
            finally:
                writer.close()
        return info

    def _all_rows(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        if self._facts.carried_snapshot is not None:
            for batch in self._ledger.read(statuses=["resolved"]):
                yield pa.Table.from_batches([batch])
        for index in sorted(self._finished):
            name = _batch_name(index)
            try:
                facts, _, table = self._ledger._read_batch(name)
            except FileNotFoundError as error:
                raise LedgerError(
                    f"{self._key(name)} was removed while the run was going; run again: {self._ledger.repair}"
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
                    f"{self._ledger.partition}: {total:,} rows for {self._facts.ids:,} ids; "
                    f"run again: {self._ledger.repair}"
                )
            return
        import numpy as np

        if hashes and len(np.unique(np.concatenate(hashes))) != total:
            raise LedgerError(f"{self._ledger.partition}: the scan gave an id twice; run again: {self._ledger.repair}")

    def discard(self) -> None:
        """Give this run up, with its batches: its snapshot is lost (a moved deployment, a pruned block)."""
        self._ledger.store.delete(join(self._ledger.prefix, RUNNING))
        self._ledger._log(f"{self._ledger.partition}: gave up run {self.run_id} and its batches")


class _DamagedBatchError(Exception):
    """A batch changed on disk after it was written."""

    def __init__(self, message: str, name: str, index: int) -> None:
        super().__init__(message)
        self.name = name
        self.index = index


def _batch_name(index: int) -> str:
    return f"batch-{index:05d}.parquet"


def _parquet_options(*, lasting: bool) -> dict[str, Any]:
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


# ---------------------------------------------------------------------------------------------------------- columns


def _counts_of(table: pa.Table) -> dict[str, int]:
    counts = _empty_counts()
    for row in table["status"].combine_chunks().value_counts().to_pylist():
        counts[row["values"]] += row["counts"]
    return counts


def _packed_column(column: Any) -> tuple[bytes, list[str]]:
    """The ids of a string column, packed, and those that are no normalised ids (left out of the first)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    plain = _packed_if_plain(column)
    if plain is not None:
        return plain, []
    good = pc.fill_null(pc.match_substring_regex(column, r"\A[0-9a-f]{64}\z"), False)
    odd = [str(value) for value in column.filter(pc.invert(good)).to_pylist()]
    return _packed_if_plain(column.filter(good)) or b"", odd


def _packed_if_plain(column: Any) -> bytes | None:
    """The ids of a string array, packed; None where one of them is no normalised id."""
    import numpy as np

    if column.null_count:
        return None
    if not len(column):
        return b""
    _, places, digits = column.buffers()
    ends = np.frombuffer(places, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    if not bool((np.diff(ends) == ID_DIGITS).all()):
        return None
    # All lengths are 64, so the digits lie one after the other from the first value's place on.
    text = digits.slice(int(ends[0]), ID_DIGITS * len(column)).to_pybytes()
    return None if text.translate(None, _HEX_DIGITS) else binascii.unhexlify(text)


def _packed_rows(table: pa.Table) -> tuple[bytes, str | None]:
    """The ids of a table, packed, and why its rows cannot be rows of a ledger (None: they can)."""
    if not table.schema.remove_metadata().equals(ledger_schema()):
        return b"", f"its columns are {', '.join(f'{item.name} {item.type}' for item in table.schema)}"[:500]
    packed, odd = _packed_column(table["condition_id"])
    if odd:
        return packed, f"{len(odd)} ids are not 64 lower-case hex digits, the first is {odd[0][:80]!a}"
    return packed, _fault_in_rows(table)


def _fault_in_rows(table: pa.Table) -> str | None:
    """What in the columns beside the id cannot be in a ledger; None if all of it can."""
    import numpy as np
    import pyarrow.compute as pc

    status = table["status"].combine_chunks()
    if status.null_count or not set(status.unique().to_pylist()) <= set(STATUSES):
        return f"a status is none of {', '.join(STATUSES)}"
    for name in ("block_number", "fetched_at"):  # a damaged footer can take a whole column away
        if table[name].null_count:
            return f"{name} has to be there for every id"
    resolved = pc.equal(status, "resolved")

    def is_there(name: str) -> Any:
        return pc.is_valid(table[name].combine_chunks())

    for name in ("payout_numerators", "payout_denominator", "winning_index"):
        if not is_there(name).equals(resolved):
            return f"{name} has to be there for resolved ids and for no others"
    if not is_there("error").equals(pc.or_(*(pc.equal(status, name) for name in ERROR_STATUSES))):
        return "error has to be there for invalid and failed ids and for no others"
    vectors = table["payout_numerators"].combine_chunks().filter(resolved)
    if not len(vectors):
        return None
    lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)
    if int(lengths.min()) < 1:
        return "a vector is empty"
    flat = vectors.flatten()
    if flat.null_count:
        return "a numerator is null"
    values = flat.to_numpy(zero_copy_only=False)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    # In two halves, since a sum of UInt64 wraps without a word.
    low = np.add.reduceat(values & np.uint64(0xFFFFFFFF), starts)
    high = np.add.reduceat(values >> np.uint64(32), starts) + (low >> np.uint64(32))
    if int(high.max()) >= 2**32:
        return "a vector's numerators sum to more than 2^64-1"
    sums = (high << np.uint64(32)) + (low & np.uint64(0xFFFFFFFF))
    denominators = table["payout_denominator"].combine_chunks().filter(resolved).to_numpy(zero_copy_only=False)
    if not bool((sums == denominators).all()) or int(denominators.min()) < 1:
        return "a vector's numerators do not sum to its denominator"
    return None


def _compare(chunk: Chunk, stored: IdSpool, odd: list[str], counts: dict[str, int]) -> Accounting:
    """Exact comparison of two sets of ids, a portion of the hash space at a time."""
    import numpy as np

    portions = max(1, -(-max(chunk.count, len(stored)) // _VERIFIED_AT_ONCE))
    missing = duplicated = 0
    extra = len(odd)
    samples: dict[str, list[str]] = {"missing": [], "extra": [repr(text[:80]) for text in odd[:_SAMPLE]], "twice": []}

    def part(blocks: Callable[[], Iterator[bytes]], portion: int) -> NDArray[np.bytes_]:
        chosen = [
            np.frombuffer(block, dtype="S32")[hash_ids(block) % np.uint64(portions) == portion] for block in blocks()
        ]
        return np.concatenate(chosen) if chosen else np.empty(0, dtype="S32")

    def note(kind: str, ids: NDArray[np.bytes_]) -> None:
        room = _SAMPLE - len(samples[kind])
        if room > 0:
            samples[kind].extend(unpack_ids(np.ascontiguousarray(ids[:room]).tobytes()))

    for portion in range(portions):
        wanted = part(chunk.blocks, portion)
        have, times = np.unique(part(stored.blocks, portion), return_counts=True)
        lost = wanted[~np.isin(wanted, have)]
        more = have[~np.isin(have, wanted)]
        twice = have[times > 1]
        missing += len(lost)
        extra += len(more)
        duplicated += int((times - 1).sum())
        note("missing", lost)
        note("extra", more)
        note("twice", twice)
    return Accounting(
        chunk.count, len(stored) + len(odd), missing, extra, duplicated, counts,
        samples["missing"], samples["extra"], samples["twice"],
    )  # fmt: skip
