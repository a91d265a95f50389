"""The success report: the latest status of every check, worst first, on one page. It shows; it decides nothing.

Everything in it was computed by the checks and stored by Dagster, so the report, the UI and the exit code cannot
disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payout_pipeline.checks.history import CheckStatus, State, latest_statuses
from payout_pipeline.settings import Settings
from payout_pipeline.verdict import Severity, Table
from payout_pipeline.words import counted
from payout_pipeline.worklist import Worklist, read_worklist

if TYPE_CHECKING:
    import dagster as dg
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

#: With more workers than this, passed checks of workers are one line a check.
_WORKERS_ONE_BY_ONE = 8
_PAGE_WIDTH = 160
_STATES = tuple(State)


@dataclass(frozen=True)
class Report:
    """The statuses in the order of the catalogue, and what they add up to."""

    made_at: datetime
    worklist: Worklist
    target_table: str
    truth_view: str
    endpoint: str
    statuses: tuple[CheckStatus, ...]

    @property
    def worst_first(self) -> list[CheckStatus]:
        """What blocks success, then warnings, then what passed; within each in the order of the catalogue."""
        return sorted(self.statuses, key=_rank)

    @property
    def exit_code(self) -> int:
        """0 where every ERROR check passed for today's input; 1 otherwise. Warnings do not count."""
        return int(any(status.blocks_success for status in self.statuses))

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        total = len(self.statuses)
        passed = sum(status.state is State.PASSED for status in self.statuses)
        warned = sum(status.state is not State.PASSED and not status.blocks_success for status in self.statuses)
        warnings = f"; {counted(warned, 'warning')}" if warned else ""
        if not self.exit_code:
            return f"SUCCESS: {passed} of {total} checks passed for today's input{warnings}"
        blocking = [status for status in self.statuses if status.blocks_success]
        parts = [
            f"{sum(status.state is state for status in blocking)} {state.value}"
            for state in _STATES
            if any(status.state is state for status in blocking)
        ]
        what = counted(len(blocking), "ERROR check")
        return f"NOT A SUCCESS: {what} without a pass ({', '.join(parts)}); {passed} of {total} passed{warnings}"

    def as_json(self) -> dict[str, Any]:
        """Everything the report knows, as plain JSON values."""
        return {
            "made_at": self.made_at.isoformat(timespec="seconds"),
            "headline": self.headline,
            "exit_code": self.exit_code,
            "input": {
                "source": self.worklist.source,
                "ids": self.worklist.ids,
                "duplicates": self.worklist.duplicates,
                "workers": len(self.worklist.workers),
                "fingerprint": self.worklist.fingerprint,
            },
            "target_table": self.target_table,
            "truth_view": self.truth_view,
            "endpoint": self.endpoint,
            "checks": [_status_json(status) for status in self.worst_first],
        }


def _rank(status: CheckStatus) -> tuple[int, int]:
    group = 0 if status.blocks_success else 2 if status.state is State.PASSED else 1
    return group, _STATES.index(status.state)


