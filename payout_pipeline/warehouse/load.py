"""Bringing the target table to what the ledger says, and saying exactly where the two differ.

The stored rows are the truth: every load compares with them first, writes only what is new or changed, and compares
again. No marker is believed, so a load can be repeated at will and a lost answer of an insert is settled by looking.

What is written is only ever of source ``goldsky-api``. Where the table keeps one row per condition whatever its
source, a row of another source is never overwritten: with the same vector the condition counts as *held*, with a
different one as a *conflict*, which the comparison reports as a failure.
"""

from __future__ import annotations

import gc
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import IncompleteError, WarehousePermanentError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.faults import ClickHouseRefusedError, Fault
from payout_pipeline.warehouse.schema import (
    SOURCE,
    TargetTable,
    _on_cluster,
    check_values,
    element_type,
    is_nullable,
    number_type,
    unwrap,
)
from payout_pipeline.warehouse.statements import Sql, statement

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SLICE_ROWS = 33_000  # two row groups of a ledger; with 50,000 a process needs 10 MB more at 2 M ids
SAMPLE = 20
_DELETE_IDS = 1_000
_UNKNOWN_TIME = -1
_STATUS_CODES = {"resolved": 1, "unresolved": 0, "absent": 0, "invalid": 0, "failed": 2}
_DEFECTS = ("missing", "different", "duplicated", "stale", "conflict")
_REPLICA_LAG_SECONDS = 10.0

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """One condition on which ledger and table disagree. ``stored`` is the stored vector as text, empty where none."""

    condition_id: str
    state: str
    fetched: str
    stored: str
    source: str = ""


@dataclass(slots=True)
class Comparison:
    """Ledger against table. Counts are exact; the lists hold the first :data:`SAMPLE` of each kind.

    ``missing``: resolved but not stored. ``different``: stored with other values. ``duplicated``: stored twice or more.
    ``stale``: stored by us, but not resolved any more. ``conflict``: another source's row with a different vector has
    the only place that the table gives to the condition; ``held`` (no defect): the same with the same vector.
    """

    table: str
    ids: int = 0
    resolved: int = 0
    equal: int = 0
    held: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_DEFECTS, 0))
    missing: list[Difference] = field(default_factory=list)
    different: list[Difference] = field(default_factory=list)
    duplicated: list[Difference] = field(default_factory=list)
    stale: list[Difference] = field(default_factory=list)
    conflict: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the table holds exactly the resolved rows."""
        return not any(self.counts.values())

    @property
    def samples(self) -> list[Difference]:
        """The first differences of each kind, worst first."""
        return [d for kind in _DEFECTS for d in getattr(self, kind)]

    def sentence(self) -> str:
        """The result in one sentence with its numbers."""
        if self.ok:
            held = f" ({self.held:,} of them by rows of other sources with the same vector)" if self.held else ""
            return f"{self.table} holds exactly the {self.resolved:,} resolved vectors of {self.ids:,} ids{held}."
        found = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items() if count)
        return f"{self.table} differs from what was fetched: {found} ({self.resolved:,} resolved of {self.ids:,} ids)."

    def advice(self) -> str:
        """What to do about it; empty where nothing is wrong."""
        if self.ok:
            return ""
        parts = []
        if any(self.counts[kind] for kind in ("missing", "different", "duplicated", "stale")):
            parts.append("materialize resolutions_external_ingest for this partition again: it writes what differs")
        if self.counts["conflict"]:
            parts.append(
                "decide for each conflict which vector is right: the table keeps one row per condition, and a row of "
                "another source is never overwritten; delete that row if it is wrong, then materialize again"
            )
        return "To repair it: " + "; ".join(parts) + "."


@dataclass(slots=True)
class LoadResult:
    """What a load did. ``sent`` resolved rows were compared; the next four add up to it, with the conflicts.

    ``deleted`` stale rows were removed; ``inserts`` blocks were sent, ``repeated`` of them again after a lost answer.
    """

    table: str
    sent: int = 0
    inserted_new: int = 0
    inserted_changed: int = 0
    unchanged: int = 0
    held: int = 0
    conflicts: int = 0
    conflict_sample: list[Difference] = field(default_factory=list)
    deleted: int = 0
    inserts: int = 0
    repeated: int = 0
    verified: int = 0
    seconds: float = 0.0

    @property
    def written(self) -> int:
        """Rows that were new or changed."""
        return self.inserted_new + self.inserted_changed


def slices(batches: Iterable[pa.RecordBatch], rows: int = SLICE_ROWS) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most ``rows`` and, the last one aside, about as many: memory stays flat."""
    held: list[pa.RecordBatch] = []
    count = 0
    _give_back()
    for whole in batches:
        for offset in range(0, whole.num_rows, rows):
            batch = whole.slice(offset, rows)
            if count + batch.num_rows > rows and held:
                yield _joined(held)
                count = 0
                _give_back()
            held.append(batch)
            count += batch.num_rows
    if held:
        yield _joined(held)


