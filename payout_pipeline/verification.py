"""Verdicts: what the numbers of a check mean. Pure functions; no database, no Dagster, no clock, no environment.

Each function takes the result of one query (``warehouse/queries.py``) or of one look at the ledger and returns a
:class:`Verdict`, whose description is a sentence with its numbers. A difference has no tolerance: one row is a defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from payout_pipeline.verdict import Severity, Table, Value, Verdict
from payout_pipeline.words import counted, duration, has, is_, listed, share

if TYPE_CHECKING:
    from payout_pipeline.ledger import Accounting
    from payout_pipeline.warehouse import queries
    from payout_pipeline.warehouse.load import Comparison

FRESH_WITHIN = timedelta(hours=24)
#: Rows of a table that names defects; the sentence always carries the exact count.
SHOWN_ROWS = 20

# --------------------------------------------------------------------------------------------------- goldsky_payouts

_STATUSES = ("resolved", "unresolved", "absent", "invalid", "failed")


def _by_status(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(status, 0):,} {status}" for status in _STATUSES)


def _ask_again(partition: str) -> str:
    worker = partition.split("_")[1].lstrip("0")
    return f"Materialize goldsky_payouts for {partition} again, or run `payout-pipeline backfill --workers {worker}`."


def every_id_accounted_for(accounting: Accounting | None, partition: str, expected: int) -> Verdict:
    """The ledger against the ids of the chunk. ``accounting`` is None where there is no finished ledger at all."""
    check = "every_id_accounted_for"
    if accounting is None:
        return Verdict(
            check,
            False,
            Severity.ERROR,
            f"There is no finished ledger of {partition}: none of its {counted(expected, 'id')} is accounted for.",
            expected,
            0,
            repair=_ask_again(partition),
        )
    once = accounting.expected - accounting.missing
    facts = {status: accounting.counts.get(status, 0) for status in _STATUSES}
    if accounting.closes:
        return Verdict(
            check,
            True,
            Severity.ERROR,
            f"{once:,} of {counted(accounting.expected, 'id')} of {partition} are in the ledger, each once: "
            f"{_by_status(accounting.counts)}.",
            accounting.expected,
            once,
            facts=facts,
        )
    defects: list[str] = []
    rows: list[tuple[Value, ...]] = []
    for number, what, sample in (
        (accounting.missing, "missing", accounting.missing_sample),
        (accounting.extra, "not asked for", accounting.extra_sample),
        (accounting.duplicated, "there twice", accounting.duplicated_sample),
    ):
        if number:
            defects.append(f"{number:,} {what} ({listed(sample, number, 1)})")
            rows += [(what, condition_id) for condition_id in sample[:SHOWN_ROWS]]
    total = sum(accounting.counts.values())
    if not defects:
        defects.append(f"the statuses add up to {total:,}")
    return Verdict(
        check,
        False,
        Severity.ERROR,
        f"The ledger of {partition} does not hold each of its {counted(accounting.expected, 'id')} once: "
        f"{'; '.join(defects)}.",
        accounting.expected,
        once - accounting.duplicated,
        tables=(Table("ids that differ", ("defect", "condition_id"), tuple(rows)),) if rows else (),
        repair=_ask_again(partition),
        facts=facts,
    )


def error_rate(
    counts: Mapping[str, int], failures: Sequence[tuple[str, str, str]], limit: float, partition: str
) -> Verdict:
    """Failed and invalid ids of a chunk against ``PAYOUT_MAX_ERROR_RATE``; ``failures``: (id, status, error)."""
    total = sum(counts.values())
    bad = counts.get("failed", 0) + counts.get("invalid", 0)
    rate = bad / total if total else 0.0
    passed = rate <= limit
    kinds = f"{counts.get('failed', 0):,} failed, {counts.get('invalid', 0):,} invalid"
    sentence = (
        f"{bad:,} of {counted(total, 'id')} of {partition} ({share(bad, total)}) {has(bad)} no "
        f"usable answer ({kinds}); at most {100 * limit:g} % may"
    )
    table = Table("ids without a usable answer", ("condition_id", "status", "error"), tuple(failures[:SHOWN_ROWS]))
    repair = ""
    if not passed:
        repair = (
            f"{_ask_again(partition)} With `refetch: unresolved` only the ids that are not resolved are asked again. "
            "Invalid vectors come from the subgraph: look at their raw text in the ledger."
        )
    return Verdict(
        "error_rate",
        passed,
        Severity.ERROR,
        sentence + ("." if passed else f"; the first: {failures[0][0]}: {failures[0][2]}." if failures else "."),
        float(limit),
        rate,
        tables=(table,) if failures else (),
        repair=repair,
        facts={"failed": counts.get("failed", 0), "invalid": counts.get("invalid", 0), "ids": total},
    )


def source_is_fresh(
    head_number: int | None,
    head_time: datetime | None,
    asked_at: datetime,
    indexing_errors: bool,
    partition: str,
) -> Verdict:
    """The subgraph's head at the time when the worker pinned its snapshot."""
    head = f"block {head_number:,}" if head_number is not None else "its block"
    limit = FRESH_WITHIN.total_seconds() / 3600
    problems: list[str] = []
    age_hours = -1.0
    if head_time is None:
        problems.append(f"the subgraph does not say how old its head ({head}) is")
    else:
        age = asked_at - head_time
        age_hours = round(age.total_seconds() / 3600, 3)
        if age > FRESH_WITHIN:
            problems.append(f"the subgraph's head ({head}) was {duration(age)} old; at most {limit:.0f} h is fresh")
    if indexing_errors:
        problems.append("the subgraph reports indexing errors")
    if problems:
        text = " and ".join(problems)
        return Verdict(
            "source_is_fresh",
            False,
            Severity.WARN,
            f"When {partition} asked, {text}.",
            f"younger than {limit:.0f} h, no indexing errors",
            f"{age_hours:g} h, {'indexing errors' if indexing_errors else 'no indexing errors'}"
            if head_time
            else "unknown",
            repair=(
                "Set GOLDSKY_ENDPOINT to a version of the subgraph that is kept up to date (Goldsky's dashboard shows "
                f"its head), or wait until it has caught up. Then: {_ask_again(partition)}"
            ),
            facts={"head age in hours": age_hours, "indexing errors": indexing_errors},
        )
    return Verdict(
        "source_is_fresh",
        True,
        Severity.WARN,
        f"When {partition} asked, the subgraph's head ({head}) was "
        f"{duration(asked_at - head_time) if head_time else ''} old, and there were no indexing errors.",
        f"younger than {limit:.0f} h, no indexing errors",
        f"{age_hours:g} h, no indexing errors",
        facts={"head age in hours": age_hours, "indexing errors": False},
    )


