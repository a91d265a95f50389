"""The report as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from payout_pipeline.checks.history import CheckStatus
    from payout_pipeline.report.causes import Cause
    from payout_pipeline.report.model import Report


def as_json(report: Report) -> dict[str, Any]:
    """Everything the report knows, as plain JSON values."""
    worklist = report.worklist
    return {
        "made_at": report.made_at.isoformat(timespec="seconds"),
        "headline": report.headline,
        "exit_code": report.exit_code,
        "counts": {state.value: count for state, count in report.counts.items()},
        "input": {
            "source": worklist.source,
            "ids": worklist.ids,
            "duplicates": worklist.duplicates,
            "workers": len(worklist.workers),
            "fingerprint": worklist.fingerprint,
        },
        "target_table": report.target_table,
        "truth_view": report.truth_view,
        "endpoint": report.endpoint,
        "changes": None
        if report.changes is None
        else {**report.changes.counts, "first": report.changes.first, "files": report.changes.files},
        "causes": [_cause(cause) for cause in report.causes],
        "checks": [_status(status, report.made_at) for status in report.worst_first],
    }


def _cause(cause: Cause) -> dict[str, Any]:
    return {
        "severity": cause.severity.value,
        "title": cause.title,
        "sentences": list(cause.sentences),
        "affects": [{"check": status.info.name, "partition": status.partition} for status in cause.statuses],
        "repair": cause.repair,
    }


def _status(status: CheckStatus, made_at: datetime) -> dict[str, Any]:
    verdict = status.verdict
    return {
        "asset": status.info.asset,
        "check": status.info.name,
        "partition": status.partition,
        "state": status.state.value,
        "severity": status.severity.value,
        "blocks_success": status.blocks_success,
        "reason": status.reason,
        "description": verdict.description if verdict else "",
        "expected": verdict.expected if verdict else None,
        "actual": verdict.actual if verdict else None,
        "facts": dict(verdict.facts) if verdict else {},
        "tables": [
            {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
            for table in (verdict.tables if verdict else ())
        ],
        "sql": verdict.sql if verdict else "",
        "repair": verdict.repair if verdict else "",
        "run_id": status.run_id,
        "at": status.at.isoformat(timespec="seconds") if status.at else None,
        "age_seconds": round((made_at - status.at).total_seconds()) if status.at else None,
    }