def _joined(held: list[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of ``held`` in one batch. Empties the list: who gets the batch is the only one to keep its rows."""
    import pyarrow as pa

    batch = pa.Table.from_batches(held).combine_chunks().to_batches()[0]
    held.clear()
    return batch


def _give_back() -> None:
    """Return to the system what the step before has freed: 20 MB of a worker with half a million ids."""
    import pyarrow as pa

    gc.collect(1)  # of the young ones only: tables of the last slice that are part of a cycle
    pa.default_memory_pool().release_unused()


def _fetched(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of the comparison's external table, without NULLs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    statuses = pa.array(list(_STATUS_CODES), pa.string())
    codes = pa.array(list(_STATUS_CODES.values()), pa.uint8())
    index = pc.index_in(batch.column("status"), value_set=statuses)
    if index.null_count:
        unknown = batch.column("status").filter(pc.is_null(index))[0].as_py()
        raise IncompleteError(
            f"the ledger has a row of status {unknown!r}, which is none of {', '.join(_STATUS_CODES)}"
        )
    numerators = batch.column("payout_numerators")
    if numerators.null_count:
        numerators = pc.if_else(pc.is_valid(numerators), numerators, pa.scalar([], numerators.type))
    seconds = batch.column("resolved_at").cast(pa.timestamp("s", "UTC")).cast(pa.int64())
    # 1970-01-01 00:00:00 means unknown, in tables that cannot hold NULL and in what others wrote.
    seconds = pc.if_else(pc.equal(seconds, 0), pa.scalar(None, pa.int64()), seconds)
    return pa.record_batch(
        {
            "position": pa.array(range(batch.num_rows), pa.uint32()),
            "condition_id": batch.column("condition_id").cast(pa.string()),
            "status": codes.take(index),
            "numerators": numerators.cast(pa.list_(pa.uint64())),
            "denominator": pc.fill_null(batch.column("payout_denominator"), 0).cast(pa.uint64()),
            "winning_index": pc.fill_null(batch.column("winning_index"), -1).cast(pa.int32()),
            "resolved_at": pc.fill_null(seconds, _UNKNOWN_TIME),
        }
    )


# How the rows of one id become one: FINAL has seen to it where the id is the whole key.
_ONE_ROW_AN_ID = {
    "own_rows": Sql("toUInt64(own)"),
    "other_rows": Sql("toUInt64(NOT own)"),
    "newest_ms": Sql("fetched_ms"),
    "ours": Sql("stored_row"),
    "theirs": Sql("stored_row"),
    "other_source": Sql("source_name"),
    "group_by": Sql(""),
}
_ROWS_GROUPED = {
    "own_rows": Sql("countIf(own)"),
    "other_rows": Sql("countIf(NOT own)"),
    "newest_ms": Sql("max(fetched_ms)"),
    "ours": Sql("argMaxIf(stored_row, fetched_ms, own)"),
    "theirs": Sql("argMaxIf(stored_row, fetched_ms, NOT own)"),
    "other_source": Sql("anyIf(source_name, NOT own)"),
    "group_by": Sql("GROUP BY id"),
}


def _compare_sql(target: TargetTable) -> str:
    columns = target.columns
    inner = number_type(element_type(columns["payout_numerators"]) or "")
    if inner is not None and inner.unsigned and "Nullable" not in columns["payout_numerators"]:
        numerators = "arrayMap(x -> toUInt64(x), payout_numerators)"
    else:
        exact = "accurateCastOrNull(x, 'UInt64')"
        numerators = (
            f"if(arrayExists(x -> isNull({exact}), payout_numerators), CAST([], 'Array(UInt64)'), "
            f"arrayMap(x -> assumeNotNull({exact}), payout_numerators))"
        )
    number = number_type(columns["payout_denominator"])
    if number is not None and number.unsigned and not is_nullable(columns["payout_denominator"]):
        denominator = "toUInt64(payout_denominator)"
    else:
        denominator = "ifNull(accurateCastOrNull(payout_denominator, 'UInt64'), 0)"
    resolved = _seconds("resolved_at", columns["resolved_at"])
    fetched = "toInt64(0)"
    if "fetched_at" in columns:
        fetched = "toInt64(toUnixTimestamp64Milli(toDateTime64(fetched_at, 3)))"
    return statement(
        "checks/stored_equals_fetched",
        target=target.name,
        final=target.table.final,
        numerators=Sql(numerators),
        denominator=Sql(denominator),
        resolved_at=Sql(resolved),
        fetched_ms=Sql(fetched),
        only_own=Sql("" if target.exclusive else "AND source = {source:String}"),
        **(_ONE_ROW_AN_ID if target.exclusive and target.replaces else _ROWS_GROUPED),
    )


def _seconds(name: str, kind: str) -> str:
    """Seconds since 1970 as Int64, -1 for unknown (NULL and 1970-01-01 00:00:00)."""
    if unwrap(kind).startswith("DateTime64"):
        plain = f"toInt64(intDiv(toUnixTimestamp64Milli(toDateTime64({name}, 3)), 1000))"
    else:
        plain = f"toInt64(toUnixTimestamp({name}))"
    return f"ifNull(nullIf({plain}, 0), -1)"


def _differences(session: Session, target: TargetTable, fetched: pa.RecordBatch) -> pa.Table:
    return session.arrow(
        _compare_sql(target),
        {"source": SOURCE},
        doing=f"comparing {fetched.num_rows} ids with {target.name}",
        external={"fetched": fetched},
    )


def _describe(batch: pa.RecordBatch, row: dict[str, Any]) -> Difference:
    at = row["position"]
    numerators = batch.column("payout_numerators")[at].as_py()
    fetched = f"{numerators}/{batch.column('payout_denominator')[at].as_py()}" if numerators else ""
    return Difference(
        condition_id=batch.column("condition_id")[at].as_py(),
        state=row["state"],
        fetched=fetched if row["state"] != "stale" else batch.column("status")[at].as_py(),
        stored=row["shown"],
        source=row["other_source"] if row["state"] in ("conflict", "held") else SOURCE,
    )


def compare_rows(session: Session, target: TargetTable, batches: Iterable[pa.RecordBatch]) -> Comparison:
    """Compare ledger rows of **all** statuses with what is stored, vector by vector, as integers.

    ``batches``: rows of `ledger.ledger_schema`, each id once. An id of status ``failed`` is not known now, so whatever is
    stored of it is left alone. Reads only. Raises what a :class:`Session` raises.
    """
    result = Comparison(table=str(target.name))
    for batch in slices(batches):
        _compare_slice(session, target, batch, result)
        del batch  # or it would be kept until the next one has been read
    return result


def _compare_slice(session: Session, target: TargetTable, batch: pa.RecordBatch, result: Comparison) -> None:
    fetched = _fetched(batch)
    resolved = fetched.column("status").to_numpy(zero_copy_only=False)
    resolved_count = int((resolved == 1).sum())
    result.ids += batch.num_rows
    result.resolved += resolved_count
    found = _differences(session, target, fetched)
    unequal = 0
    for group in found.select(["state"]).group_by("state").aggregate([([], "count_all")]).to_pylist():
        if group["state"] == "held":
            result.held += group["count_all"]
        else:
            result.counts[group["state"]] += group["count_all"]
            unequal += group["count_all"] if group["state"] != "stale" else 0
    result.equal += resolved_count - unequal
    if found.num_rows:
        _sample(result, batch, found)


def _sample(result: Comparison, batch: pa.RecordBatch, found: pa.Table) -> None:
    import pyarrow.compute as pc

    for kind in _DEFECTS:
        sample: list[Difference] = getattr(result, kind)
        if len(sample) < SAMPLE:
            rows = found.filter(pc.equal(found.column("state"), kind)).slice(0, SAMPLE - len(sample))
            sample.extend(_describe(batch, row) for row in rows.to_pylist())


def load_rows(
    session: Session, target: TargetTable, batches: Iterable[pa.RecordBatch], *, log: Log = logger.info
) -> LoadResult:
    """Make the target table hold exactly the resolved rows of ``batches``, and prove it by reading back.

    ``batches``: rows of `ledger.ledger_schema` of all statuses, each id once. Resolved rows that are new or changed are
    written; rows of ours whose condition is not resolved any more (a reorganised chain, another source) are deleted,
    up to 1 % of the ids or 100, above which the source is doubted and IncompleteError raised before any deletion.
    Raises WarehouseSchemaError before anything of a slice is written where a vector does not fit the columns exactly,
    IncompleteError where the table does not hold what was written, and what a :class:`Session` raises.
    """
    started = time.monotonic()
    result = LoadResult(table=str(target.name))
    ids = 0
    stale: list[str] = []
    stale_sample: list[Difference] = []
    for batch in slices(batches):
        ids += batch.num_rows
        _load_slice(session, target, batch, result, stale, stale_sample)
        del batch
        log(
            f"{target.name}: {result.sent:,} resolved rows compared, {result.written:,} written, "
            f"{result.unchanged:,} unchanged"
        )
    if stale:
        limit = max(100, ids // 100)
        if len(stale) > limit:
            raise IncompleteError(
                f"{len(stale):,} vectors stored in {target.name} are not resolved any more according to the source; a "
                f"reorganised chain explains at most {limit:,} of {ids:,} ids, so nothing was deleted. First: "
                f"{', '.join(d.condition_id for d in stale_sample[:5])}.\nTo repair it: check GOLDSKY_ENDPOINT; if the "
                f"source is right, delete the rows of source '{SOURCE}' whose ids stored_equals_fetched lists from "
                f"{target.name}, then materialize again."
            )
        delete_own_rows(session, target, stale)
        result.deleted = len(stale)
        log(f"{target.name}: {len(stale):,} rows deleted whose condition is not resolved any more")
    result.seconds = time.monotonic() - started
    return result


def _load_slice(
    session: Session,
    target: TargetTable,
    batch: pa.RecordBatch,
    result: LoadResult,
    stale: list[str],
    stale_sample: list[Difference],
) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    fetched = _fetched(batch)
    if pc.count_distinct(fetched.column("condition_id")).as_py() != fetched.num_rows:
        raise IncompleteError(f"an id occurs twice among {fetched.num_rows:,} rows meant for {target.name}")
    is_resolved = pc.equal(fetched.column("status"), 1)
    resolved_count = pc.sum(is_resolved).as_py() or 0
    check_values(target, batch.filter(is_resolved))

    token = f"payout-{uuid.uuid4()}"  # new for each load: a server remembers a token beyond a deletion
    first = True
    lost: Fault | None = None
    first_loss = 0.0
    losses = 0
    deadline = 0.0
    while True:
        found = _differences(session, target, fetched)
        by_state = {kind: found.filter(pc.equal(found.column("state"), kind)) for kind in (*_DEFECTS, "held")}
        write = pa.concat_tables([by_state["missing"], by_state["different"], by_state["duplicated"]])
        if first:
            result.sent += resolved_count
            result.held += by_state["held"].num_rows
            result.conflicts += by_state["conflict"].num_rows
            result.inserted_new += by_state["missing"].num_rows
            result.inserted_changed += by_state["different"].num_rows + by_state["duplicated"].num_rows
            result.unchanged += (
                resolved_count - write.num_rows - by_state["held"].num_rows - by_state["conflict"].num_rows
            )
            room = SAMPLE - len(result.conflict_sample)
            result.conflict_sample += [_describe(batch, r) for r in by_state["conflict"].slice(0, room).to_pylist()]
            stale += [batch.column("condition_id")[p].as_py() for p in by_state["stale"].column("position").to_pylist()]
            stale_sample += [_describe(batch, r) for r in by_state["stale"].slice(0, SAMPLE).to_pylist()]
        if write.num_rows == 0:
            result.verified += resolved_count - by_state["conflict"].num_rows
            return
        if not first and lost is None:
            # The server confirmed the insert, and the rows are not there: a lagging replica, or somebody else's work.
            if time.monotonic() > deadline:
                sample = ", ".join(_describe(batch, row).condition_id for row in write.slice(0, 5).to_pylist())
                raise IncompleteError(
                    f"{write.num_rows:,} rows that {target.name} confirmed are not stored as they were sent: "
                    f"{sample}.\n"
                    "To repair it: look for something else that writes to or deletes from the table (a TTL, another "
                    "run), then materialize the partition again."
                )
            time.sleep(0.2)
            continue
        if not target.replaces:
            changed = write.filter(pc.greater(write.column("own_rows"), 0)).column("position")
            delete_own_rows(session, target, batch.column("condition_id").take(changed.combine_chunks()).to_pylist())
        block = _rows(target, batch, write)
        doing = f"inserting {block.num_rows} rows into {target.name}"
        lost = session.insert_once(target.name, block, token=token, doing=doing)
        result.inserts += 1
        result.repeated += 0 if first else 1
        if lost is not None:
            first_loss = first_loss or time.monotonic()
            losses += 1
            session.wait_after(lost, doing, first_loss, losses)
        first = False
        replicated = target.table.engine.startswith(("Replicated", "Shared"))
        deadline = time.monotonic() + (_REPLICA_LAG_SECONDS if replicated else 0.0)


def _rows(target: TargetTable, batch: pa.RecordBatch, write: pa.Table) -> pa.RecordBatch:
    """The rows at the positions of ``write`` with the target's columns. A changed row is newer than the stored one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = batch.take(write.column("position").combine_chunks())
    seconds = rows.column("resolved_at").cast(pa.timestamp("s", "UTC"))
    if not target.null_resolved_at:
        seconds = pc.fill_null(seconds, pa.scalar(0, pa.timestamp("s", "UTC")))
    columns: dict[str, Any] = {
        "condition_id": rows.column("condition_id"),
        "payout_numerators": rows.column("payout_numerators"),
        "payout_denominator": rows.column("payout_denominator"),
        "winning_index": rows.column("winning_index"),
        "resolved_at": seconds,
        "source": pa.array([SOURCE] * rows.num_rows, pa.string()),
    }
    if target.writes("fetched_at"):
        stored = write.column("newest_ms").combine_chunks()
        own = rows.column("fetched_at").cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        # Whole seconds in a DateTime: a newer row has to be newer there, too.
        step = 1 if unwrap(target.columns["fetched_at"]).startswith("DateTime64(3") else 1000
        after = pc.if_else(pc.equal(stored, 0), pa.scalar(0, pa.int64()), pc.add(stored, step))
        columns["fetched_at"] = pc.max_element_wise(own, after).cast(pa.timestamp("ms", "UTC"))
    if target.writes("block_number"):
        columns["block_number"] = pc.fill_null(rows.column("block_number"), 0)
    return pa.record_batch(columns)


def delete_own_rows(session: Session, target: TargetTable, ids: list[str]) -> None:
    """Delete the rows of source ``goldsky-api`` of these conditions. Rows of other sources are never touched.

    Raises WarehousePermanentError with the statement where the user may not delete.
    """
    sql = statement("delete_own_rows", table=target.name, on_cluster=_on_cluster(target.cluster))
    for start in range(0, len(ids), _DELETE_IDS):
        some = ids[start : start + _DELETE_IDS]
        try:
            session.command(
                sql, {"source": SOURCE, "ids": some}, doing=f"deleting {len(some)} superseded rows from {target.name}"
            )
        except ClickHouseRefusedError as error:
            raise WarehousePermanentError(
                f"{error}\nThe rows that have to go: source = '{SOURCE}', condition_id in {', '.join(some[:5])}"
                f"{' …' if len(some) > 5 else ''} ({len(ids)} in all).\nTo repair it: GRANT ALTER DELETE ON "
                f"{target.name.sql} to the user, or delete them yourself, then materialize again."
            ) from error