def nothing_was_asked(partition: str, fetched: bool) -> Verdict:
    """The freshness of a source that nobody asked: an empty chunk has nothing to ask, a missing ledger is missing."""
    return Verdict(
        "source_is_fresh",
        fetched,
        Severity.WARN,
        f"{partition} has no ids, so the subgraph was not asked."
        if fetched
        else f"There is no finished ledger of {partition}, so nobody knows how fresh its source is.",
        f"younger than {FRESH_WITHIN.total_seconds() / 3600:.0f} h, no indexing errors",
        "not asked",
        repair="" if fetched else _ask_again(partition),
    )


# --------------------------------------------------------------------------------------- resolutions_external_ingest


def stored_equals_fetched(comparison: Comparison, partition: str, sql: str = "") -> Verdict:
    """ClickHouse against the ledger, vector by vector."""
    differences = comparison.samples[:SHOWN_ROWS]
    table = Table(
        "rows that differ",
        ("condition_id", "defect", "fetched", "stored", "source"),
        tuple(
            (d.condition_id, d.state, d.fetched.replace(" ", ""), d.stored.replace(" ", ""), d.source)
            for d in differences
        ),
    )
    advice = comparison.advice()
    return Verdict(
        "stored_equals_fetched",
        comparison.ok,
        Severity.ERROR,
        comparison.sentence() + ("" if comparison.ok or not differences else f" First: {differences[0].condition_id}."),
        comparison.resolved,
        comparison.equal,
        tables=(table,) if differences else (),
        sql=sql,
        repair=f"{advice} (partition {partition})" if advice else "",
        facts={**comparison.counts, "held by other sources": comparison.held, "ids": comparison.ids},
    )


