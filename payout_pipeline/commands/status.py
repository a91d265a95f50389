"""``payout-pipeline status``: a bar a worker, once or until the backfill is over."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from payout_pipeline.commands.output import console, print_json
from payout_pipeline.words import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from payout_pipeline.settings import Settings
    from payout_pipeline.status import Status

#: Counting takes a turn at the embedded database, for which a run that is loading has to wait.
_COUNT_AGAIN_SECONDS = 10.0
#: A backfill that was started at the same time as the watch needs this long for its imports, at most.
START_SECONDS = 10.0
#: After its workers a backfill rebuilds the view and makes its checks; an interrupted one never comes to that.
_VIEW_SECONDS = 60.0
_LAST_COUNT_SECONDS = 15.0


@click.command("status", short_help="A bar a worker, and the rows in ClickHouse.")
@click.option("--watch", is_flag=True, help="Refresh until the backfill is over, or Ctrl-C. Waits for one that starts.")
@click.option(
    "--every", default=2.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Seconds between refreshes."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON; with --watch one line each time.")
def status_command(watch: bool, every: float, as_json: bool) -> None:
    """A bar a worker: ids, found, rate, time left, errors, age of the last batch; and the rows in ClickHouse."""
    from payout_pipeline.settings import load_settings
    from payout_pipeline.status import read_status

    settings = load_settings()
    if watch:
        _watch(settings, every, as_json)
        return
    found = read_status(settings, count_rows=True)
    if as_json:
        print_json(found.as_json())
    else:
        console().print(render_status(found))


def _watch(settings: Settings, every: float, as_json: bool) -> None:
    if as_json:
        for found in watched(settings, every):
            print_json(found.as_json(), indent=None)
        return
    from rich.live import Live

    with Live(console=console(), auto_refresh=False) as live:
        for found in watched(settings, every):
            live.update(render_status(found), refresh=True)


def watched(settings: Settings, every: float) -> Iterator[Status]:
    """The status every ``every`` seconds until nothing is going on any more; the last one is counted anew."""
    from payout_pipeline.status import read_status

    begun = ended = time.monotonic()
    seen_running = False
    counted: Status | None = None
    counted_at = 0.0
    while True:
        now = time.monotonic()
        again = counted is None or now - counted_at >= _COUNT_AGAIN_SECONDS
        found = read_status(settings, count_rows=again)
        if again or counted is None:
            counted, counted_at = found, time.monotonic()
        else:
            found = _with_counts_of(counted, found)
        seen_running |= found.running
        if found.running:
            ended = now
        yield found
        if _over(found, seen_running, quiet=now - ended, waited=now - begun):
            yield read_status(settings, count_rows=True, database_wait=_LAST_COUNT_SECONDS)
            return
        time.sleep(every)


def _over(status: Status, seen_running: bool, *, quiet: float, waited: float) -> bool:
    """Whether there is nothing left to watch. ``quiet`` and ``waited`` are seconds: without a worker at work, and in all."""
    if status.running:
        return False
    if not seen_running:  # nothing ran yet: a backfill may be starting at this moment
        return status.finished and waited >= START_SECONDS
    if any(worker.state == "failed" for worker in status.workers):
        return True
    return not status.backfill or quiet >= _VIEW_SECONDS


def _with_counts_of(counted: Status, status: Status) -> Status:
    """``status`` with the rows that were counted a moment before."""
    age = counted.rows_age + (status.at - counted.at).total_seconds() if counted.rows_note else 0.0
    names = ("rows", "rows_note", "view_rows", "view_note")
    return dataclasses.replace(status, rows_age=age, **{name: getattr(counted, name) for name in names})


def render_status(status: Status) -> RenderableType:
    """A bar a worker and the lines below them."""
    from rich.console import Group
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 1), show_edge=False)
    for name in ("worker", "", "ids", "found", "ids/s", "left", "errors", "last batch", "state"):
        grid.add_column(name, justify="left" if name in ("worker", "", "state") else "right", no_wrap=name != "state")
    colours = {"done": "green", "running": "cyan", "waiting": "dim", "stuck": "bold yellow", "failed": "bold red"}
    for worker in status.workers:
        total = worker.total_ids
        share = 1.0 if worker.state == "done" else worker.ids / total if total else 0.0
        message = f" {escape(worker.message)}" if worker.message else ""
        grid.add_row(
            str(worker.worker),
            ProgressBar(total=1.0, completed=share, width=16),
            f"{worker.ids:,}" + (f" of {total:,}" if total is not None else ""),
            f"{worker.found:,}",
            f"{worker.rate:,.0f}" if worker.rate else "",
            duration(timedelta(seconds=worker.seconds_left)) if worker.seconds_left is not None else "",
            f"{worker.errors:,}",
            f"{duration(timedelta(seconds=worker.last_batch_age))} ago" if worker.last_batch_age is not None else "",
            Text.from_markup(f"[{colours[worker.state]}]{worker.state}[/]{message}"),
        )
    lines = [Text(line) for line in (_rows_line(status), _view_line(status)) if line]
    if status.answers_429 or status.hold_seconds:
        hold = f", all workers wait {status.hold_seconds:.0f} s more" if status.hold_seconds else ""
        lines.append(Text(f"answers of 429: {status.answers_429:,}{hold}", style="yellow"))
    if status.outage_seconds:
        text = f"OUTAGE for {status.outage_seconds:.0f} s, workers wait: {status.outage_message}"
        lines.append(Text(text, style="bold red"))
    return Group(grid, *lines)


def _rows_line(status: Status) -> str:
    if status.rows is None:
        return f"rows in ClickHouse: unknown ({status.rows_note or 'not counted'})"
    if not status.rows_note:
        return f"rows in ClickHouse: {status.rows:,}"
    age = duration(timedelta(seconds=status.rows_age))
    return f"rows in ClickHouse: {status.rows:,} as counted {age} ago, after the last load ({status.rows_note})"


def _view_line(status: Status) -> str:
    waits = " (it is rebuilt once all workers are in)" if status.backfill and not status.view_note else ""
    if status.view_rows is None:
        return f"view: {status.view_note}" if status.view_note else ""
    return f"rows of the view: {status.view_rows:,}{waits}"
