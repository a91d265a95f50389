"""What the workers' latest runs found to be another than before: new resolutions, corrected vectors, ids that are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from payout_pipeline.errors import LedgerError
from payout_pipeline.ledger import Ledger
from payout_pipeline.ledger.changes import KINDS
from payout_pipeline.storage import Store, open_store
from payout_pipeline.words import counted

#: Of the changes, so many are shown; all of them are in the files.
SHOWN = 20


@dataclass(frozen=True)
class WhatChanged:
    """Ids by kind of change, the first 20 (``condition_id``, ``change``, ``before``, ``after``), corrected vectors before
    others, and the Parquet files that hold all of them."""

    counts: dict[str, int] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """The counts in words."""
        new, changed = self.counts["newly_resolved"], self.counts["vector_changed"]
        rest = (
            f"{self.counts['became_absent']:,} became absent, {self.counts['no_longer_resolved']:,} no longer resolved"
        )
        return f"{new:,} newly resolved, {counted(changed, 'vector')} changed, {rest}"


def what_changed(place: Store | str, partitions: Iterable[str]) -> WhatChanged | None:
    """Of the finished ledgers of ``partitions``; None where none of them has an earlier one to compare with.

    A ledger whose changes cannot be read is left out; the next run replaces it.
    """
    store = place if isinstance(place, Store) else open_store(place)
    counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    rows: list[dict[str, Any]] = []
    files: list[str] = []
    for partition in partitions:
        ledger = Ledger(store, partition)
        try:
            table = ledger.changes()
        except LedgerError:
            continue
        if table is None:
            continue
        files.append(ledger.changes_file)
        counts.update({row["values"]: row["counts"] for row in table["change"].value_counts().to_pylist()})
        order = {"vector_changed": 0, "no_longer_resolved": 1, "became_absent": 2, "newly_resolved": 3}
        rows += sorted(table.to_pylist(), key=lambda row: order[row["change"]])[:SHOWN]
        rows = sorted(rows, key=lambda row: order[row["change"]])[:SHOWN]
    return WhatChanged(dict(counts), rows, files) if files else None
