"""The ledger of one partition: read, compare, and start or go on with a run."""

from __future__ import annotations

from uuid import uuid4

from payout_pipeline.conditions import Chunk, IdSpool
from payout_pipeline.errors import LedgerError
from payout_pipeline.ledger.accounting import SAMPLE, Accounting, account
from payout_pipeline.ledger.files import BATCH_NAME, RUNNING, SNAPSHOT, LedgerFiles
from payout_pipeline.ledger.plans import Facts, RunningInfo, RunPlan, SnapshotInfo, now
from payout_pipeline.ledger.rows import ERROR_STATUSES, STATUSES, packed_column
from payout_pipeline.ledger.running import RunningLedger
from payout_pipeline.storage import join


class Ledger(LedgerFiles):
    """The ledger of one partition: `LedgerFiles` says where it is and reads it; here runs begin and are compared."""

    # -- reading

    def failures(self, limit: int = SAMPLE) -> list[tuple[str, str, str]]:
        """The first failed and invalid ids of the finished snapshot: (id, status, error)."""
        found: list[tuple[str, str, str]] = []
        for batch in self.read(["condition_id", "status", "error"], ERROR_STATUSES):
            for row in batch.slice(0, limit - len(found)).to_pylist():
                found.append((row["condition_id"], row["status"], row["error"] or ""))
            if len(found) >= limit:
                break
        return found

    def verify(self, chunk: Chunk, *, all_columns: bool = False) -> Accounting:
        """Compare the ids of the finished snapshot with those of the chunk, exactly.

        Args:
            chunk: the ids that have to be there once each.
            all_columns: read the other columns too, to find damage in them.

        Raises:
            LedgerError: there is no finished snapshot, or it is damaged.
        """
        return account(chunk, self.read(None if all_columns else ["condition_id", "status"]))

    def running(self) -> RunningInfo | None:
        """The run that is going or has died, from run.json and the names of its batches; None if there is none."""
        try:
            facts = Facts.from_json(self.store.read(join(self.prefix, RUNNING, "run.json")))
        except (FileNotFoundError, ValueError):
            return None
        written = sum(1 for name in self.store.names(join(self.prefix, RUNNING)) if BATCH_NAME.fullmatch(name))
        return RunningInfo(
            facts.run_id, facts.fingerprint, facts.refetch, facts.started_at, facts.ids, facts.carried,
            facts.batches, written, facts.pin,
        )  # fmt: skip

    def remove(self) -> None:
        """Remove all that is known of this partition: the snapshot, the run, and what was set aside."""
        self.store.delete(self.prefix)

    # -- writing

    def start(self, plan: RunPlan, *, reuse_finished: bool = False) -> RunningLedger:
        """Go on with the run that died, if it has this plan; otherwise begin a new one.

        Args:
            plan: what is to be asked.
            reuse_finished: take a finished snapshot of the same fingerprint as this run's result instead of asking
                anew. For a caller that finds a snapshot which nobody has recorded as delivered.

        Raises:
            StorageError: the place cannot be written.
        """
        self.store.clean(self.prefix, self.log)
        self.store.clean(join(self.prefix, RUNNING), self.log)
        finished = self._finished_or_aside()
        facts = self._facts_of_the_run()
        if facts is not None and finished is not None and facts.run_id == finished.snapshot_id:
            # It died between putting the snapshot into place and removing its batches.
            self.log(f"{self.partition}: removed the batches of run {facts.run_id}, whose snapshot is complete")
            self.store.delete(join(self.prefix, RUNNING))
            facts = None
        if (
            reuse_finished
            and finished is not None
            and finished.fingerprint == plan.fingerprint
            and self._is_whole(plan)
        ):
            if facts is None:
                self._clear_running()
            self.log(f"{self.partition}: took the finished snapshot {finished.snapshot_id}, not delivered yet")
            return RunningLedger.of_finished(self, plan, finished)
        if facts is not None:
            reason = _why_other_plan(facts, plan, finished)
            if reason is not None:
                self.set_aside(RUNNING, f"the run that died {reason}", "superseded")
                facts = None
        remaining: IdSpool | None = None
        if facts is not None and facts.carried_snapshot is not None:
            if self._is_whole(plan):
                remaining = self._ids_not_resolved()
            if remaining is None or len(remaining) != facts.ids - facts.carried:
                self.set_aside(RUNNING, "the snapshot that it carries rows of is damaged", "superseded")
                facts = None
        if facts is None:
            return self._begin(plan, finished)
        self.log(f"{self.partition}: resuming run {facts.run_id} of {facts.started_at}")
        running = RunningLedger(self, plan, facts, remaining)
        running.load_batches()
        return running

    def _begin(self, plan: RunPlan, finished: SnapshotInfo | None) -> RunningLedger:
        carried_snapshot, carried, remaining = self._carry(plan, finished)
        asked = plan.ids if remaining is None else len(remaining)
        facts = Facts(
            run_id=uuid4().hex,
            fingerprint=plan.fingerprint,
            refetch=plan.refetch,
            started_at=now(),
            ids=plan.ids,
            carried_snapshot=carried_snapshot,
            carried=carried,
            batches=plan.batches(asked),
            pin=None,
        )
        self._clear_running()
        running = RunningLedger(self, plan, facts, remaining)
        running.save_facts()
        return running

    def _clear_running(self) -> None:
        """Make room for a run; what cannot be recognised is kept aside."""
        if self.store.names(join(self.prefix, RUNNING)):
            self.set_aside(RUNNING, "it holds no run that can be recognised")
        elif self.store.exists(join(self.prefix, RUNNING)):
            self.store.delete(join(self.prefix, RUNNING))

    def _carry(self, plan: RunPlan, finished: SnapshotInfo | None) -> tuple[str | None, int, IdSpool | None]:
        """The former snapshot to carry resolved rows from, their number, and the ids that remain to be asked."""
        if plan.refetch != "unresolved" or plan.chunk is None:
            return None, 0, None
        if finished is None:
            self.log(f"{self.partition}: there is no finished snapshot to refresh; asking all ids")
            return None, 0, None
        same = (
            finished.ids_sha256 == plan.ids_sha256
            and finished.endpoint_sha256 == plan.endpoint_sha256
            and finished.schema_kind == plan.schema_kind
            and finished.mode == plan.mode
        )
        if not same:
            self.log(f"{self.partition}: the finished snapshot has other ids, endpoint or schema; asking all ids")
            return None, 0, None
        if not self._is_whole(plan):
            return None, 0, None
        remaining = self._ids_not_resolved()
        carried = plan.chunk.count - len(remaining)
        self.log(f"{self.partition}: carrying {carried:,} resolved ids over, asking the other {len(remaining):,}")
        return finished.snapshot_id, carried, remaining

    def _is_whole(self, plan: RunPlan) -> bool:
        """Whether the finished snapshot can be read to its end and has each id of the plan; set aside if not."""
        try:
            if plan.chunk is None:
                for _ in self.read():
                    pass
            elif not self.verify(plan.chunk, all_columns=True).closes:
                raise LedgerError(f"{self.place} does not hold each id of the input once")
        except LedgerError as error:
            if self.store.exists(self.snapshot_key):
                self.set_aside(SNAPSHOT, str(error))
            return False
        return True

    def _ids_not_resolved(self) -> IdSpool:
        spool = IdSpool()
        for batch in self.read(["condition_id"], [status for status in STATUSES if status != "resolved"]):
            spool.extend(packed_column(batch.column(0))[0])
        spool.flush()
        return spool

    def _facts_of_the_run(self) -> Facts | None:
        """run.json; made again from a batch where it is damaged or missing."""
        key = join(self.prefix, RUNNING, "run.json")
        try:
            return Facts.from_json(self.store.read(key))
        except FileNotFoundError:
            pass
        except ValueError as error:
            self.set_aside(join(RUNNING, "run.json"), str(error))
        for name in self.store.names(join(self.prefix, RUNNING)):
            if not BATCH_NAME.fullmatch(name):
                continue
            try:
                facts, _, _ = self.read_batch(name)
            except LedgerError:
                continue  # it is set aside when the batches are loaded
            self.log(f"{self.partition}: run.json was damaged or missing; made it again from {name}")
            self.store.write(key, facts.to_json().encode())
            return facts
        return None

    def _finished_or_aside(self) -> SnapshotInfo | None:
        try:
            return self.snapshot()
        except LedgerError as error:
            self.set_aside(SNAPSHOT, str(error))
            return None


def _why_other_plan(facts: Facts, plan: RunPlan, finished: SnapshotInfo | None) -> str | None:
    """Why the run that died cannot be gone on with; None if it can."""
    if facts.fingerprint != plan.fingerprint:
        return "had other ids, another endpoint, batch size, schema or mode"
    if facts.refetch != plan.refetch:
        return f"was to ask {facts.refetch} ids, this one {plan.refetch}"
    if facts.carried_snapshot is not None and (finished is None or finished.snapshot_id != facts.carried_snapshot):
        return "carried rows of a snapshot that is not there any more"
    expected = plan.batches(plan.ids - facts.carried)
    if facts.ids != plan.ids or facts.batches != expected or facts.carried > plan.ids:
        return "has totals that do not fit its ids"
    return None
