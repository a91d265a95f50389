"""The commands of ``payout-pipeline``: one file a command, registered in ``cli.py``.

A command parses its arguments, calls the room that does the work and prints what comes back. Heavy modules are
imported inside the command function, so that ``payout-pipeline --help`` and ``status`` answer at once.
"""

from __future__ import annotations

import click

from payout_pipeline.commands.doctor import doctor_command
from payout_pipeline.commands.query import query_command
from payout_pipeline.commands.report import report_command
from payout_pipeline.commands.reset import reset_command
from payout_pipeline.commands.sql import sql_command
from payout_pipeline.commands.status import status_command
from payout_pipeline.commands.verify import verify_command

COMMANDS: tuple[click.Command, ...] = (
    verify_command,
    report_command,
    doctor_command,
    status_command,
    query_command,
    sql_command,
    reset_command,
)
