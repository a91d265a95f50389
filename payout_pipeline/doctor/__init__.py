"""Everything a run needs, looked at before it runs: the input, this machine, Goldsky, ClickHouse.

Reads, asks, and writes nothing. Each finding is one line, with what to do where something is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from payout_pipeline.doctor.finding import Finding
from payout_pipeline.doctor.goldsky import MAX_REQUESTS

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings

__all__ = ["MAX_REQUESTS", "Finding", "examine"]


def examine(settings: Settings, now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)) -> list[Finding]:
    """Examine input, runtime directory, Goldsky and ClickHouse. Expected faults become findings; others are raised."""
    from payout_pipeline.doctor.database import database_findings
    from payout_pipeline.doctor.goldsky import ask_goldsky
    from payout_pipeline.doctor.input import look_at_input
    from payout_pipeline.doctor.machine import runtime_findings

    found = look_at_input(settings)
    worklist, findings = found.worklist, found.findings
    findings += runtime_findings(settings, worklist)
    if settings.alert_webhook is not None:
        text = "PAYOUT_ALERT_WEBHOOK is set, and nothing is sent to it now; switch on the sensor `alerts` in the UI"
        findings.append(Finding("alerts", "ok", text))
    if worklist is not None:
        findings += ask_goldsky(settings, found.ids, now())
    return findings + database_findings(settings)
