"""The checks of ``vw_resolutions_truth``: the view and its sources as they are stored at the moment of the check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from payout_pipeline.ids.chunks import Worklist
from payout_pipeline.ids.today import todays_ids
from payout_pipeline.ledger import Ledger
from payout_pipeline.verdict import SHOWN_ROWS, Table, Verdict
from payout_pipeline.verification.before_after import REBUILD, coverage_before_after, settled_pnl
from payout_pipeline.verification.expected_view import VIEW_COLUMNS, ViewComparison, compare_view
from payout_pipeline.verification.numbers import Place, id_batch
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.load import slices
from payout_pipeline.warehouse.statements import Sql, statement
from payout_pipeline.warehouse.target import SOURCE
from payout_pipeline.warehouse.view import normal_id
from payout_pipeline.words import counted, has, is_, listed, share

if TYPE_CHECKING:
    import pyarrow as pa

    from payout_pipeline.settings import Settings
    from payout_pipeline.warehouse.client import Session

#: Ids that travel to the database in one statement, for each of which it evaluates the view once: 35 MB.
_IDS_AT_ONCE = 1 << 19
_LOAD_AGAIN = "materialize resolutions_external_ingest again for all partitions"


def checks(settings: Settings, worklist: Worklist, session: Session) -> Mapping[str, Callable[[], Verdict]]:
    """The checks by name, all of one session; ``all_workers_complete`` is not among them, as it needs no database."""
    at = _View(settings, worklist, session)
    methods = (
        at.unique_conditions,
        at.payout_quality,
        at.payout_sample,
        at.no_null_payouts,
        at.one_row_per_condition,
        at.goldsky_rows_included,
        at.market_rows_included,
        at.view_equals_sources,
        at.sources_agree,
    )
    found: dict[str, Callable[[], Verdict]] = {method.__name__: method for method in methods}
    found |= {function.__name__: partial(function, at.place) for function in (coverage_before_after, settled_pnl)}
    return {name: partial(_of_readable_tables, at.place, check) for name, check in found.items()}


def _of_readable_tables(place: Place, check: Callable[[], Verdict]) -> Verdict:
    """The verdict of ``check``; raises the fault of a source table where the view over it cannot be read because of that."""
    try:
        return check()
    except ClickHouseRefusedError:
        _ = (place.target, place.market)
        raise


def _ids_table(title: str, ids: list[str]) -> tuple[Table, ...]:
    return (Table(title, ("condition_id",), tuple((i,) for i in ids[:SHOWN_ROWS])),)


class _View:
    """The view and its sources; what several checks need is read once."""

    def __init__(self, settings: Settings, worklist: Worklist, session: Session) -> None:
        self._settings, self._worklist, self._session = settings, worklist, session
        self.place = Place(session, settings)

    def _rows(self, name: str, doing: str, **parts: Any) -> tuple[list[dict[str, Any]], str]:
        sql = statement(f"checks/{name}", **parts)
        parameters = {"source": SOURCE} if "{source:" in sql else {}
        return self._session.rows(sql, parameters, doing=doing), sql

    @cached_property
    def _comparison(self) -> ViewComparison:
        _ = self.place.view
        return compare_view(self.place)

    def _input_ids(self) -> Iterator[pa.RecordBatch]:
        """Today's input: the ids of the list, or in scan mode those of the ledgers."""
        import pyarrow as pa

        if self._worklist.ids is None:
            yield from map(id_batch, self._ledgers(["condition_id"], None))
            return
        found = todays_ids(self._settings)
        for start in range(0, found.count, _IDS_AT_ONCE):
            yield pa.record_batch({"condition_id": pa.array(found.ids(start, start + _IDS_AT_ONCE), pa.string())})

    def _ledgers(self, columns: list[str], statuses: list[str] | None) -> Iterator[pa.RecordBatch]:
        for worker in self._worklist.workers:
            ledger = Ledger(self._settings.runtime_dir, worker.key)
            if ledger.finished() is not None:
                yield from ledger.read(columns, statuses)

    def unique_conditions(self) -> Verdict:
        """Distinct ids of today's input stored with source goldsky-api reach the success bar."""
        target = self.place.target
        parts: dict[str, Any] = {"target": target.name, "final": target.table.final, "id": normal_id("m.condition_id")}
        totals, _ = self._rows("unique_conditions", f"counting the conditions of {target.name}", **parts)
        stored = ids = 0
        sql = statement("checks/unique_conditions_of_input", **parts)
        for batch in self._input_ids():
            ids += batch.num_rows
            doing = f"looking for the ids of the input in {target.name}"
            stored += self._session.rows(sql, {"source": SOURCE}, doing=doing, external={"asked": batch})[0][
                "conditions"
            ]
        empty = self._worklist.ids == 0  # only a query gives no ids; a scan that found none is no success
        bar = self._settings.success_bar(ids)
        passed = stored >= bar
        table = Table(
            "total payouts by source",
            ("source", "total_payouts", "unique_conditions"),
            tuple((row["source"], row["total_payouts"], row["unique_conditions"]) for row in totals),
        )
        return Verdict(
            passed,
            f"{stored:,} of {counted(ids, 'condition')} of the input {has(stored)} a payout vector from {SOURCE} "
            f"({share(stored, ids)}); at least {bar:,} were expected."
            if not empty
            else "The input has no ids: no condition is missing.",
            bar,
            stored,
            tables=(table,),
            nothing=empty,
            sql=sql,
            repair="Compare the statuses in all_workers_complete: many `unresolved` are markets still open (lower "
            "PAYOUT_MIN_UNIQUE_CONDITIONS if that is right for your ids), many `absent` mean that the endpoint is another "
            "subgraph than the ids come from, or that they are question or token ids, many `failed` are asked again by "
            "`payout-pipeline backfill`.",
            facts={"unique_conditions": stored, "input ids": ids},
        )

    def payout_quality(self) -> Verdict:
        """Numerators sum to the denominator in every row of the table and of the view; the guide's distribution."""
        target = self.place.target
        shapes, sql = self._rows(
            "payout_quality", f"checking the vectors of {target.name}", target=target.name, final=target.table.final
        )
        view, view_sql = self._rows("payout_quality_view", "checking the vectors of the view", view=self.place.view)
        rows, unsound = sum(s["count"] for s in shapes), sum(s["count"] for s in shapes if not s["sound"])
        of_view = view[0]
        table = Table(
            "payout distribution",
            ("count", "payout_denominator", "sum_check", "sound", "examples"),
            tuple(
                (s["count"], s["payout_denominator"], s["sum_check"], bool(s["sound"]), ", ".join(s["examples"][:1]))
                for s in shapes[:SHOWN_ROWS]
            ),
        )
        problems = []
        if unsound:
            bad = next(s for s in shapes if not s["sound"])
            problems.append(
                f"in {counted(unsound, 'row')} of {target.name} they do not, for example {bad['examples'][0]}: they sum to "
                f"{bad['sum_check']} over {bad['payout_denominator']}"
            )
        if of_view["unsound"]:
            problems.append(
                f"in {counted(of_view['unsound'], 'row')} of the view they do not, for example {of_view['examples'][0]}"
            )
        empty = not rows and self._expects_rows()
        sentence = f"In {rows - unsound:,} of {counted(rows, 'row')} of {SOURCE} the numerators sum to the denominator"
        return Verdict(
            not problems and not empty,
            f"{'; '.join([sentence, *problems])}{', though resolved vectors were fetched' if empty else ''}.",
            0,
            unsound + of_view["unsound"],
            tables=(table,),
            sql=f"{sql}\n;\n{view_sql}",
            repair=f"The pipeline stores only vectors whose numerators sum to the denominator: {_LOAD_AGAIN}; rows of "
            f"{self._settings.market_resolutions_table} are yours to correct.",
            facts={"rows": rows, "rows of the view": of_view["rows"]},
            nothing=not rows and not empty and not problems,
        )

    def _expects_rows(self) -> bool:
        """Whether any ledger has a resolved id, so that an empty table is a fault."""
        snapshots = [Ledger(self._settings.runtime_dir, worker.key).finished() for worker in self._worklist.workers]
        return any(info is None or info.counts["resolved"] for info in snapshots)

    def payout_sample(self) -> Verdict:
        """Five rows, each well-formed."""
        target = self.place.target
        rows, sql = self._rows(
            "payout_sample", f"taking a sample of {target.name}", target=target.name, final=target.table.final
        )
        bad = [row for row in rows if row["defect"]]
        columns = ("condition_id", "payout_numerators", "payout_denominator", "winning_index", "defect")
        table = Table("sample of payouts", columns, tuple(tuple(row[c] for c in columns) for row in rows))
        empty = not rows and self._expects_rows()
        if not rows:
            sentence = f"There is no row of {SOURCE} to check"
        elif bad:
            sentence = (
                f"{len(bad)} of {counted(len(rows), 'sampled row')} {is_(len(bad))} malformed: "
                f"{bad[0]['condition_id']}: {bad[0]['defect']}"
            )
        else:
            sentence = f"{counted(len(rows), 'sampled row')}, each well-formed: id, lengths, sum and winning index"
        return Verdict(
            bool(rows) and not bad,
            f"{sentence}.",
            0,
            len(bad),
            tables=(table,),
            sql=sql,
            repair=f"{_LOAD_AGAIN[0].upper()}{_LOAD_AGAIN[1:]}; see stored_equals_fetched.",
            nothing=not rows and not empty,
        )

    def no_null_payouts(self) -> Verdict:
        """No resolved market without a vector: neither a row of the view, nor an id that the ledgers have as resolved."""
        view = self.place.view
        counts, sql_view = self._rows("no_null_payouts_view", f"looking for empty vectors in {view}", view=view)
        sql = statement("checks/no_null_payouts", view=view)
        resolved = missing = 0
        examples: list[str] = list(counts[0]["examples"])
        for batch in slices(self._ledgers(["condition_id"], ["resolved"]), _IDS_AT_ONCE):
            resolved += batch.num_rows
            doing = f"looking for resolved conditions in {view}"
            found = self._session.arrow(sql, doing=doing, external={"resolved": id_batch(batch)})
            missing += found.num_rows
            examples += found.column("condition_id").slice(0, SHOWN_ROWS).to_pylist()
        empty = counts[0]["without_vector"]
        parts = []
        if empty:
            parts.append(f"{counted(empty, 'row')} of the view {has(empty)} no vector ({listed(examples, empty, 1)})")
        if missing:
            parts.append(
                f"{missing:,} of {counted(resolved, 'condition')} that Goldsky resolved {has(missing)} no vector in the view"
            )
        sentence = "; ".join(parts) or (
            f"Each of {counted(counts[0]['rows'], 'row')} of the view has a vector, and each of "
            f"{counted(resolved, 'condition')} that Goldsky resolved is among them"
        )
        return Verdict(
            not parts,
            f"{sentence}.",
            0,
            empty + missing,
            tables=_ids_table("resolved without a vector", examples),
            sql=f"{sql_view}\n;\n{sql}",
            repair=f"{_LOAD_AGAIN[0].upper()}{_LOAD_AGAIN[1:]}, then {REBUILD}. Rows of "
            f"{self._settings.market_resolutions_table} without a vector are yours to correct.",
            facts={"rows without a vector": empty, "resolved but not in the view": missing},
        )

    def one_row_per_condition(self) -> Verdict:
        """The view has as many rows as conditions."""
        view = self.place.view
        counts, sql = self._rows("one_row_per_condition", f"counting the rows of {view}", view=view)
        rows, conditions = counts[0]["rows"], counts[0]["conditions"]
        doubled, examples = 0, []
        if rows != conditions:
            found, _ = self._rows(
                "one_row_per_condition_doubled", f"looking for doubled conditions in {view}", view=view
            )
            doubled, examples = found[0]["doubled"], list(found[0]["examples"])
        sentence = f"The view has {counted(rows, 'row')} for {counted(conditions, 'condition')}"
        if rows != conditions:
            sentence += (
                f": {counted(doubled, 'condition')} {is_(doubled)} there more than once and "
                f"{'pays its' if doubled == 1 else 'pay their'} wallets again ({listed(examples, doubled, 1)})"
            )
        return Verdict(
            rows == conditions,
            f"{sentence}.",
            conditions,
            rows,
            tables=_ids_table("conditions with several rows", examples),
            sql=sql,
            repair=f"The view is not the one of this pipeline: {REBUILD}.",
        )

    def goldsky_rows_included(self) -> Verdict:
        """Every eligible external row is in the view, or its condition comes from ``market_resolutions_final``."""
        found, sql = self._rows(
            "goldsky_rows_included",
            f"looking for external rows in {self.place.view}",
            view=self.place.view,
            market_name=Sql(self.place.market.name.name),
            **self.place.target_parts,
        )
        row = found[0]
        missing, examples = row["missing"], list(row["examples"])
        included = row["eligible"] - missing
        sentence = (
            f"{included:,} of {counted(row['eligible'], 'condition')} of the external table {is_(included)} in the "
            f"view: {row['from_external']:,} from there, {row['from_market']:,} from market_resolutions_final"
        )
        if missing:
            sentence += f"; {missing:,} {is_(missing)} missing ({listed(examples, missing, 1)})"
        return Verdict(
            not missing,
            f"{sentence}.",
            row["eligible"],
            included,
            tables=_ids_table("external conditions that the view lacks", examples),
            sql=sql,
            repair=f"The view was built before these rows, or by something else: {REBUILD}.",
            facts={
                "from the external table": row["from_external"],
                "from market_resolutions_final": row["from_market"],
            },
        )

    def market_rows_included(self) -> Verdict:
        """Every eligible row of ``market_resolutions_final`` is in the view."""
        found = self._comparison
        missing = found.market_missing
        whole = f"{counted(found.market, 'condition')} of {self.place.market.name}"
        sentence = f"{found.market - missing:,} of {whole} {is_(found.market - missing)} in the view"
        if missing:
            sentence += f"; {missing:,} {is_(missing)} missing ({listed(found.missing_market_ids, missing, 1)})"
        return Verdict(
            not missing,
            f"{sentence}.",
            found.market,
            found.market - missing,
            tables=_ids_table("conditions of the market table that the view lacks", found.missing_market_ids),
            sql=found.sql,
            repair=f"The view is not the one of this pipeline: {REBUILD}.",
            nothing=not found.market,
        )

    def view_equals_sources(self) -> Verdict:
        """Each row of the view equals the row of the source that the precedence names, and there is no other row."""
        found = self._comparison
        wrong = found.changed + found.lost + found.foreign
        if wrong:
            parts = [
                f"{number:,} {what}"
                for number, what in (
                    (found.changed, "different"),
                    (found.lost, "lost"),
                    (found.foreign, "not in the sources"),
                )
                if number
            ]
            sentence = (
                f"The view differs from its sources in {counted(wrong, 'condition')}: {', '.join(parts)}; for example "
                f"{found.differences[0][0]}"
            )
        else:
            sentence = f"Each of {counted(found.rows, 'row')} of the view equals its source in all six columns"
        if found.shape:
            sentence = f"{self.place.view} is {found.shape}, and not a view of {', '.join(VIEW_COLUMNS)}. {sentence}"
        table = Table(
            "rows that differ", ("condition_id", "defect", "sources say", "view says"), tuple(found.differences)
        )
        return Verdict(
            not wrong and not found.shape,
            f"{sentence}.",
            found.expected,
            found.rows,
            tables=(table,),
            sql=found.sql,
            repair=f"The view is not the one of this pipeline, or was built from other tables: {REBUILD}.",
            facts={"different": found.changed, "lost": found.lost, "not in the sources": found.foreign},
        )

    def sources_agree(self) -> Verdict:
        """No condition has different vectors in the two sources."""
        found = self._comparison
        sentence = f"{counted(found.overlap, 'condition')} {is_(found.overlap)} resolved by both sources"
        if found.differing:
            first = found.disagreements[0]
            sentence += (
                f", {found.differing:,} of them differently, for example {first[0]}: {first[1]} against {first[2]}"
            )
        elif found.overlap:
            sentence += ", all with the same vector"
        columns = ("condition_id", "market_resolutions_final", SOURCE)
        return Verdict(
            bool(found.overlap) and not found.differing,
            f"{sentence}.",
            0,
            found.differing,
            tables=(Table("conditions that differ", columns, tuple(found.disagreements)),),
            sql=found.sql,
            repair="The view takes market_resolutions_final. Look each condition up on chain (ConditionResolution of the "
            "conditional tokens contract) and correct the source that is wrong.",
            facts={"resolved by both": found.overlap},
            nothing=not found.overlap,
        )
