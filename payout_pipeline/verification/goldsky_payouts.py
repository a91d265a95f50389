"""The checks of ``goldsky_payouts``: the ledger of one worker against its chunk of the input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING

from payout_pipeline.ids.chunks import Worklist, chunk_of, prefix_range, worker_numbers
from payout_pipeline.ids.today import todays_ids
from payout_pipeline.ledger import STATUSES, Ledger
from payout_pipeline.verdict import SHOWN_ROWS, Table, Value, Verdict
from payout_pipeline.words import counted, duration, has, is_, listed, share

if TYPE_CHECKING:
    from payout_pipeline.ids.chunks import WorkerInput
    from payout_pipeline.ledger import Accounting, SnapshotInfo
    from payout_pipeline.settings import Settings

FRESH_WITHIN = timedelta(hours=24)
#: Share of a chunk's ids that may be unknown to the subgraph before the check warns.
MOST_ABSENT = 0.05


@dataclass(frozen=True)
class WorkerLedger:
    """What the checks of one worker read."""

    settings: Settings
    worker: WorkerInput
    ledger: Ledger
    info: SnapshotInfo | None

    @property
    def key(self) -> str:
        """The partition."""
        return self.worker.key


def checks(settings: Settings, worklist: Worklist, key: str) -> Mapping[str, Callable[[], Verdict]]:
    """The checks of the partition ``key`` by name; raises LedgerError where its ledger is damaged."""
    ledger = Ledger(settings.runtime_dir, key)
    at = WorkerLedger(settings, worklist.of(key), ledger, ledger.finished())
    return {
        function.__name__: partial(function, at)
        for function in (every_id_accounted_for, error_rate, source_is_fresh, ids_are_known, vectors_unchanged)
    }


def ask_again(key: str) -> str:
    """The command that makes a worker's ledger anew."""
    return (
        f"Run `payout-pipeline backfill --workers {worker_numbers([key])}`, or materialize goldsky_payouts for {key}."
    )


def _no_ledger(at: WorkerLedger) -> Verdict:
    ids = "none of its ids" if at.worker.ids is None else f"none of its {counted(at.worker.ids, 'id')}"
    sentence = f"There is no finished ledger of {at.key}: {ids} is accounted for."
    return Verdict(False, sentence, "a finished ledger", "none", repair=ask_again(at.key))


def _no_ids(at: WorkerLedger) -> Verdict:
    return Verdict(False, f"{at.key} has no ids, so nothing was asked.", "ids", 0, nothing=True)


def every_id_accounted_for(at: WorkerLedger) -> Verdict:
    """The ledger has each id of the chunk once."""
    if at.info is None:
        return _no_ledger(at)
    settings, number = at.settings, at.worker.worker
    if not at.info.asked_of(settings.goldsky_endpoint):
        sentence = f"The ledger of {at.key} was asked of another endpoint than today's GOLDSKY_ENDPOINT."
        repair = ask_again(at.key)
        return Verdict(False, sentence, "this endpoint", "another", repair=repair)
    if settings.goldsky_mode == "list":
        found = at.ledger.verify(chunk_of(todays_ids(settings), number, settings.workers))
    else:
        found = at.ledger.verify(prefix_range(number, settings.workers))
    once = found.expected - found.missing
    facts: dict[str, Value] = {status: found.counts.get(status, 0) for status in STATUSES}
    if found.closes:
        by_status = ", ".join(f"{found.counts.get(status, 0):,} {status}" for status in STATUSES)
        sentence = f"{once:,} of {counted(found.expected, 'id')} of {at.key} are in the ledger, each once: {by_status}."
        return Verdict(True, sentence, found.expected, once, facts=facts)
    defects, rows = _differences(found)
    return Verdict(
        False,
        f"The ledger of {at.key} does not hold each of its {counted(found.expected, 'id')} once: {'; '.join(defects)}.",
        found.expected,
        once - found.duplicated,
        tables=(Table("ids that differ", ("defect", "condition_id"), tuple(rows)),),
        repair=ask_again(at.key),
        facts=facts,
    )


def _differences(found: Accounting) -> tuple[list[str], list[tuple[Value, ...]]]:
    defects: list[str] = []
    rows: list[tuple[Value, ...]] = []
    for number, what, sample in (
        (found.missing, "missing", found.missing_sample),
        (found.extra, "not asked for", found.extra_sample),
        (found.duplicated, "there twice", found.duplicated_sample),
    ):
        if number:
            defects.append(f"{number:,} {what} ({listed(sample, number, 1)})")
            rows += [(what, condition_id) for condition_id in sample[:SHOWN_ROWS]]
    return defects or [f"the statuses add up to {sum(found.counts.values()):,}"], rows


