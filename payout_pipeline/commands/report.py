"""``payout-pipeline report``: the latest status of every check."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from payout_pipeline.commands.output import console, print_json


@click.command("report", short_help="The latest status of every check, with its age.")
@click.option("--json", "json_wanted", is_flag=True, help="The whole report as JSON.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a self-contained page with plots."
)
@click.option("--verbose", is_flag=True, help="A line a worker, and the tables of what passed.")
def report_command(json_wanted: bool, html: Path | None, verbose: bool) -> None:
    """Print the latest status of every check, worst first, with its age. Runs nothing: see `verify`.

    Exit 1 unless every ERROR check has a current pass: failed, never run, outdated and running ones block.
    """
    from payout_pipeline.report import read_report, render
    from payout_pipeline.report.document import as_json
    from payout_pipeline.settings import load_settings

    found = read_report(load_settings())
    if html is not None:
        from payout_pipeline.report.html import write_page

        write_page(html, found)
    if json_wanted:
        print_json(as_json(found))
    else:
        render(found, console(), verbose=verbose)
        if html is not None:
            click.echo(f"Written: {html}")
    sys.exit(found.exit_code)