# ---------------------------------------------------------------------------------------------- vw_resolutions_truth


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What is known of one worker when the view was rebuilt.

    ``ids``: of today's input, None in scan mode. ``fetched``: a finished ledger exists; ``for_todays_input``: it has
    exactly today's ids. ``loaded``: the table was materialized after that ledger. The check names are of ERROR checks.
    """

    partition: str
    ids: int | None
    fetched: bool
    for_todays_input: bool
    loaded: bool
    counts: Mapping[str, int]
    failed_checks: tuple[str, ...] = ()
    checks_not_made: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """Why the worker does not count as complete; empty where it does."""
        if not self.fetched:
            return "never fetched"
        if not self.for_todays_input:
            return "fetched for another input"
        if not self.loaded:
            return "fetched but not loaded since"
        if self.failed_checks:
            return f"failed {', '.join(self.failed_checks)}"
        total = sum(self.counts.values())
        if self.ids is not None and total != self.ids:
            return f"{total:,} of {self.ids:,} ids accounted for"
        return ""


def all_workers_complete(workers: Sequence[WorkerState]) -> Verdict:
    """Each worker is materialized for today's input and has no failed check."""
    complete = [worker for worker in workers if not worker.problem]
    troubled = [worker for worker in workers if worker.problem]
    total = sum(sum(worker.counts.values()) for worker in complete)
    rows = tuple(
        (
            worker.partition,
            "all" if worker.ids is None else worker.ids,
            *(worker.counts.get(status, 0) for status in _STATUSES),
            worker.loaded,
            worker.problem or ("complete" if not worker.checks_not_made else _not_made(worker.checks_not_made)),
        )
        for worker in workers
    )
    table = Table("workers", ("worker", "ids", *_STATUSES, "loaded", "state"), rows)
    sentence = f"{len(complete)} of {counted(len(workers), 'worker')} {is_(len(complete))} complete"
    if troubled:
        told = "; ".join(f"{worker.partition}: {worker.problem}" for worker in troubled[:5])
        more = f" and {len(troubled) - 5} more" if len(troubled) > 5 else ""
        numbers = ",".join(worker.partition.split("_")[1].lstrip("0") for worker in troubled)
        return Verdict(
            "all_workers_complete",
            False,
            Severity.ERROR,
            f"{sentence}; {told}{more}.",
            len(workers),
            len(complete),
            tables=(table,),
            repair=(
                f"Run `payout-pipeline backfill --workers {numbers}`, or materialize goldsky_payouts and "
                "resolutions_external_ingest for these partitions; then materialize vw_resolutions_truth again."
            ),
        )
    return Verdict(
        "all_workers_complete",
        True,
        Severity.ERROR,
        f"{sentence} for today's input, with {counted(total, 'id')} accounted for.",
        len(workers),
        len(complete),
        tables=(table,),
    )


def _not_made(names: Sequence[str]) -> str:
    return f"complete, but not checked: {', '.join(names)}"


_REBUILD = "materialize vw_resolutions_truth again (`dagster asset materialize --select vw_resolutions_truth`)"


def unique_conditions(found: queries.UniqueConditions, bar: int, ids: int) -> Verdict:
    """Distinct conditions of ``goldsky-api`` against the success bar, of ``ids`` input ids."""
    passed = found.conditions >= bar
    table = Table(
        "total payouts by source",
        ("source", "total_payouts", "unique_conditions"),
        tuple((total.source, total.rows, total.conditions) for total in found.by_source),
    )
    return Verdict(
        "unique_conditions",
        passed,
        Severity.ERROR,
        f"{found.conditions:,} of {counted(ids, 'condition')} have a payout vector from goldsky-api "
        f"({share(found.conditions, ids)}); at least {bar:,} were expected.",
        bar,
        found.conditions,
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair=""
        if passed
        else (
            "Look at the statuses in all_workers_complete: many `unresolved` are markets still open (lower "
            "PAYOUT_MIN_UNIQUE_CONDITIONS if that is right for your ids), many `absent` mean that the endpoint is "
            "another subgraph than the ids come from, many `failed` are asked again by `payout-pipeline backfill`."
        ),
        facts={"total_payouts": found.rows, "unique_conditions": found.conditions, "input ids": ids},
    )


def payout_quality(found: queries.PayoutQuality) -> Verdict:
    """Numerators sum to the denominator in every row; the guide's distribution."""
    passed = found.unsound == 0
    table = Table(
        "payout distribution",
        ("count", "payout_denominator", "sum_check", "sound", "examples"),
        tuple((s.rows, s.denominator, s.total, s.sound, ", ".join(s.examples[:1])) for s in found.shapes[:SHOWN_ROWS]),
    )
    bad = next((shape for shape in found.shapes if not shape.sound), None)
    sentence = (
        f"In {found.rows - found.unsound:,} of {counted(found.rows, 'row')} the numerators sum to the denominator"
    )
    if bad is not None:
        example = f", for example {bad.examples[0]}" if bad.examples else ""
        sentence += f"; in {counted(bad.rows, 'row')} they sum to {bad.total} over {bad.denominator}{example}"
    return Verdict(
        "payout_quality",
        passed,
        Severity.ERROR,
        f"{sentence}.",
        0,
        found.unsound,
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair=""
        if passed
        else (
            "The pipeline stores only vectors whose numerators sum to the denominator, so these rows were written or "
            "changed by something else: materialize resolutions_external_ingest again for all partitions, and look at "
            "stored_equals_fetched."
        ),
        facts={"rows": found.rows},
    )


