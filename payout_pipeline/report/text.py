"""The report on a terminal or in a pipe: what went wrong, each cause once, and what passed, a line a check."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from payout_pipeline.checks.history import CheckStatus, State
from payout_pipeline.report.causes import Cause, affected, distinct
from payout_pipeline.report.model import Report
from payout_pipeline.report.summary import cell, passed_checks, summed_up
from payout_pipeline.verdict import Severity, Table
from payout_pipeline.words import counted, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

#: Of what several checks or workers with the same cause have found; all of it is in --verbose, --json and --html.
_SENTENCES = 3
_ROWS = 5


def render(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Print the report; text wraps at the console's width. ``verbose`` adds a line a worker and all tables."""
    show = partial(console.print, soft_wrap=False)  # which would crop what is longer than a line
    show(_head(report))
    for cause in report.causes:
        for part in _trouble(cause, verbose=verbose):
            show(part)
    quiet = passed_checks(report.statuses)
    if not quiet:
        return
    show(_passed(quiet, verbose=verbose))
    for status in (status for statuses in quiet for status in statuses):
        # Ids that failed within the allowed rate are lost all the same, so they are shown in any case.
        if verbose or status.info.name == "error_rate":
            for table in status.verdict.tables if status.verdict is not None else ():
                show(_grid(table, _titled(table, status), None if verbose else _ROWS))


def _head(report: Report) -> RenderableType:
    from rich.markup import escape
    from rich.panel import Panel

    ids = "all resolved conditions" if report.worklist.ids is None else counted(report.worklist.ids, "id")
    if report.worklist.ids == 0:
        ids += " (nothing is missing)"
    lines = [
        f"[bold]{escape(report.headline)}[/]",
        escape(
            f"{report.worklist.source}: {ids}, {counted(len(report.worklist.workers), 'worker')}; "
            f"table {report.target_table}, view {report.truth_view}"
        ),
    ]
    if report.changes is not None:
        lines.append(f"since the ledgers before: {report.changes.sentence}")
    if report.age is not None:
        lines.append(f"the oldest result is {duration(report.age)} old")
    return Panel("\n".join(lines), title="Success report", border_style="red" if report.exit_code else "green")


def _trouble(cause: Cause, *, verbose: bool) -> list[RenderableType]:
    """A cause: what happened, what was found, what was not made because of it, and what to do."""
    from rich.markup import escape
    from rich.padding import Padding

    warn = cause.severity is Severity.WARN
    style, label = ("yellow", "WARNING") if warn else ("red", "ERROR")
    parts: list[RenderableType] = [f"[bold {style}]{label}[/] [bold]{escape(cause.title)}[/]"]
    sentences = cause.sentences
    shown = sentences if verbose else distinct(sentences)[:_SENTENCES]
    lines = [escape(sentence) for sentence in shown]
    if len(sentences) > len(shown):
        lines.append(f"[dim]and {len(sentences) - len(shown)} more like this (--verbose)[/]")
    verdict = cause.statuses[0].verdict
    if cause.state is State.FAILED and len(cause.statuses) == 1 and verdict is not None:
        lines.append(
            f"[dim]expected[/] {escape(cell(verdict.expected))}   [dim]actual[/] {escape(cell(verdict.actual))}"
        )
    if cause.consequences:
        lines.append(f"[dim]without a pass because of it:[/] {escape(affected(cause.consequences))}")
    lines.append(f"[bold]What to do:[/] {escape(cause.repair)}")
    parts.append(Padding("\n".join(lines), (0, 0, 0, 2)))
    if cause.state is State.FAILED:
        parts += [Padding(_grid(table, title, rows), (0, 0, 0, 2)) for table, title, rows in _tables(cause, verbose)]
    return parts


def _tables(cause: Cause, verbose: bool) -> list[tuple[Table, str, int | None]]:
    """The tables of what failed: of the first worker of each check, with a few rows, unless ``verbose``."""
    found: list[tuple[Table, str, int | None]] = []
    seen: set[str] = set()
    for status in cause.statuses:
        if status.verdict is None or (status.info.name in seen and not verbose):
            continue
        seen.add(status.info.name)
        found += [(table, _titled(table, status), None if verbose else _ROWS) for table in status.verdict.tables]
    return found


def _titled(table: Table, status: CheckStatus) -> str:
    return f"{table.title} of {status.partition}" if status.partition else table.title


def _passed(quiet: Sequence[Sequence[CheckStatus]], *, verbose: bool) -> RichTable:
    from rich.markup import escape
    from rich.table import Table as RichTable

    grid = RichTable(title="Passed", title_justify="left", title_style="bold green", box=None, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for statuses in quiet:
        first = statuses[0]
        mark = "nothing to check: " if first.state is State.NOTHING else ""
        if not verbose or len(statuses) == 1:
            who = "" if first.partition is None else _who(statuses)
            grid.add_row(escape(first.info.name), who, escape(mark + summed_up(statuses)))
            continue
        for position, status in enumerate(statuses):
            name = "" if position else escape(status.info.name)
            grid.add_row(name, _who([status]), escape(mark + status.sentence))
    return grid


def _who(statuses: Sequence[CheckStatus]) -> str:
    if len(statuses) > 1:
        return counted(len(statuses), "worker")
    return (statuses[0].partition or "").removeprefix("worker_").replace("_of_", "/")


def _grid(table: Table, title: str, rows: int | None = None) -> RichTable:
    """A table of a check; ``rows`` limits it, and says so."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = table.rows if rows is None else table.rows[:rows]
    more = len(table.rows) - len(shown)
    grid = RichTable(
        title=escape(title),
        title_justify="left",
        title_style="dim",
        caption=f"and {more:,} more (--verbose)" if more else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for position, name in enumerate(table.columns):
        numbers = shown and all(
            isinstance(row[position], (int, float)) and not isinstance(row[position], bool) for row in shown
        )
        # Ids stay whole as long as there is room for them: they are copied from here.
        width = 64 if name == "condition_id" else None
        grid.add_column(escape(name), justify="right" if numbers else "left", overflow="fold", width=width)
    for row in shown:
        grid.add_row(*(escape(cell(value)) for value in row))
    return grid
