"""``payout-pipeline sql``: a statement of the user, run on the ClickHouse of the pipeline, printed as it comes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.identifiers import quote_identifier

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings

_COMMENT = re.compile(r"\A\s*(--[^\n]*(?:\n|\Z)|/\*.*?\*/)", re.DOTALL)
_READS = re.compile(r"\A[\s(]*(SELECT|WITH|SHOW|DESCRIBE|DESC|EXPLAIN|EXISTS|VALUES|FROM)\b", re.IGNORECASE)
_HAS_FORMAT = re.compile(r"\bFORMAT\s+\w+\s*\Z", re.IGNORECASE)


def run_statement(settings: Settings, statement: str, output_format: str = "Pretty") -> str:
    """Run ``statement`` and return its result in a ClickHouse output format; empty for statements without one.

    Raises ConfigurationError for an empty statement or a format that is no name, else what a session raises.
    """
    text = statement.strip().rstrip(";").strip()
    while match := _COMMENT.match(text):
        text = text[match.end() :].strip()
    if not text:
        raise ConfigurationError('no statement given; for example: payout-pipeline sql "SELECT 1"')
    try:
        quote_identifier(output_format)
    except ValueError:
        raise ConfigurationError(f"{output_format!r} is no name of a ClickHouse output format") from None
    with Warehouse(settings, "payout-pipeline sql").session("sql") as session:
        if not _READS.match(text):
            session.command(text, doing="running the statement", repeatable=False)
            return ""
        return session.text(
            text, doing="running the statement", fmt=None if _HAS_FORMAT.search(text) else output_format
        )
