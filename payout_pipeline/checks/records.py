"""The latest result of each check, as JSON in the runtime directory: what the report reads, with the basis it rests on.

Dagster stores the same results for its UI; by its public interface they cannot be read per partition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from payout_pipeline.checks.basis import Basis
from payout_pipeline.scrub import clean_lines
from payout_pipeline.settings import Settings
from payout_pipeline.storage import join, open_store
from payout_pipeline.verdict import Severity, Table, Verdict


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """One result. ``run_id``: the Dagster run that made it."""

    verdict: Verdict
    basis: Basis
    run_id: str
    at: datetime


def _file(asset: str, partition: str | None) -> str:
    return join("checks", asset, f"{partition or 'all'}.json")


def save(
    settings: Settings, asset: str, partition: str | None, verdicts: Sequence[Verdict], basis: Basis, run_id: str
) -> None:
    """Keep these results in place of earlier ones of the same checks."""
    store, name = open_store(settings.runtime_dir), _file(asset, partition)
    kept = _read(settings, name)
    at = datetime.now(timezone.utc).isoformat()
    for verdict in verdicts:
        kept[verdict.check] = {"verdict": _clean(asdict(verdict)), "basis": basis, "run_id": run_id, "at": at}
    store.write(name, json.dumps(kept, allow_nan=False).encode())


def load(settings: Settings, asset: str, partition: str | None) -> dict[str, CheckRecord]:
    """The latest results by check; what cannot be read is as if it had never been."""
    found: dict[str, CheckRecord] = {}
    for check, kept in _read(settings, _file(asset, partition)).items():
        try:
            found[check] = CheckRecord(
                _verdict(kept["verdict"]), dict(kept["basis"]), str(kept["run_id"]), datetime.fromisoformat(kept["at"])
            )
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _clean(value: Any) -> Any:
    """A value in which every text is cleaned."""
    if isinstance(value, str):
        return clean_lines(value)
    if isinstance(value, Mapping):
        return {name: _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read(settings: Settings, name: str) -> dict[str, Any]:
    try:
        found = json.loads(open_store(settings.runtime_dir).read(name))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _verdict(kept: Mapping[str, Any]) -> Verdict:
    tables = tuple(Table(t["title"], tuple(t["columns"]), tuple(map(tuple, t["rows"]))) for t in kept["tables"])
    return Verdict(**{**kept, "severity": Severity(kept["severity"]), "tables": tables})