def _status_json(status: CheckStatus) -> dict[str, Any]:
    verdict = status.verdict
    return {
        "asset": status.info.asset,
        "check": status.info.name,
        "partition": status.partition,
        "state": status.state.value,
        "severity": status.severity.value,
        "blocks_success": status.blocks_success,
        "reason": status.reason,
        "description": verdict.description if verdict else "",
        "expected": verdict.expected if verdict else None,
        "actual": verdict.actual if verdict else None,
        "facts": dict(verdict.facts) if verdict else {},
        "tables": [
            {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
            for table in (verdict.tables if verdict else ())
        ],
        "sql": verdict.sql if verdict else "",
        "repair": verdict.repair if verdict else "",
        "run_id": status.run_id,
        "at": status.at.isoformat(timespec="seconds") if status.at else None,
    }


def build_report(settings: Settings, instance: dg.DagsterInstance, now: datetime | None = None) -> Report:
    """Read the latest statuses from ``instance`` and compare them with today's input.

    Raises InputError where the input file cannot be read: without it nothing can be said about today's input.
    """
    worklist = read_worklist(settings)
    return Report(
        made_at=now or datetime.now(timezone.utc),
        worklist=worklist,
        target_table=settings.target_table,
        truth_view=settings.truth_view,
        endpoint=settings.goldsky_endpoint.split("?", 1)[0],
        statuses=tuple(latest_statuses(instance, settings, worklist)),
    )


def render(report: Report, console: Console) -> None:
    """Print the page: the headline, what went wrong with what to do, what passed, and the guide's tables."""
    width = console.width
    if not console.is_terminal:
        console.width = max(width, _PAGE_WIDTH)  # a file or a pipe has no width; ids are not to be cut there
    try:
        _render(report, console)
    finally:
        console.width = width


def _render(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.panel import Panel

    good = report.exit_code == 0
    ids = "all resolved conditions" if report.worklist.ids is None else counted(report.worklist.ids, "id")
    console.print()
    console.print(
        Panel(
            f"[bold]{escape(report.headline)}[/]\n"
            f"{escape(report.worklist.source)}: {ids}, {counted(len(report.worklist.workers), 'worker')}; "
            f"table {escape(report.target_table)}, view {escape(report.truth_view)}",
            title="Success report",
            border_style="green" if good else "red",
        )
    )
    for group in _grouped([status for status in report.worst_first if status.state is not State.PASSED]):
        for part in _trouble(group):
            console.print(part)
    passed = [status for status in report.statuses if status.state is State.PASSED]
    if passed:
        console.print(_passed(passed, len(report.worklist.workers)))
        for status in passed:
            # A worker's own tables repeat those of the whole, but for the ids that failed within the allowed rate.
            if status.verdict is not None and (status.partition is None or status.info.name == "error_rate"):
                for table in status.verdict.tables:
                    where = f" of {status.partition}" if status.partition else ""
                    console.print(_rich(table, f"{table.title}{where}"))


def _grouped(statuses: list[CheckStatus]) -> list[list[CheckStatus]]:
    """Workers whose check is missing for the same reason stand together; each that failed stands alone."""
    groups: dict[tuple[str, ...], list[CheckStatus]] = {}
    for status in statuses:
        alone = (status.partition or "",) if status.state is State.FAILED else ()
        groups.setdefault((status.info.asset, status.info.name, status.state, status.reason, *alone), []).append(status)
    return list(groups.values())


def _trouble(group: list[CheckStatus]) -> list[RenderableType]:
    """A check that did not pass, with all there is to know about it."""
    from rich.markup import escape
    from rich.padding import Padding

    status = group[0]
    warn = status.info.severity is Severity.WARN
    colour = "yellow" if warn else "red"
    label = "WARNING" if warn else "ERROR"
    where = ", ".join([status.info.asset, *(s.partition for s in group if s.partition)])
    parts: list[RenderableType] = [
        f"[bold {colour}]{label} · {escape(status.info.name)}[/] ({escape(where)}) {status.state.value}"
    ]
    lines = [escape(status.sentence if len(group) == 1 else status.reason)]
    verdict = status.verdict
    if verdict is not None and status.state is State.FAILED:
        lines.append(f"[dim]expected[/] {escape(str(verdict.expected))}   [dim]actual[/] {escape(str(verdict.actual))}")
    repair = verdict.repair if verdict is not None and verdict.repair else _how_to_run(group)
    lines.append(f"[bold]What to do:[/] {escape(repair)}")
    parts.append(Padding("\n".join(lines), (0, 0, 0, 2)))
    if verdict is not None and status.state is State.FAILED:
        parts.extend(Padding(_rich(table, table.title), (0, 0, 0, 2)) for table in verdict.tables)
    return parts


def _how_to_run(group: list[CheckStatus]) -> str:
    status = group[0]
    if status.state is State.RUNNING:
        return "wait for it, then ask for the report again."
    if status.partition is None:
        return f"run `payout-pipeline backfill`, or materialize {status.info.asset} once all workers are in."
    keys = [s.partition for s in group if s.partition is not None]
    numbers = ",".join(str(int(key.split("_")[1])) for key in keys)
    return (
        f"run `payout-pipeline backfill --workers {numbers}`, or materialize {status.info.asset} for {', '.join(keys)}."
    )


def _passed(passed: list[CheckStatus], workers: int) -> RichTable:
    from rich.markup import escape
    from rich.table import Table as RichTable

    grid = RichTable(title="Passed", title_justify="left", title_style="bold green", expand=False)
    for name in ("check", "worker", "what it found"):
        grid.add_column(name, overflow="fold")
    by_check: dict[tuple[str, str], list[CheckStatus]] = {}
    for status in passed:
        by_check.setdefault((status.info.asset, status.info.name), []).append(status)
    for (_, name), statuses in by_check.items():
        if workers > _WORKERS_ONE_BY_ONE and len(statuses) > 1:
            grid.add_row(escape(name), f"{len(statuses)} of {workers}", f"{escape(statuses[0].sentence)} (the first)")
            continue
        for position, status in enumerate(statuses):
            worker = "" if status.partition is None else status.partition.removeprefix("worker_").replace("_of_", "/")
            grid.add_row("" if position else escape(name), worker, escape(status.sentence))
    return grid


def _rich(table: Table, title: str) -> RichTable:
    from rich.markup import escape
    from rich.table import Table as RichTable

    grid = RichTable(title=escape(title), title_justify="left", title_style="bold")
    for position, name in enumerate(table.columns):
        numbers = table.rows and all(
            isinstance(row[position], (int, float)) and not isinstance(row[position], bool) for row in table.rows
        )
        grid.add_column(escape(name), justify="right" if numbers else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(escape(_cell(cell)) for cell in row))
    return grid


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def read_report(settings: Settings, html: Path | None = None) -> Report:
    """The report from the instance that the UI and the commands share; with ``html`` also written there as a page.

    Raises InputError where the input file cannot be read, StorageError where the page cannot be written.
    """
    import dagster as dg

    from payout_pipeline.instance import ensure_dagster_home

    ensure_dagster_home()
    with dg.DagsterInstance.get() as instance:
        report = build_report(settings, instance)
    if html is not None:
        from payout_pipeline.report_html import write_page

        write_page(html, settings, report)
    return report
