"""``payout-pipeline doctor``: whether a run could start."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from payout_pipeline.commands.output import console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from payout_pipeline.doctor import Finding


@click.command("doctor", short_help="Check everything that a run needs; writes nothing.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def doctor_command(as_json: bool) -> None:
    """Check everything that a run needs: input, disk, Goldsky, ClickHouse. Writes nothing.

    Goldsky is asked two to four times. Exit 1 where a run could not start, 2 where the environment is wrong.
    """
    import logging

    from payout_pipeline.dagster_home import ensure_dagster_home
    from payout_pipeline.doctor import examine
    from payout_pipeline.settings import load_settings

    settings = load_settings()
    ensure_dagster_home()
    if not settings.debug:
        logging.getLogger("payout_pipeline").addHandler(logging.NullHandler())  # every fault becomes a finding below
    findings = examine(settings)
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        print_findings(findings, console())
    sys.exit(int(any(finding.level == "problem" for finding in findings)))


def print_findings(findings: list[Finding], console: Console) -> None:
    """A line for each finding, what to do below it where something is wrong, and whether a run can start."""
    from rich.markup import escape
    from rich.table import Table

    from payout_pipeline.words import counted

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "problem": "[bold red]PROBLEM[/]"}
    grid = Table(box=None, show_header=False, show_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        repair = f"\n[dim]→ {escape(finding.repair)}[/]" if finding.repair else ""
        grid.add_row(marks[finding.level], finding.subject, escape(finding.text) + repair)
    console.print(grid)
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        console.print(f"[bold red]{counted(problems, 'problem')} would stop a run.[/]")
    else:
        console.print("[bold green]A run can start:[/] payout-pipeline backfill")
