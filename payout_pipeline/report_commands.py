"""The commands around a run: ``report``, ``doctor``, ``status``, ``query`` and ``reset``; ``cli.py`` registers them.

Arguments are parsed here, everything else is one call. Heavy modules are imported inside the commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _console() -> Console:
    from rich.console import Console

    # A page that is read by a program or a pager is as wide as it needs to be.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a self-contained page with plots."
)
def report(as_json: bool, html: Path | None) -> None:
    """The latest status of every check, worst first. Exit 1 if an ERROR check failed or never ran for today's input."""
    from payout_pipeline.report import read_report, render
    from payout_pipeline.settings import load_settings

    settings = load_settings()
    found = read_report(settings, html)
    if as_json:
        _print_json(found.as_json())
    else:
        render(found, _console())
        if html is not None:
            click.echo(f"Written: {html}")
    sys.exit(found.exit_code)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def doctor(as_json: bool) -> None:
    """Look at everything a run needs: asks Goldsky at most 3 times, writes nothing. Exit 1 on a problem."""
    from payout_pipeline.doctor import examine, print_findings
    from payout_pipeline.settings import load_settings

    findings = examine(load_settings())
    if as_json:
        _print_json([finding.as_json() for finding in findings])
    else:
        print_findings(findings, _console())
    sys.exit(int(any(finding.level == "problem" for finding in findings)))


@click.command()
@click.option("--watch", is_flag=True, help="Refresh until every worker is done or Ctrl-C.")
@click.option(
    "--every", default=2.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Seconds between refreshes."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON; with --watch one line each time.")
def status(watch: bool, every: float, as_json: bool) -> None:
    """A bar a worker: ids, found, rate, time left, errors, age of the last batch; and the rows in ClickHouse."""
    from payout_pipeline.settings import load_settings
    from payout_pipeline.status import print_status, read_status, watch_status

    settings = load_settings()
    if watch:
        watch_status(settings, every, as_json)
        return
    found = read_status(settings, count_rows=True)
    if as_json:
        _print_json(found.as_json())
    else:
        print_status(found, _console())


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def query(ids: tuple[str, ...], as_json: bool) -> None:
    """Ask Goldsky for condition IDs and print the vectors, with what is stored for the same ids."""
    from payout_pipeline.query import ask, print_answers
    from payout_pipeline.settings import load_settings

    found = ask(load_settings(), ids)
    if as_json:
        _print_json(found.as_json())
    else:
        print_answers(found, _console())
    sys.exit(found.exit_code)


@click.command()
@click.option("--worker", type=click.IntRange(1, 99), help="Only this worker.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(worker: int | None, yes: bool) -> None:
    """Remove ledger, checkpoints and progress files for a clean restart. Never touches the database."""
    from payout_pipeline.reset import plan_reset, remove
    from payout_pipeline.settings import load_settings

    plan = plan_reset(load_settings(), worker)
    if not plan.keys:
        click.echo("Nothing to remove.")
        return
    click.echo(plan.describe())
    if not yes and not click.confirm("Remove them? The database is not touched"):
        click.echo("Nothing was removed.")
        sys.exit(1)
    click.echo(remove(plan))


COMMANDS: list[click.Command] = [report, doctor, status, query, reset]
