"""``payout-pipeline query``: ask Goldsky for a few ids."""

from __future__ import annotations

import sys

import click

from payout_pipeline.commands.output import console, print_json


@click.command("query", short_help="Ask Goldsky for a few condition ids.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def query_command(ids: tuple[str, ...], as_json: bool) -> None:
    """Ask Goldsky for condition ids and print the vectors, with what is stored for the same ids.

    Exit 1 where an id got no usable answer.
    """
    from payout_pipeline.query import ask, print_answers
    from payout_pipeline.settings import load_settings

    found = ask(load_settings(), ids)
    if as_json:
        print_json(found.as_json())
    else:
        print_answers(found, console())
    sys.exit(found.exit_code)
