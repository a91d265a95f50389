"""The ledger of one partition: the finished snapshot, read and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from payout_pipeline.errors import LedgerError
from payout_pipeline.ids.chunks import Chunk, PrefixRange
from payout_pipeline.ledger import files
from payout_pipeline.ledger.accounting import SAMPLE, Accounting, account
from payout_pipeline.ledger.changes import vector_texts
from payout_pipeline.ledger.info import SnapshotInfo
from payout_pipeline.ledger.rows import ERROR_STATUSES, STATUSES
from payout_pipeline.storage import LogLine, Store, join, open_store

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT_ASIDE = 5


class Ledger:
    """The ledger of one partition.

    Args:
        root: the runtime directory (path, URL or store).
        partition: the partition's key.
        log: told, in one line each, what was set aside, resumed or left out.
    """

    def __init__(self, root: Store | Path | str, partition: str, log: LogLine | None = None) -> None:
        self.store = root if isinstance(root, Store) else open_store(root)
        self.partition = partition
        self.prefix = join(files.DIRECTORY, partition)
        self.log: LogLine = log or (lambda _line: None)

    def key(self, *names: str) -> str:
        """The key of a file of this partition."""
        return join(self.prefix, *names)

    @property
    def place(self) -> str:
        """Where the finished snapshot is, for messages."""
        return self.store.describe(self.key(files.SNAPSHOT))

    @property
    def changes_file(self) -> str:
        """Where all changes of the finished snapshot against the one before it are, for messages."""
        return self.store.describe(self.key(files.CHANGES))

    @property
    def repair(self) -> str:
        """The command that makes the snapshot anew."""
        return f"dagster asset materialize -m payout_pipeline.definitions --select goldsky_payouts --partition {self.partition}"

    # -- reading

    def finished(self) -> SnapshotInfo | None:
        """The facts of the finished snapshot, from the footer of its file; None if there is none or it is damaged.

        Damage is logged; only the next run sets the file aside.
        """
        try:
            return self.snapshot()
        except LedgerError as error:
            self.log(str(error))
            return None

    def snapshot(self) -> SnapshotInfo | None:
        """As `finished`; raises LedgerError where the file is damaged."""
        try:
            facts, rows = files.read_footer(self.store, self.key(files.SNAPSHOT))
        except FileNotFoundError:
            return None
        except LedgerError as error:
            raise self._damaged(error) from error
        try:
            info = SnapshotInfo.model_validate_json(facts)
            if info.partition != self.partition or not info.finished_at:
                raise ValueError(f"it is of partition {info.partition}")
            if info.ids != rows or sorted(info.counts) != sorted(STATUSES) or sum(info.counts.values()) != rows:
                raise ValueError(f"it has {rows} rows instead of {info.ids}")
        except ValueError as error:
            raise self._damaged(files.damaged(self.store, self.key(files.SNAPSHOT), error)) from error
        return info

    def _damaged(self, error: LedgerError) -> LedgerError:
        return LedgerError(f"{error}; the next run keeps it aside and asks anew: {self.repair}")

    def read(
        self, columns: Sequence[str] | None = None, statuses: Iterable[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of the finished snapshot, a part at a time.

        Args:
            columns: these columns only; all of `ledger_schema` by default.
            statuses: rows of these statuses only.

        Raises LedgerError where there is no finished snapshot, or it is damaged.
        """
        try:
            yield from files.read_rows(self.store, self.key(files.SNAPSHOT), columns, statuses)
        except FileNotFoundError as error:
            raise LedgerError(f"{self.place} does not exist: nothing was fetched yet; run {self.repair}") from error
        except LedgerError as error:
            raise self._damaged(error) from error

    def failures(self, limit: int = SAMPLE) -> list[tuple[str, str, str]]:
        """The first failed and invalid ids of the finished snapshot: (id, status, error)."""
        found: list[tuple[str, str, str]] = []
        for batch in self.read(["condition_id", "status", "error"], ERROR_STATUSES):
            rows = batch.slice(0, limit - len(found)).to_pylist()
            found += [(row["condition_id"], row["status"], row["error"] or "") for row in rows]
        return found

    def shapes(self, limit: int = 50) -> list[tuple[str, int]]:
        """How often each vector occurs in the finished snapshot, as ``[1, 0]/1``, the most frequent first."""
        counts: Counter[str] = Counter()
        for batch in self.read(["payout_numerators", "payout_denominator"], ["resolved"]):
            tally = vector_texts(batch.column(0), batch.column(1)).value_counts()
            counts.update({row["values"]: row["counts"] for row in tally.to_pylist()})
        return counts.most_common(limit)

    def verify(self, ids: Chunk | PrefixRange, *, all_columns: bool = False) -> Accounting:
        """Compare the ids of the finished snapshot with those that have to be there once each, exactly.

        ``all_columns`` reads the other columns too, to find damage in them. Raises LedgerError where there is no
        finished snapshot, or it is damaged.
        """
        info = self.finished()
        batches = self.read(None if all_columns else ["condition_id", "status"])
        return account(ids, batches, info.ids if info is not None else 0)

    def changes(self) -> pa.Table | None:
        """What the finished snapshot changed against the one before it; None where there was none to compare with.

        A row for each id with another state: ``condition_id``, ``change`` (``newly_resolved``, ``vector_changed``,
        ``became_absent`` or ``no_longer_resolved``), ``before`` and ``after`` (vectors like ``[1, 0]/1``, or empty).
        Raises LedgerError where the file is damaged.
        """
        info = self.finished()
        if info is None:
            return None
        try:
            return files.read_any(self.store, self.key(files.CHANGES, f"{info.snapshot_id}.parquet"))
        except FileNotFoundError:
            return None
        except LedgerError as error:
            raise self._damaged(error) from error

    # -- writing

    def is_whole(self, ids: Chunk | PrefixRange) -> bool:
        """Whether the finished snapshot can be read whole and has each id once; it is set aside if not."""
        try:
            if not self.verify(ids, all_columns=True).closes:
                raise LedgerError(f"{self.place} does not hold each id of the input once")
        except LedgerError as error:
            if self.store.exists(self.key(files.SNAPSHOT)):
                self.set_aside(files.SNAPSHOT, str(error))
            return False
        return True

    def set_aside(self, name: str, reason: str, kind: str = "corrupt") -> None:
        """Move a file or directory of this partition to ``_aside``, and log it; the last five are kept."""
        stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        target = self.key(files.ASIDE, f"{name.rpartition('/')[2]}.{kind}-{stamp}")
        self.store.move(self.key(name), target)
        self.log(f"{self.partition}: SET ASIDE {name} as {self.store.describe(target)}: {reason}")
        kept = sorted(self.store.names(self.key(files.ASIDE)), key=lambda item: item.rpartition("-")[2])
        for old in kept[:-_KEPT_ASIDE]:
            self.store.delete(self.key(files.ASIDE, old))