def payout_sample(found: queries.PayoutSample) -> Verdict:
    """Five rows, each well-formed."""
    bad = [row for row in found.rows if row.defect]
    table = Table(
        "sample of payouts",
        ("condition_id", "payout_numerators", "payout_denominator", "winning_index", "defect"),
        tuple(
            (row.condition_id, row.payout_numerators, row.payout_denominator, row.winning_index, row.defect)
            for row in found.rows
        ),
    )
    if not found.rows:
        sentence = "There is no row of goldsky-api to look at"
    elif bad:
        sentence = (
            f"{len(bad)} of {counted(len(found.rows), 'sampled row')} {is_(len(bad))} malformed: "
            f"{bad[0].condition_id}: {bad[0].defect}"
        )
    else:
        sentence = f"{counted(len(found.rows), 'sampled row')}, each well-formed: id, lengths, sum and winning index"
    return Verdict(
        "payout_sample",
        not bad,
        Severity.ERROR,
        f"{sentence}.",
        0,
        len(bad),
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair="Materialize resolutions_external_ingest again for all partitions; see stored_equals_fetched."
        if bad
        else "",
    )


def no_null_payouts(found: queries.NoNullPayouts) -> Verdict:
    """No resolved market without a vector."""
    bad = found.without_vector + found.missing
    parts: list[str] = []
    if found.without_vector:
        parts.append(f"{counted(found.without_vector, 'row')} of the view {has(found.without_vector)} no vector")
    if found.missing:
        parts.append(
            f"{found.missing:,} of {counted(found.resolved, 'condition')} that Goldsky resolved {has(found.missing)} "
            f"no vector in the view ({listed(found.examples, found.missing, 1)})"
        )
    sentence = (
        "; ".join(parts)
        if parts
        else f"Each of {counted(found.view_rows, 'row')} of the view has a vector, and each of "
        f"{counted(found.resolved, 'condition')} that Goldsky resolved is among them"
    )
    table = Table("resolved without a vector", ("condition_id",), tuple((i,) for i in found.examples[:SHOWN_ROWS]))
    return Verdict(
        "no_null_payouts",
        bad == 0,
        Severity.ERROR,
        f"{sentence}.",
        0,
        bad,
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair=f"Materialize resolutions_external_ingest again for all partitions, then {_REBUILD}." if bad else "",
        facts={"rows without a vector": found.without_vector, "resolved but not in the view": found.missing},
    )


def one_row_per_condition(found: queries.OneRowPerCondition) -> Verdict:
    """The view has as many rows as conditions."""
    passed = found.rows == found.conditions
    sentence = f"The view has {counted(found.rows, 'row')} for {counted(found.conditions, 'condition')}"
    if not passed:
        sentence += (
            f": {counted(found.doubled, 'condition')} {is_(found.doubled)} there more than once and "
            f"{'pays its' if found.doubled == 1 else 'pay their'} wallets again "
            f"({listed(found.examples, found.doubled, 1)})"
        )
    table = Table("conditions with several rows", ("condition_id",), tuple((i,) for i in found.examples[:SHOWN_ROWS]))
    return Verdict(
        "one_row_per_condition",
        passed,
        Severity.ERROR,
        f"{sentence}.",
        found.conditions,
        found.rows,
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair="" if passed else f"The view is not the one of this pipeline, which keeps one row each: {_REBUILD}.",
        facts={"doubled conditions": found.doubled},
    )


def goldsky_rows_included(found: queries.RowsIncluded) -> Verdict:
    """Every usable external row is in the view, or its condition comes from ``market_resolutions_final``."""
    inside = found.eligible - found.missing
    sentence = (
        f"{inside:,} of {counted(found.eligible, 'condition')} of the external table are in the view: "
        f"{found.from_external:,} from there, {found.from_market:,} from market_resolutions_final"
    )
    if found.missing:
        sentence += f"; {found.missing:,} {is_(found.missing)} missing ({listed(found.examples, found.missing, 1)})"
    table = Table("external conditions that the view lacks", ("condition_id",), tuple((i,) for i in found.examples))
    return Verdict(
        "goldsky_rows_included",
        found.missing == 0,
        Severity.ERROR,
        f"{sentence}.",
        found.eligible,
        inside,
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair=f"The view was built before these rows, or by something else: {_REBUILD}." if found.missing else "",
        facts={"from the external table": found.from_external, "from market_resolutions_final": found.from_market},
    )


