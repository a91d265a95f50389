"""The check of ``resolutions_external_ingest``: the target table against the ledger of one worker, vector by vector.

The rows are read as they are and compared here, not by the statement that a load compares with.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from payout_pipeline.ids.chunks import worker_numbers
from payout_pipeline.ledger import Ledger
from payout_pipeline.verdict import SHOWN_ROWS, Table, Verdict
from payout_pipeline.verification.numbers import Place, id_batch
from payout_pipeline.warehouse.client import Session, Warehouse
from payout_pipeline.warehouse.load import slices
from payout_pipeline.warehouse.statements import statement
from payout_pipeline.warehouse.target import SOURCE, TargetTable
from payout_pipeline.warehouse.view import normal_id
from payout_pipeline.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings

#: What is wrong with a stored condition. Rows in another spelling are ours, but neither found nor replaced by a load.
DEFECTS = ("missing", "different", "stale", "conflict", "written otherwise")

_COMPARED = ["condition_id", "status", "payout_numerators", "payout_denominator", "winning_index", "resolved_at"]


@dataclass
class Comparison:
    """Ledger against table: exact counts by defect, and the first rows that differ.

    ``held``: conditions whose only place in the table is taken by another source's row with the same vector (no defect).
    """

    table: str
    ids: int = 0
    resolved: int = 0
    held: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    differences: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    sql: str = ""

    @property
    def ok(self) -> bool:
        """Whether the table holds exactly the resolved rows."""
        return not self.counts.total()

    def note(self, condition_id: str, defect: str, fetched: str, stored: str, source: str) -> None:
        """Count a defect, and keep it while there are few."""
        self.counts[defect] += 1
        if len(self.differences) < SHOWN_ROWS:
            self.differences.append((condition_id, defect, fetched, stored, source))


def checks(settings: Settings, key: str) -> Mapping[str, Callable[[], Verdict]]:
    """The checks of the partition ``key`` by name."""
    return {"stored_equals_fetched": lambda: stored_equals_fetched(settings, key)}


def stored_equals_fetched(settings: Settings, key: str) -> Verdict:
    """ClickHouse holds exactly the resolved rows of the chunk."""
    ledger = Ledger(settings.runtime_dir, key)
    info = ledger.finished()
    repair = f"Materialize resolutions_external_ingest for {key} again: it writes what differs."
    if info is None:
        sentence = f"There is no finished ledger of {key} to compare the table with."
        repair = f"Run `payout-pipeline backfill --workers {worker_numbers([key])}`."
        return Verdict(False, sentence, "a ledger", "none", repair=repair)
    with Warehouse(settings, f"check of {key}").session(f"checking {key}") as session:
        found = compare_stored(session, Place(session, settings).target, ledger.read())
    if found.counts["conflict"]:
        repair += (
            " The table keeps one row per condition, and a vector of another source is never overwritten: decide for each "
            "conflict which is right, and delete that row if it is wrong."
        )
    if found.counts["written otherwise"]:
        repair += (
            f" Rows of source {SOURCE} whose ids are written with 0x or in upper case were not written by the pipeline: "
            "delete them by their condition_id."
        )
    table = Table(
        "rows that differ", ("condition_id", "defect", "fetched", "stored", "source"), tuple(found.differences)
    )
    held = f" ({found.held:,} of them by rows of other sources with the same vector)" if found.held else ""
    if found.ok:
        sentence = (
            f"{found.table} holds exactly the {found.resolved:,} resolved vectors of {counted(found.ids, 'id')}{held}."
        )
    else:
        listed = ", ".join(f"{found.counts[defect]:,} {defect}" for defect in DEFECTS if found.counts[defect])
        sentence = (
            f"{found.table} differs from what was fetched: {listed} ({found.resolved:,} resolved of "
            f"{counted(found.ids, 'id')}). First: {found.differences[0][0]}."
        )
    return Verdict(
        found.ok,
        sentence,
        found.resolved,
        found.resolved - sum(found.counts[defect] for defect in ("missing", "different", "conflict")),
        tables=(table,),
        sql=found.sql,
        repair=repair,
        facts={**{defect: found.counts[defect] for defect in DEFECTS}, "held by other sources": found.held},
    )


def compare_stored(session: Session, target: TargetTable, batches: Iterable[pa.RecordBatch]) -> Comparison:
    """Compare ledger rows of all statuses (each id once) with what the table holds of their ids. Reads only."""
    import pyarrow.compute as pc

    sql = statement(
        "checks/stored_equals_fetched",
        target=target.name,
        id=normal_id("m.condition_id"),
        consistency=target.consistency,
    )
    found = Comparison(str(target.name), sql=sql)
    for batch in slices(batches):
        rows = session.arrow(sql, doing=f"reading {target.name}", external={"asked": id_batch(batch)})
        fetched = batch.select(_COMPARED)
        found.ids += fetched.num_rows
        found.resolved += pc.sum(pc.equal(fetched.column("status"), "resolved")).as_py() or 0
        suspects = _suspects(fetched, rows)
        stored: dict[str, list[dict[str, Any]]] = defaultdict(list)
        of_suspects = pc.is_in(rows.column("condition_id"), value_set=suspects.column("condition_id"))
        for row in rows.filter(of_suspects).to_pylist():
            stored[row["condition_id"]].append(row)
        for one in suspects.to_pylist():
            _compare(found, target, one, stored.get(one["condition_id"], []))
    return found


def _suspects(fetched: pa.RecordBatch, rows: pa.Table) -> pa.RecordBatch:
    """The ledger rows that are not stored as they are for certain, column by column; these are compared one by one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = rows.column("condition_id").combine_chunks()  # in their order
    several = ids.slice(1).filter(pc.equal(ids.slice(1), ids.slice(0, max(len(ids) - 1, 0))))
    ours = rows.filter(pc.and_(pc.equal(rows.column("source"), SOURCE), pc.equal(rows.column("written"), ids)))
    ours = ours.filter(pc.invert(pc.is_in(ours.column("condition_id"), value_set=several)))
    numerators = pc.binary_join(fetched.column("payout_numerators").cast(pa.list_(pa.string())), ",")
    seconds = fetched.column("resolved_at").cast(pa.timestamp("s", "UTC")).cast(pa.int64())
    stored = _text(
        *(ours.column(name) for name in ("condition_id", "numerators", "denominator", "winning_index", "resolved_at"))
    )
    same = pc.is_in(
        _text(
            fetched.column("condition_id"),
            pc.binary_join_element_wise("[", numerators, "]", ""),
            fetched.column("payout_denominator"),
            fetched.column("winning_index"),
            pc.fill_null(seconds, 0),
        ),
        value_set=stored,
    )
    resolved = pc.equal(fetched.column("status"), "resolved")
    return fetched.filter(
        pc.if_else(resolved, pc.invert(same), pc.is_in(fetched.column("condition_id"), value_set=ids))
    )


