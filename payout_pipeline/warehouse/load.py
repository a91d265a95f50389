"""Bringing the target table to what the ledger says, and proving it by reading back.

The stored rows are the truth: every load compares with them first, writes only what is new or changed, and compares again. No
marker is believed, so a load can be repeated at will, and a lost answer of an insert is settled by looking.

Only rows of source ``goldsky-api`` are written. Where the table keeps one row per condition whatever its source, a vector of
another source is never overwritten: with the same vector the condition counts as *held*, with another one as a *conflict*.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import IncompleteError, WarehousePermanentError
from payout_pipeline.warehouse.client import Session
from payout_pipeline.warehouse.faults import ClickHouseRefusedError, Fault
from payout_pipeline.warehouse.schema import on_cluster
from payout_pipeline.warehouse.statements import Sql, column, statement
from payout_pipeline.warehouse.target import SOURCE, TargetTable, check_values
from payout_pipeline.warehouse.types import is_nullable, unwrap
from payout_pipeline.warehouse.view import normal_id

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SLICE_ROWS = 100_000
_DELETE_IDS = 1_000
_UNKNOWN_TIME = -1
_STATUS_CODES = {"resolved": 1, "unresolved": 0, "absent": 0, "invalid": 2, "failed": 2}
_REPLICA_LAG_SECONDS = 10.0
#: A chunk with fewer stored rows than this loses none without being told to.
_FEW_ROWS = 100

Log = Callable[[str], None]


@dataclass(slots=True)
class LoadResult:
    """What a load did. ``sent`` resolved rows were compared; the next five add up to it.

    ``kept`` stored rows belong to ids without an answer that counts (``failed``, ``invalid``); ``removed`` ones to conditions
    that the source does not resolve any more; ``inserts`` blocks were sent.
    """

    table: str
    sent: int = 0
    inserted_new: int = 0
    inserted_changed: int = 0
    unchanged: int = 0
    held: int = 0
    conflicts: int = 0
    kept: int = 0
    removed: int = 0
    inserts: int = 0
    verified: int = 0

    @property
    def written(self) -> int:
        """Rows that were new or changed."""
        return self.inserted_new + self.inserted_changed


def slices(batches: Iterable[pa.RecordBatch], rows: int = SLICE_ROWS) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most ``rows``, so that memory does not grow with them."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = 0
    for whole in batches:
        for offset in range(0, whole.num_rows, rows):
            batch = whole.slice(offset, rows)
            if held and count + batch.num_rows > rows:
                yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]
                held, count = [], 0
            held.append(batch)
            count += batch.num_rows
    if held:
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]


def load_rows(
    session: Session,
    target: TargetTable,
    batches: Iterable[pa.RecordBatch],
    *,
    allow_removals: bool = False,
    log: Log = logger.info,
) -> LoadResult:
    """Make the target table hold the resolved rows of ``batches``, and prove it by reading back.

    ``batches``: ledger rows of all statuses, each id once. Resolved rows that are new or changed are written. A row of ours is
    removed only where the ledger says ``unresolved`` or ``absent``, and never more than 1 % of the chunk's stored rows (none
    where fewer than 100 are stored) unless ``allow_removals``: IncompleteError says what would have been removed.
    Raises WarehouseSchemaError before anything of a slice is written where a vector does not fit the columns exactly,
    IncompleteError where the table does not hold what was written, and what a :class:`Session` raises.
    """
    result = LoadResult(table=str(target.name))
    stale: list[str] = []
    for batch in slices(batches):
        stale += _load_slice(session, target, batch, result)
        log(
            f"{target.name}: {result.sent:,} resolved rows compared, {result.written:,} written, "
            f"{result.unchanged:,} unchanged"
        )
    if stale:
        stored = result.unchanged + result.inserted_changed + result.kept + len(stale)
        _remove(session, target, stale, stored, allow_removals)
        result.removed = len(stale)
        log(f"{target.name}: {len(stale):,} rows removed whose condition is not resolved any more")
    return result


def _load_slice(session: Session, target: TargetTable, batch: pa.RecordBatch, result: LoadResult) -> list[str]:
    """Write what is new or changed of a slice until it is seen to be stored; returns the ids that are stale."""
    import pyarrow.compute as pc

    fetched = _fetched(batch)
    if pc.count_distinct(fetched.column("condition_id")).as_py() != fetched.num_rows:
        raise IncompleteError(f"an id occurs twice among {fetched.num_rows:,} rows meant for {target.name}")
    is_resolved = pc.equal(fetched.column("status"), 1)
    resolved = pc.sum(is_resolved).as_py() or 0
    check_values(target, batch.filter(is_resolved))

    found = _differences(session, target, fetched)
    count = {row["values"]: row["counts"] for row in found.column("state").combine_chunks().value_counts().to_pylist()}
    result.sent += resolved
    result.held += count.get("held", 0)
    result.conflicts += count.get("conflict", 0)
    result.kept += count.get("kept", 0)
    result.inserted_new += count.get("missing", 0)
    result.inserted_changed += count.get("different", 0)
    result.unchanged += resolved - sum(count.get(state, 0) for state in ("held", "conflict", "missing", "different"))
    _write(session, target, batch, _to_write(found), result, lambda: _to_write(_differences(session, target, fetched)))
    result.verified += resolved - count.get("conflict", 0)
    stale = found.filter(pc.equal(found.column("state"), "stale")).column("position")
    ids = batch.column("condition_id")
    return [ids[position].as_py() for position in stale.to_pylist()]


def _to_write(found: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    return found.filter(pc.is_in(found.column("state"), value_set=pa.array(["missing", "different"])))


def _write(
    session: Session,
    target: TargetTable,
    batch: pa.RecordBatch,
    write: pa.Table,
    result: LoadResult,
    look_again: Callable[[], pa.Table],
) -> None:
    """Insert the rows at the positions of ``write``, and look until none of them is missing any more."""
    token = f"payout-{uuid.uuid4()}"  # new for each load: a server remembers a token beyond a deletion
    doing = f"inserting {write.num_rows} rows into {target.name}"
    first_loss, losses = 0.0, 0
    while write.num_rows:
        lost: Fault | None = session.insert_once(target.name, _rows(target, batch, write), token=token, doing=doing)
        result.inserts += 1
        if lost is not None:
            first_loss, losses = first_loss or time.monotonic(), losses + 1
            session.wait_after(lost, doing, first_loss, losses)
            write = look_again()
            continue
        deadline = time.monotonic() + (_REPLICA_LAG_SECONDS if target.table.replicated else 0.0)
        while (write := look_again()).num_rows:
            # The server confirmed the insert, and the rows are not there: a lagging replica, or another writer.
            if time.monotonic() > deadline:
                ids = [batch.column("condition_id")[p].as_py() for p in write.column("position").to_pylist()[:5]]
                raise IncompleteError(
                    f"{write.num_rows:,} rows that {target.name} confirmed are not stored as they were sent: "
                    f"{', '.join(ids)}.\nTo repair it: look for something else that writes to or deletes from the table "
                    "(a TTL, another run), then materialize the partition again."
                )
            time.sleep(0.2)


def _remove(session: Session, target: TargetTable, ids: list[str], stored: int, allowed: bool) -> None:
    limit = 0 if stored < _FEW_ROWS else stored // 100
    if not allowed and len(ids) > limit:
        raise IncompleteError(
            f"{len(ids):,} of {stored:,} vectors of this chunk that are stored in {target.name} are unknown or not resolved "
            f"according to the source now; at most {limit:,} are removed unasked (1 %, and none of fewer than {_FEW_ROWS}), "
            f"so none was removed. First: {', '.join(ids[:5])}.\nTo repair it: check GOLDSKY_ENDPOINT; if the source is "
            "right, run `payout-pipeline backfill --allow-removals`, or materialize resolutions_external_ingest with the "
            "run config `allow_removals: true`."
        )
    sql = statement(
        "delete_own_rows", table=target.name, id=normal_id("condition_id"), on_cluster=on_cluster(target.cluster)
    )
    for start in range(0, len(ids), _DELETE_IDS):
        some = ids[start : start + _DELETE_IDS]
        try:
            session.command(sql, {"source": SOURCE, "ids": some}, doing=f"deleting {len(some)} rows from {target.name}")
        except ClickHouseRefusedError as error:
            raise WarehousePermanentError(
                f"{error}\nThe rows that have to go: source = '{SOURCE}', condition_id in {', '.join(some[:5])}"
                f"{' …' if len(some) > 5 else ''} ({len(ids)} in all).\nTo repair it: GRANT ALTER DELETE ON "
                f"{target.name.sql} to the user, or delete them yourself, then materialize again."
            ) from error


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


def _differences(session: Session, target: TargetTable, fetched: pa.RecordBatch) -> pa.Table:
    fetched_ms = "toInt64(0)"
    if "fetched_at" in target.columns:
        fetched_ms = "toInt64(toUnixTimestamp64Milli(toDateTime64(m.fetched_at, 3)))"
    sql = statement(
        "compare",
        target=target.name,
        id=normal_id("m.condition_id"),
        fetched_ms=Sql(fetched_ms),
        resolved_at=_seconds("m.resolved_at", target.columns["resolved_at"]),
        exclusive=Sql(str(int(target.exclusive))),
        version=Sql(f"m.{column(target.version_column)}" if target.version_column else "0"),
        consistency=target.consistency,
    )
    doing = f"comparing {fetched.num_rows} ids with {target.name}"
    return session.arrow(sql, {"source": SOURCE}, doing=doing, external={"fetched": fetched})


def _seconds(name: str, kind: str) -> Sql:
    """Seconds since 1970 as Int64, -1 for unknown (NULL and 1970-01-01 00:00:00)."""
    if unwrap(kind).startswith("DateTime64"):
        plain = f"toInt64(intDiv(toUnixTimestamp64Milli(toDateTime64({name}, 3)), 1000))"
    else:
        plain = f"toInt64(toUnixTimestamp({name}))"
    return Sql(f"ifNull(nullIf({plain}, 0), {_UNKNOWN_TIME})")


def _rows(target: TargetTable, batch: pa.RecordBatch, write: pa.Table) -> pa.RecordBatch:
    """The rows at the positions of ``write`` with the target's columns. A changed row is newer than the stored one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = batch.take(write.column("position").combine_chunks())
    seconds = rows.column("resolved_at").cast(pa.timestamp("s", "UTC"))
    if not is_nullable(target.columns["resolved_at"]):
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
    if target.version_column not in (None, "fetched_at"):
        # Of rows with the same version the one written last counts, so that the stored one's is enough; of a new row it is
        # NULL, which becomes the column's default.
        version = write.column("version").combine_chunks()
        if target.version_column == "block_number":
            version = pc.max_element_wise(columns["block_number"], version.cast(pa.uint64()))
        columns[str(target.version_column)] = version
    return pa.record_batch(columns)
