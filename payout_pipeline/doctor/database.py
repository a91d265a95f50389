"""What the doctor sees of ClickHouse: whether it answers, its tables, and the rights of the user."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from payout_pipeline.doctor.finding import Finding, Level
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.warehouse.identifiers import QualifiedName

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings
    from payout_pipeline.warehouse.client import Session

_WAIT_SECONDS = 3.0


def database_findings(settings: Settings) -> list[Finding]:
    """Look at the database, without making anything in it."""
    from payout_pipeline.warehouse.client import Warehouse

    findings: list[Finding] = []
    try:
        warehouse = Warehouse.existing(settings, "doctor", _WAIT_SECONDS)
        if warehouse is None:
            return [_not_made_yet()]
        with warehouse.session("doctor") as session:
            findings.append(Finding("clickhouse", "ok", f"{session.address} answers, version {session.version}"))
            findings += _tables(session, settings)
            if not session.embedded:
                findings += _rights(session, settings)
    except PayoutPipelineError as fault:
        findings.append(Finding.of_fault("clickhouse", fault))
    return findings


def _not_made_yet() -> Finding:
    if importlib.util.find_spec("chdb") is None:
        return Finding(
            "clickhouse",
            "problem",
            "CLICKHOUSE_HOST is not set and the embedded engine (chdb) is not installed",
            "Set CLICKHOUSE_HOST, or pip install 'payout-pipeline[embedded]'.",
        )
    return Finding("clickhouse", "ok", "embedded: the database and its tables will be made by the first run")


def _tables(session: Session, settings: Settings) -> Iterator[Finding]:
    yield _target(session, settings)
    yield from _view_place(session, settings)
    yield _users_table(session, "PAYOUT_MARKET_RESOLUTIONS_TABLE", settings.market_resolutions_table, "problem")
    if settings.pnl_view:
        yield _users_table(session, "PAYOUT_PNL_VIEW", settings.pnl_view, "warning")
    else:
        yield Finding("clickhouse", "ok", "PAYOUT_PNL_VIEW is empty: no P&L check")


def _target(session: Session, settings: Settings) -> Finding:
    from payout_pipeline.warehouse.schema import inspect_table
    from payout_pipeline.warehouse.target import check_target

    name = QualifiedName.parse(settings.target_table)
    target = inspect_table(session, name)
    if target is None:
        return Finding("clickhouse", "ok", f"target {name} does not exist yet; a run creates it")
    try:
        check_target(target, settings.clickhouse_cluster)
    except PayoutPipelineError as fault:
        return Finding.of_fault("clickhouse", fault)
    types = ", ".join(f"{column} {kind}" for column, kind in list(target.columns.items())[1:4])
    return Finding("clickhouse", "ok", f"target {name} ({target.engine}) can hold the vectors: {types}")


def _view_place(session: Session, settings: Settings) -> Iterator[Finding]:
    from payout_pipeline.warehouse.schema import check_view_place

    try:
        check_view_place(session, settings)
    except PayoutPipelineError as fault:
        yield Finding.of_fault("clickhouse", fault)


def _users_table(session: Session, variable: str, text: str, if_missing: Level) -> Finding:
    """A table or view of the user's, which a run reads and, on a server, does not make."""
    from payout_pipeline.warehouse.schema import ID_COLUMNS, inspect_table

    found = inspect_table(session, QualifiedName.parse(text))
    is_view = variable == "PAYOUT_PNL_VIEW"
    if found is None and session.embedded:
        then = "the P&L check will have nothing to look at" if is_view else "a run creates it empty"
        return Finding("clickhouse", "ok", f"{text} does not exist; {then}")
    if found is None:
        repair = f"Create it, GRANT SELECT on it, or set {variable}"
        tail = " to nothing for no P&L check." if is_view else "."
        return Finding("clickhouse", if_missing, f"{text} does not exist or may not be seen", repair + tail)
    if not is_view and found.id_column is None:
        return Finding(
            "clickhouse",
            "problem",
            f"{text} has neither {' nor '.join(ID_COLUMNS)} (it has {', '.join(found.columns)})",
            f"Set {variable} to the table of known resolutions.",
        )
    column = f", ids in {found.id_column}" if found.id_column else ""
    return Finding("clickhouse", "ok", f"{text} is there ({found.engine}{column})")


def _rights(session: Session, settings: Settings) -> Iterator[Finding]:
    """What a run does on the server, asked for without doing it (``CHECK GRANT``, ClickHouse 24.11 and later)."""
    target, view = QualifiedName.parse(settings.target_table), QualifiedName.parse(settings.truth_view)
    wanted = (
        f"SELECT, INSERT, ALTER DELETE ON {target.sql}",
        f"SELECT ON {QualifiedName.parse(settings.market_resolutions_table).sql}",
        f"SELECT, CREATE VIEW, DROP VIEW ON {view.sql}",
    )
    missing: list[str] = []
    for grant in wanted:
        try:
            allowed = session.scalar(f"CHECK GRANT {grant}", doing="asking for the user's rights")
        except PayoutPipelineError:
            yield Finding("clickhouse", "ok", "rights cannot be asked for on this version; a run finds out")
            return
        if not int(allowed):
            missing.append(grant)
    if missing:
        yield Finding(
            "clickhouse",
            "problem",
            f"the user lacks {len(missing)} of {len(wanted)} sets of rights",
            "; ".join(f"GRANT {grant}" for grant in missing) + f" TO {settings.clickhouse_user or 'default'}.",
        )
    else:
        yield Finding("clickhouse", "ok", "rights: load, delete superseded rows, rebuild the view")