def _text(*columns: Any) -> Any:
    """One text for each row; NULL where a column is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    joined = pc.binary_join_element_wise(*(column.cast(pa.string()) for column in columns), " ")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _compare(found: Comparison, target: TargetTable, fetched: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    condition_id, status = fetched["condition_id"], fetched["status"]
    ours = [row for row in rows if row["source"] == SOURCE and row["written"] == condition_id]
    for row in rows:
        if row["source"] == SOURCE and row["written"] != condition_id:
            found.note(row["written"], "written otherwise", _vector(fetched), _stored(row), SOURCE)
    if status in ("unresolved", "absent"):
        if ours:
            found.note(condition_id, "stale", status, _stored(ours[0]), SOURCE)
        return
    if status != "resolved":  # not known now: whatever is stored of it is left alone
        return
    if ours:
        if len(ours) > 1 or not _is_same(fetched, ours[0]):
            found.note(condition_id, "different", _vector(fetched), "; ".join(map(_stored, ours)), SOURCE)
        return
    others = [row for row in rows if row["written"] == condition_id and _shares(row)]
    if not target.exclusive or not others:
        found.note(condition_id, "missing", _vector(fetched), "", "")
    elif _shares(others[0]) == [Fraction(n, fetched["payout_denominator"]) for n in fetched["payout_numerators"]]:
        found.held += 1
    else:
        found.note(condition_id, "conflict", _vector(fetched), _stored(others[0]), others[0]["source"])


def _is_same(fetched: dict[str, Any], row: dict[str, Any]) -> bool:
    at = fetched["resolved_at"]
    return bool(
        json.loads(row["numerators"]) == fetched["payout_numerators"]
        and int(row["denominator"]) == fetched["payout_denominator"]
        and row["winning_index"] == fetched["winning_index"]
        and row["resolved_at"] == (int(at.timestamp()) if at is not None else 0)
    )


def _shares(row: dict[str, Any]) -> list[Fraction]:
    """What each outcome is paid; empty for a row that is no vector (a placeholder)."""
    numerators, denominator = json.loads(row["numerators"]), int(row["denominator"])
    return [Fraction(n, denominator) for n in numerators] if denominator > 0 and sum(numerators) > 0 else []


def _vector(fetched: dict[str, Any]) -> str:
    numerators = fetched["payout_numerators"]
    return f"{json.dumps(numerators, separators=(',', ':'))}/{fetched['payout_denominator']}" if numerators else ""


def _stored(row: dict[str, Any]) -> str:
    return f"{row['numerators']}/{row['denominator']}"