def sources_agree(found: queries.SourcesAgree) -> Verdict:
    """No condition has different vectors in the two sources."""
    sentence = f"{counted(found.overlap, 'condition')} {is_(found.overlap)} resolved by both sources"
    if found.differing:
        first = found.examples[0] if found.examples else None
        example = f", for example {first.condition_id}: {first.market} against {first.goldsky}" if first else ""
        sentence += f", and {found.differing:,} of them differently{example}"
    else:
        sentence += ", all with the same vector"
    table = Table(
        "conditions that differ",
        ("condition_id", "market_resolutions_final", "goldsky-api"),
        tuple((d.condition_id, d.market, d.goldsky) for d in found.examples),
    )
    return Verdict(
        "sources_agree",
        found.differing == 0,
        Severity.WARN,
        f"{sentence}.",
        0,
        found.differing,
        tables=(table,) if table.rows else (),
        sql=found.sql,
        repair=""
        if not found.differing
        else (
            "The view takes market_resolutions_final. Look each condition up on chain (ConditionResolution of the "
            "conditional tokens contract) and correct the source that is wrong."
        ),
        facts={"resolved by both": found.overlap},
    )


@dataclass(frozen=True, slots=True)
class CoverageNumbers:
    """Conditions with a vector at one moment; ``view`` is None where there was no view."""

    market: int
    external: int
    either: int
    view: int | None


def coverage_before_after(before: CoverageNumbers | None, after: CoverageNumbers, sql: str) -> Verdict:
    """Conditions after the rebuild against before. ``before`` is None where nobody measured it."""
    check = "coverage_before_after"
    rows: list[tuple[Value, ...]] = []
    for label, numbers in (("Before", before), ("After Goldsky", after)):
        if numbers is not None:
            in_view: Value = numbers.view if numbers.view is not None else "no view"
            rows.append((label, numbers.market, numbers.external, numbers.either, in_view))
    table = Table(
        "coverage before and after",
        ("status", "market_resolutions_final", "external table", "either", "in the view"),
        tuple(rows),
    )
    now = after.view or 0
    parts = f"{after.market:,} of market_resolutions_final, {max(0, now - after.market):,} more by Goldsky"
    if before is None:
        return Verdict(
            check,
            False,
            Severity.ERROR,
            f"The view covers {counted(now, 'condition')}, and nobody knows how many before: the rebuild left no "
            "measurement.",
            "measured before the rebuild",
            now,
            tables=(table,),
            sql=sql,
            repair=f"Do not create the view by hand; {_REBUILD}, which measures before and after.",
        )
    then = before.view or 0
    passed = now >= then and after.view is not None
    gain = now - then
    if before.view is None:
        sentence = f"The view is new and covers {counted(now, 'condition')} ({parts})"
    elif passed:
        sentence = (
            f"The view covers {counted(now, 'condition')} ({parts}); {then:,} before its rebuild, {gain:,} gained"
        )
    else:
        sentence = f"The view covers {counted(now, 'condition')} ({parts}); {then:,} before its rebuild, {-gain:,} lost"
    return Verdict(
        check,
        passed,
        Severity.ERROR,
        f"{sentence}.",
        then,
        now,
        tables=(table,),
        sql=sql,
        repair=""
        if passed
        else (
            "Rows were removed from market_resolutions_final or from the external table since the last rebuild: "
            f"compare the two columns of the table, restore what is gone, then {_REBUILD}."
        ),
        facts={"gained": gain, "before": then, "after": now, "market_resolutions_final": after.market},
    )


@dataclass(frozen=True, slots=True)
class PnlNumbers:
    """Settled P&L at one moment; ``total`` and ``redemptions`` in USD, ``redemptions`` None where the view has none."""

    wallets: int
    total: float
    redemptions: float | None


@dataclass(frozen=True, slots=True)
class PnlDefects:
    """Wallets and conditions that are paid more than once, and wallets whose total is not the sum of its parts."""

    doubled_wallets: int
    doubled_conditions: int
    not_added_up: int
    examples: tuple[tuple[str, int], ...] = ()


