"""``payout-pipeline verify``: all checks now, through Dagster, and the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from payout_pipeline.commands.options import check_workers, parse_workers
from payout_pipeline.commands.output import console, print_json

if TYPE_CHECKING:
    from payout_pipeline.report import Report
    from payout_pipeline.settings import Settings


@click.command("verify", short_help="Run all checks now and print the report.")
@click.option("--json", "json_wanted", is_flag=True, help="The whole report as JSON.")
@click.option(
    "--workers", callback=parse_workers, metavar="1,3", help="Only the checks of these workers, and the view's."
)
@click.option(
    "--accept-loss",
    is_flag=True,
    help="First take the coverage and the P&L of this moment as the state before: a loss that is known fails no more.",
)
@click.option("--verbose", is_flag=True, help="A line a worker, and the tables of what passed.")
def verify_command(json_wanted: bool, workers: tuple[int, ...], accept_loss: bool, verbose: bool) -> None:
    """Run all checks now, on what is stored at this moment, and print the report. Fetches and changes no data.

    Exit 1 unless every ERROR check passed now.
    """
    from payout_pipeline.report import render
    from payout_pipeline.report.document import as_json
    from payout_pipeline.settings import load_settings

    settings = load_settings()
    check_workers(settings, workers)
    report = _verify(settings, workers, accept_loss=accept_loss)
    if json_wanted:
        print_json(as_json(report))
    else:
        render(report, console(), verbose=verbose)
    sys.exit(report.exit_code)


def _verify(settings: Settings, workers: Sequence[int], *, accept_loss: bool) -> Report:
    import dagster as dg

    from payout_pipeline.dagster_home import ensure_dagster_home
    from payout_pipeline.report import build_report
    from payout_pipeline.verify import run_all_checks

    ensure_dagster_home()
    if accept_loss:
        from payout_pipeline.verification.baseline import accept_baseline

        accept_baseline(settings)
    with dg.DagsterInstance.get() as instance:
        return build_report(settings, instance, runs=run_all_checks(settings, instance, workers))
