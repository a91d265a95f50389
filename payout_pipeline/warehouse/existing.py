"""The database for those who only look: nothing is made, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.server import server_of

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings


def existing_database(settings: Settings, comment: str, wait_seconds: float) -> Warehouse | None:
    """The warehouse of the settings; None where the embedded database does not exist yet.

    ``wait_seconds``: for a server that does not answer, or for a process that uses the embedded database.
    """
    server = server_of(settings)
    directory = None if server is not None else Path(settings.runtime_dir) / "clickhouse"
    if directory is not None and not directory.is_dir():
        return None
    return Warehouse(
        server=server,
        directory=directory,
        database=server.database if server is not None else settings.clickhouse_database,
        wait_seconds=min(settings.clickhouse_wait_seconds, wait_seconds),
        comment=f"payout-pipeline: {comment}",
    )
