"""``payout-pipeline``: the commands of the guide. Each one parses its arguments here and calls one function elsewhere.

Modules are imported inside the commands: ``status`` has to answer without waiting for Dagster's imports.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from payout_pipeline.commands.options import check_workers, parse_workers
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.scrub import scrub


class _Commands(click.Group):
    """Expected faults end as one message and their exit code, never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PayoutPipelineError as fault:
            click.echo(scrub(f"Error: {fault}"), err=True)
            ctx.exit(fault.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted; finished batches are kept, the same command continues.", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="payout-pipeline")
def main() -> None:
    """Polymarket payout vectors from a Goldsky subgraph into ClickHouse, and the proof that they are complete."""
    load_dotenv_file()


def load_dotenv_file() -> None:
    """Make ``.env`` of the current directory part of the environment; what is already set wins."""
    from dotenv import load_dotenv

    if Path(".env").is_file():
        load_dotenv(Path(".env"), override=False)


@main.command(short_help="Run every worker, rebuild the view, print the report.")
@click.option(
    "--workers", callback=parse_workers, metavar="1,3", help="Only these workers; the view is rebuilt if all are in."
)
@click.option(
    "--refetch",
    type=click.Choice(["all", "unresolved"]),
    default=None,
    help="Ask for every id again (the default of a new backfill), or only for those not resolved yet.",
)
@click.option(
    "--allow-removals",
    is_flag=True,
    help="Remove stored vectors that the source does not resolve any more, however many.",
)
def backfill(workers: tuple[int, ...], refetch: str | None, allow_removals: bool) -> None:
    """Run every worker, rebuild the view and print the report. Continues where an interrupted run stopped."""
    from payout_pipeline.backfill import run_backfill
    from payout_pipeline.settings import load_settings

    settings = load_settings()
    check_workers(settings, workers)
    sys.exit(run_backfill(settings, workers, refetch, allow_removals))


@main.command(short_help="The whole backfill on this machine, without a network.")
@click.option("--ids", default=170_448, show_default=True, type=click.IntRange(1, 10_000_000), help="Condition ids.")
@click.option("--seed", default=1, show_default=True, help="Of the generated data.")
@click.option("--rate-limit", default="50/10s", show_default=True, help="Of the local subgraph; 0 for none.")
@click.option("--latency", default=0.3, show_default=True, help="Seconds, of the local subgraph.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=None, help="Where everything goes (runtime/demo)."
)
def demo(ids: int, seed: int, rate_limit: str, latency: float, directory: Path | None) -> None:
    """The whole backfill on this machine without a network: generated ids, a local subgraph, embedded ClickHouse."""
    from payout_pipeline.demo import run_demo

    sys.exit(run_demo(ids=ids, seed=seed, rate_limit=rate_limit, latency=latency, directory=directory))


def _register() -> None:
    from payout_pipeline.commands import COMMANDS
    from payout_pipeline.subgraph.command import subgraph_command

    for command in (subgraph_command, *COMMANDS):
        main.add_command(command)


_register()

if __name__ == "__main__":
    main()
