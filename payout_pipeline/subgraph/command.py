"""``payout-pipeline subgraph``: the local subgraph as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("subgraph", short_help="A local subgraph over a CSV file, until Ctrl-C.")
@click.option(
    "--conditions",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV of condition_id,payouts,resolved_at; empty payouts are an unresolved condition.",
)
@click.option(
    "--unresolved",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Further condition ids, one a line, that are known and not resolved.",
)
@click.option("--port", default=0, show_default="a free one", type=click.IntRange(0, 65_535))
@click.option("--rate-limit", help="Requests in any window, such as 50/10s; more are answered 429.")
@click.option("--latency", default=0.0, show_default=True, type=click.FloatRange(0), help="Seconds until an answer.")
@click.option("--max-complexity", type=click.IntRange(1), help="Most entities that all lists of a query may ask for.")
@click.option("--max-body-bytes", type=click.IntRange(1), help="Larger requests are answered 413.")
@click.option("--max-aliases", type=click.IntRange(1), help="The connection is closed on queries with more lists.")
@click.option("--alias-timeout", type=click.IntRange(1), help="Queries with more lists time out.")
def subgraph_command(**options: Any) -> None:
    """Serve a local subgraph with graph-node's behaviour over a CSV file, until Ctrl-C or SIGTERM."""
    from payout_pipeline.errors import ConfigurationError
    from payout_pipeline.subgraph.server import SubgraphConfig, serve_forever

    try:
        serve_forever(
            SubgraphConfig(**options, advancing=True, log_ids=False), lambda url: click.echo(f"listening on {url}")
        )
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