def settled_pnl(view: str, before: PnlNumbers | None, after: PnlNumbers, defects: PnlDefects, sql: str) -> Verdict:
    """Settled P&L before and after. ``before`` is None where it could not be read: no view yet, or not measured."""
    rows: list[tuple[Value, ...]] = []
    for label, numbers in (("Before", before), ("After Goldsky", after)):
        if numbers is not None:
            paid: Value = round(numbers.redemptions, 2) if numbers.redemptions is not None else "not in the view"
            rows.append((label, numbers.wallets, round(numbers.total, 2), paid))
    table = Table(
        "settled P&L before and after",
        ("status", "wallets_with_settled_pnl", "total_settled_pnl", "redemption value"),
        tuple(rows),
    )
    tables = [table]
    problems: list[str] = []
    repairs: list[str] = []
    if defects.doubled_wallets or defects.doubled_conditions:
        if defects.doubled_wallets:
            example = (
                f" (wallet {defects.examples[0][0]} has {defects.examples[0][1]} rows)" if defects.examples else ""
            )
            problems.append(f"{counted(defects.doubled_wallets, 'row')} pay a wallet again{example}")
            tables.append(
                Table("wallets paid more than once", ("wallet", "rows"), tuple(defects.examples[:SHOWN_ROWS]))
            )
        if defects.doubled_conditions:
            problems.append(
                f"{counted(defects.doubled_conditions, 'condition')} of the truth view "
                f"{has(defects.doubled_conditions)} more than one row, so their wallets are paid twice"
            )
        repairs.append(
            f"Where one_row_per_condition failed too, {_REBUILD}; otherwise the definition of {view} joins something "
            "that has several rows a wallet"
        )
    if defects.not_added_up:
        problems.append(
            f"in {counted(defects.not_added_up, 'wallet')} the total is not trading plus redemption: redemptions are "
            "not part of it"
        )
        repairs.append(f"Correct the definition of {view}: total_pnl = trading_pnl + redemption_pnl")
    if before is not None and after.wallets < before.wallets:
        problems.append(f"{before.wallets - after.wallets:,} wallets lost their settled P&L")
        repairs.append("Compare coverage_before_after: conditions that left the view take their wallets along")
    now = f"{counted(after.wallets, 'wallet')} {has(after.wallets)} settled P&L of {after.total:,.2f} USD in total"
    if before is None:
        sentence = f"{now}; before the rebuild there was nothing to read"
    else:
        new = after.wallets - before.wallets
        covered = f", {new:,} newly covered" if new > 0 else ""
        sentence = f"{now}{covered} ({before.wallets:,} and {before.total:,.2f} USD before the rebuild)"
    if after.redemptions is not None and not problems:
        sentence += f", with redemptions of {after.redemptions:,.2f} USD in it"
    if problems:
        sentence = f"{'; '.join(problems)}. {sentence}"
    return Verdict(
        "settled_pnl",
        not problems,
        Severity.ERROR,
        f"{sentence[0].upper()}{sentence[1:]}.",
        before.wallets if before is not None else 0,
        after.wallets,
        tables=tuple(tables),
        sql=sql,
        repair=f"{'. '.join(repairs)}." if repairs else "",
        facts={
            "total_settled_pnl": round(after.total, 2),
            "paid twice": defects.doubled_wallets + defects.doubled_conditions,
            "not added up": defects.not_added_up,
        },
    )


def no_pnl_view(view: str, embedded: bool) -> Verdict:
    """``settled_pnl`` without its view: nothing to compare in a fresh embedded database, a mistake on a server."""
    return Verdict(
        "settled_pnl",
        embedded,
        Severity.ERROR,
        f"There is no view {view}"
        + (
            " in the embedded database, so no settled P&L can be compared."
            if embedded
            else ", or the user may not see it."
        ),
        "a view of settled P&L",
        "none",
        repair="" if embedded else f"Create {view}, GRANT SELECT on it, or set PAYOUT_PNL_VIEW (empty: no P&L check).",
    )


def could_not_be_made(check: str, severity: Severity, message: str) -> Verdict:
    """A check whose question has no answer here, because something that it reads is missing or of another shape."""
    head, _, rest = message.partition("\n")
    return Verdict(
        check,
        False,
        severity,
        head[:1].upper() + head[1:],
        "an answer",
        "none",
        repair=" ".join(rest.split()).removeprefix("To repair it: "),
    )
