"""``payout-pipeline sql``: one statement on the pipeline's ClickHouse."""

from __future__ import annotations

import click


@click.command("sql", short_help="Run a statement on the pipeline's ClickHouse.")
@click.argument("statement")
@click.option("--format", "output_format", default="Pretty", show_default=True, help="A ClickHouse output format.")
def sql_command(statement: str, output_format: str) -> None:
    """Run STATEMENT on the ClickHouse of the pipeline, the embedded one included, and print the result."""
    from payout_pipeline.settings import load_settings
    from payout_pipeline.warehouse.console import run_statement

    click.echo(run_statement(load_settings(), statement, output_format), nl=False)
