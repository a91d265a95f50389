"""The checks of ``vw_resolutions_truth``: all of them in one database session."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from payout_pipeline import verification as judge
from payout_pipeline.checks.catalogue import VIEW, checks_of
from payout_pipeline.checks.workers import worker_states
from payout_pipeline.errors import ConfigurationError
from payout_pipeline.ledger import Ledger
from payout_pipeline.settings import Settings
from payout_pipeline.storage import join, open_store
from payout_pipeline.verdict import Verdict
from payout_pipeline.verification import CoverageNumbers, PnlDefects, PnlNumbers
from payout_pipeline.warehouse import queries
from payout_pipeline.warehouse.client import Session, Warehouse
from payout_pipeline.worklist import Worklist

if TYPE_CHECKING:
    import pyarrow as pa

#: Written by the rebuild of the view: coverage and P&L before and after it.
MEASUREMENTS = join(VIEW, "measurements.json")


def verdicts(
    settings: Settings, instance: dg.DagsterInstance, worklist: Worklist, names: Collection[str]
) -> list[Verdict]:
    """The verdicts of the named checks, in the order of the catalogue.

    Raises what a session of the warehouse raises, and ConfigurationError where the target table does not exist.
    """
    found: dict[str, Verdict] = {}
    if "all_workers_complete" in names:
        found["all_workers_complete"] = judge.all_workers_complete(worker_states(instance, settings, worklist))
    infos = [info for info in checks_of(VIEW, settings) if info.name in names and info.name not in found]
    if infos:
        warehouse = Warehouse.from_settings(settings, "checks of the truth view")
        with warehouse.session("checking the truth view") as session:
            asked = _Questions(settings, session, worklist)
            for info in infos:
                try:
                    found[info.name] = asked.answer(info.name)
                except ConfigurationError as fault:
                    found[info.name] = judge.could_not_be_made(info.name, info.severity, str(fault))
    return [found[info.name] for info in checks_of(VIEW, settings) if info.name in found]


class _Questions:
    """One session's questions; what several checks need is read once."""

    def __init__(self, settings: Settings, session: Session, worklist: Worklist) -> None:
        self._settings, self._session, self._worklist = settings, session, worklist
        self._place = queries.survey(session, settings)
        self._measured = read_measurements(settings)

    def answer(self, name: str) -> Verdict:
        session, place = self._session, self._place
        simple: dict[str, Callable[[], Verdict]] = {
            "payout_quality": lambda: judge.payout_quality(queries.payout_quality(session, place)),
            "payout_sample": lambda: judge.payout_sample(queries.payout_sample(session, place)),
            "no_null_payouts": lambda: judge.no_null_payouts(queries.no_null_payouts(session, place, self._resolved())),
            "one_row_per_condition": lambda: judge.one_row_per_condition(queries.one_row_per_condition(session, place)),
            "goldsky_rows_included": lambda: judge.goldsky_rows_included(queries.goldsky_rows_included(session, place)),
            "sources_agree": lambda: judge.sources_agree(queries.sources_agree(session, place)),
            "unique_conditions": self._unique_conditions,
            "coverage_before_after": self._coverage,
            "settled_pnl": self._settled_pnl,
        }
        return simple[name]()

    def _resolved(self) -> Iterator[pa.RecordBatch]:
        for worker in self._worklist.workers:
            ledger = Ledger(self._settings.runtime_dir, worker.key)
            if ledger.finished() is not None:
                yield from ledger.read(["condition_id", "status"], ["resolved"])

    def _input_ids(self) -> int:
        """How many ids there are; in scan mode as many as the ledgers hold."""
        if self._worklist.ids is not None:
            return self._worklist.ids
        snapshots = [Ledger(self._settings.runtime_dir, worker.key).finished() for worker in self._worklist.workers]
        return sum(snapshot.ids for snapshot in snapshots if snapshot is not None)

    def _unique_conditions(self) -> Verdict:
        ids = self._input_ids()
        found = queries.unique_conditions(self._session, self._place)
        return judge.unique_conditions(found, self._settings.success_bar(ids), ids)

    def _coverage(self) -> Verdict:
        now = queries.coverage(self._session, self._place)
        after = CoverageNumbers(
            now.market_conditions,
            now.external_conditions,
            now.either_conditions,
            now.view_conditions if now.view_exists else None,
        )
        return judge.coverage_before_after(coverage_of(self._measured.get("before")), after, now.sql)

    def _settled_pnl(self) -> Verdict:
        now = queries.settled_pnl(self._session, self._place)
        if now is None:
            return judge.no_pnl_view(self._settings.pnl_view, self._settings.embedded)
        return judge.settled_pnl(
            self._settings.pnl_view,
            pnl_of(self._measured.get("pnl_before")),
            PnlNumbers(now.wallets_with_pnl, now.total, now.redemption_total),
            PnlDefects(now.doubled_wallets, now.doubled_conditions, now.not_added_up, now.examples),
            now.sql,
        )


def read_measurements(settings: Settings) -> Mapping[str, Any]:
    """What the rebuild measured; empty where it left nothing that can be read."""
    try:
        found = json.loads(open_store(settings.runtime_dir).read(MEASUREMENTS))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def coverage_of(fields: object) -> CoverageNumbers | None:
    """The stored form of :class:`~payout_pipeline.warehouse.queries.Coverage`; None for anything else."""
    if not isinstance(fields, Mapping):
        return None
    names = ("market_conditions", "external_conditions", "either_conditions", "view_conditions")
    if not all(type(fields.get(name)) is int for name in names):
        return None
    market, external, either, view = (int(fields[name]) for name in names)
    return CoverageNumbers(market, external, either, view if fields.get("view_exists", True) else None)


def pnl_of(fields: object) -> PnlNumbers | None:
    """The stored form of :class:`~payout_pipeline.warehouse.queries.SettledPnl`; None for anything else."""
    if not isinstance(fields, Mapping):
        return None
    wallets, total, redemptions = (fields.get(name) for name in ("wallets_with_pnl", "total", "redemption_total"))
    if type(wallets) is not int or not isinstance(total, (int, float)):
        return None
    return PnlNumbers(wallets, float(total), float(redemptions) if isinstance(redemptions, (int, float)) else None)
