"""What a check's result rests on, so that it is known to be outdated as soon as any of it has changed.

A basis names the ledger, the materializations of the asset and of everything upstream, the input, the settings that are judged
by, and the code of the checks. It is stored with a result and computed again when that is read.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from functools import cache
from importlib.resources import files
from typing import Any

import dagster as dg

from payout_pipeline.checks.catalogue import FETCHED, STORED, VIEW
from payout_pipeline.ids.chunks import Worklist
from payout_pipeline.ledger import Ledger
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import VARIABLES, Settings

Basis = dict[str, str]
_NONE = "none"
_SETTINGS = {
    FETCHED: ("goldsky_endpoint", "max_error_rate"),
    STORED: ("goldsky_endpoint", "target_table"),
    VIEW: (
        "goldsky_endpoint", "max_error_rate", "min_unique_conditions", "target_table", "market_resolutions_table", "truth_view",
        "pnl_view",
    ),
}  # fmt: skip


class BasisReader:
    """Computes bases; materializations and ledgers that several checks share are read once."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings, worklist: Worklist) -> None:
        self._instance, self._settings, self._worklist = instance, settings, worklist
        self._known: dict[tuple[str, str | None], str] = {}

    def of(self, asset: str, partition: str | None) -> Basis:
        """The basis of the checks of ``asset`` (and ``partition``) as it is now."""
        basis: Basis = {"code": _code_version()}
        keys = [partition] if partition is not None else [worker.key for worker in self._worklist.workers]
        basis["input"] = (
            self._worklist.of(partition).fingerprint if partition is not None else self._worklist.fingerprint
        )
        for key in keys:
            info = Ledger(self._settings.runtime_dir, key).finished()
            basis[f"the ledger of {key}"] = info.identity if info is not None else _NONE
            for upstream in (FETCHED,) if asset == FETCHED else (FETCHED, STORED):
                basis[f"{upstream} of {key}"] = self.materialized(upstream, key)
        if asset == VIEW:
            basis[VIEW] = self.materialized(VIEW, None)
        for name in _SETTINGS[asset]:
            basis[VARIABLES[name]] = scrub(str(getattr(self._settings, name)))
        if asset != FETCHED:
            basis["CLICKHOUSE_HOST"] = (self._settings.clickhouse_host or "embedded").rsplit("@", 1)[-1]
            basis["CLICKHOUSE_PORT"] = str(self._settings.clickhouse_port or _NONE)
        return basis

    def materialized(self, asset: str, partition: str | None) -> str:
        """When and by what the latest materialization was made, as text that differs for each."""
        key = (asset, partition)
        if key not in self._known:
            where: Any = dg.AssetKey(asset)
            if partition is not None:
                where = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
            records = self._instance.fetch_materializations(where, limit=1).records
            self._known[key] = _NONE
            if records:
                moment = datetime.fromtimestamp(records[0].timestamp, timezone.utc).isoformat(timespec="seconds")
                self._known[key] = f"{moment} {records[0].storage_id}"
        return self._known[key]


def why_outdated(judged: Basis, now: Basis) -> str:
    """The first part in which a result's basis is not today's, in a sentence; empty where the result counts."""
    for part in [*now, *(name for name in judged if name not in now)]:
        then, today = judged.get(part, _NONE), now.get(part, _NONE)
        if then == today:
            continue
        if part == "code":
            return "The checks are of another version of the pipeline."
        if part == "input":
            return "The input has changed since: other ids, or another PAYOUT_WORKERS."
        if part.startswith("the ledger of"):
            gone = "is gone" if today == _NONE else "was made anew"
            return f"{part[0].upper()}{part[1:]} {gone} since."
        if part.startswith((FETCHED, STORED, VIEW)):
            if today == _NONE:
                return f"The materialization of {part} is not known any more."
            return f"{part} was materialized again at {today.split()[0]}."
        return f"{part} is {today or 'empty'} now, was {then or 'empty'}."
    return ""


@cache
def _code_version() -> str:
    """Changes with every change to what the checks compute."""
    digest = hashlib.sha256()
    for package, ending in (("payout_pipeline.verification", ".py"), ("payout_pipeline.warehouse", ".sql")):
        root = files(package)
        found = [root] if ending == ".py" else [root / "sql" / "checks"]
        for directory in found:
            for file in sorted(directory.iterdir(), key=lambda item: item.name):
                if file.name.endswith(ending):
                    digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
