"""``payout-pipeline subgraph``: the local subgraph as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from payout_pipeline.subgraph.schema import SCHEMA_NAMES


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
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no login.")
@click.option("--port", default=0, show_default="a free one", type=click.IntRange(0, 65_535))
@click.option("--schema", default="payouts", show_default=True, type=click.Choice(SCHEMA_NAMES))
@click.option("--rate-limit", help="Requests in any window, such as 50/10s; more are answered 429.")
@click.option(
    "--retry-after",
    default="seconds",
    show_default=True,
    help="Retry-After of a 429: seconds, date, none, or any text that is sent as it is.",
)
@click.option("--max-complexity", type=click.IntRange(1), help="Most entities that all lists of a query may ask for.")
@click.option("--max-body-bytes", type=click.IntRange(1), help="Larger requests are answered 413.")
@click.option("--max-aliases", type=click.IntRange(1), help="The connection is closed on queries with more lists.")
@click.option("--alias-timeout", type=click.IntRange(1), help="Queries with more lists time out.")
@click.option("--latency", default=0.0, show_default=True, type=click.FloatRange(0), help="Seconds until an answer.")
@click.option("--jitter", default=0.0, show_default=True, type=click.FloatRange(0), help="Seconds around the latency.")
@click.option("--token", envvar="SUBGRAPH_TOKEN", help="Bearer token that every request must carry.")
@click.option("--advancing/--still", default=True, show_default=True, help="Whether new blocks arrive, one in 2 s.")
@click.option("--earliest-block", default=0, show_default=True, help="Blocks before it are pruned.")
@click.option("--log-ids", is_flag=True, help="Keep the ids of every request for GET /_control/log; takes memory.")
@click.option("--seed", default=0, show_default=True, help="Of the jitter and of faults with a probability.")
def subgraph_command(retry_after: str, **options: Any) -> None:
    """Serve a local subgraph with graph-node's behaviour over a CSV file, until Ctrl-C or SIGTERM."""
    from payout_pipeline.errors import ConfigurationError
    from payout_pipeline.subgraph.server import SubgraphConfig, serve_forever

    config = SubgraphConfig(retry_after=None if retry_after == "none" else retry_after, **options)
    try:
        serve_forever(config, lambda url: click.echo(f"listening on {url}"))
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
