"""``payout-pipeline reset``: a clean restart of one worker or of all."""

from __future__ import annotations

import sys

import click


@click.command("reset", short_help="Remove ledgers and checkpoints for a clean restart.")
@click.option("--worker", type=click.IntRange(1, 99), help="Only this worker.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset_command(worker: int | None, yes: bool) -> None:
    """Remove ledgers, checkpoints and progress files for a clean restart. Never touches the database."""
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