def error_rate(at: WorkerLedger) -> Verdict:
    """Failed and invalid ids stay within ``PAYOUT_MAX_ERROR_RATE``."""
    if at.info is None:
        return _no_ledger(at)
    if not at.info.ids:
        return _no_ids(at)
    counts, limit = at.info.counts, at.settings.max_error_rate
    bad = counts["failed"] + counts["invalid"]
    rate = bad / at.info.ids
    passed = rate <= limit
    failures = at.ledger.failures(SHOWN_ROWS) if bad else []
    sentence = (
        f"{bad:,} of {counted(at.info.ids, 'id')} of {at.key} ({share(bad, at.info.ids)}) {has(bad)} no usable answer "
        f"({counts['failed']:,} failed, {counts['invalid']:,} invalid); at most {100 * limit:g} % may"
    )
    if failures and not passed:
        sentence += f"; the first: {failures[0][0]}: {failures[0][2]}"
    table = Table("ids without a usable answer", ("condition_id", "status", "error"), tuple(failures))
    return Verdict(
        passed,
        f"{sentence}.",
        float(limit),
        rate,
        tables=(table,),
        repair=f"{ask_again(at.key)} With `refetch: unresolved` only the ids that are not resolved are asked again. Invalid "
        "vectors come from the subgraph: the ledger has their raw text.",
        facts={"failed": counts["failed"], "invalid": counts["invalid"], "ids": at.info.ids},
    )


def source_is_fresh(at: WorkerLedger) -> Verdict:
    """The subgraph's head was younger than 24 hours when the worker pinned its snapshot, without indexing errors."""
    if at.info is None:
        return _no_ledger(at)
    if not at.info.ids:
        return _no_ids(at)
    pin = at.info.pin
    head = f"block {pin.head_number:,}" if pin.head_number is not None else "its block"
    limit = f"{FRESH_WITHIN.total_seconds() / 3600:.0f} h"
    problems: list[str] = []
    age = None
    if pin.head_timestamp:
        asked = datetime.fromisoformat(at.info.started_at.replace("Z", "+00:00"))
        age = asked - datetime.fromtimestamp(pin.head_timestamp, timezone.utc)
        if age > FRESH_WITHIN:
            problems.append(f"the subgraph's head ({head}) was {duration(age)} old; at most {limit} is fresh")
    else:
        problems.append(f"the subgraph does not say how old its head ({head}) is")
    if pin.has_indexing_errors:
        problems.append("the subgraph reports indexing errors")
    said = " and ".join(problems) or (
        f"the subgraph's head ({head}) was {duration(age or timedelta())} old, and there were no indexing errors"
    )
    return Verdict(
        not problems,
        f"When {at.key} asked, {said}.",
        f"younger than {limit}, no indexing errors",
        f"{'unknown' if age is None else duration(age)}, {'' if pin.has_indexing_errors else 'no '}indexing errors",
        repair=(
            "Set GOLDSKY_ENDPOINT to a version of the subgraph that is kept up to date (Goldsky's dashboard shows its "
            f"head), or wait until it has caught up. Then: {ask_again(at.key)}"
        ),
        facts={"indexing errors": pin.has_indexing_errors},
    )


def ids_are_known(at: WorkerLedger) -> Verdict:
    """At most 5 % of the chunk's ids are unknown to the subgraph; more look like question or token ids."""
    if at.info is None:
        return _no_ledger(at)
    if not at.info.ids or at.info.mode == "scan":
        return _no_ids(at)
    absent = at.info.counts["absent"]
    passed = absent <= MOST_ABSENT * at.info.ids
    return Verdict(
        passed,
        f"{absent:,} of {counted(at.info.ids, 'id')} of {at.key} ({share(absent, at.info.ids)}) {is_(absent)} unknown to the "
        f"subgraph; at most {100 * MOST_ABSENT:g} % are expected{'' if passed else '. Are these question or token ids?'}"
        + ("." if passed else ""),
        MOST_ABSENT,
        absent / at.info.ids,
        repair="Compare a few of the ids with the subgraph: `payout-pipeline query ID`. A condition id is the hash of oracle, "
        "question id and outcome count; check that the list holds condition ids, and that GOLDSKY_ENDPOINT is the subgraph "
        "that they come from.",
        facts={"absent": absent},
    )


def vectors_unchanged(at: WorkerLedger) -> Verdict:
    """No id that was resolved before has another vector now."""
    if at.info is None:
        return _no_ledger(at)
    changes = at.ledger.changes()
    if changes is None:
        sentence = f"There is no earlier ledger of {at.key} to compare with."
        return Verdict(False, sentence, "an earlier ledger", "none", nothing=True)
    rows = [row for row in changes.to_pylist() if row["change"] == "vector_changed"]
    table = Table(
        "vectors that changed",
        ("condition_id", "before", "after"),
        tuple((row["condition_id"], row["before"], row["after"]) for row in rows[:SHOWN_ROWS]),
    )
    example = f", for example {rows[0]['condition_id']}: {rows[0]['before']} became {rows[0]['after']}" if rows else ""
    return Verdict(
        not rows,
        f"{counted(len(rows), 'vector')} of {at.key} changed since the ledger before{example}.",
        0,
        len(rows),
        tables=(table,),
        repair="A reorganisation of the chain or a corrected resolution moves money: look each condition up on chain, and "
        "tell those who were paid by the old vector.",
    )
