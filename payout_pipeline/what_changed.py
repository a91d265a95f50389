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
#: What moves money comes first.
_FIRST = ("vector_changed", "no_longer_resolved", "became_absent", "newly_resolved")


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
    import pyarrow.compute as pc

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
        for kind in KINDS:
            of_kind = table.filter(pc.equal(table["change"], kind))
            counts[kind] += len(of_kind)
            rows += of_kind.slice(0, SHOWN).to_pylist()
    first = [row for kind in _FIRST for row in rows if row["change"] == kind][:SHOWN]
    return WhatChanged(dict(counts), first, files) if files else None
