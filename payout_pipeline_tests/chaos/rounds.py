"""One round of chaos: a plan drawn from a seed, the backfill killed and starved by it, the oracle's verdict.

The plan is a pure function of the seed; when exactly a signal lands depends on the machine, which is meant: many rounds
try many moments. A round ends when an undisturbed start has exit status 0; with all faults switched off that has to be
the next one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

from payout_pipeline_tests.chaos.processes import Nursery, OverdueError, Running
from payout_pipeline_tests.chaos.world import World, world
from payout_pipeline_tests.clickhouse_front import Faults
from payout_pipeline_tests.oracle import Violation, judge

#: Longest start without an interruption, longest way from a stop signal to the end of all processes.
START_SECONDS = 180.0
STOP_SECONDS = 30.0
_QUIET_STARTS = 3

Blow = Literal["kill all", "kill parent", "kill a worker", "SIGTERM", "SIGINT", "SIGTERM twice", "freeze a worker"]
_BLOWS: tuple[tuple[Blow, int], ...] = (
    ("kill all", 6), ("kill parent", 3), ("kill a worker", 4), ("SIGTERM", 3), ("SIGINT", 2), ("SIGTERM twice", 1),
    ("freeze a worker", 1),
)  # fmt: skip
#: What a blow waits for; then a random part of a second more.
_MOMENTS = (
    "at once", "a request", "some batches", "all batches", "a ledger", "the target table", "an insert", "the last insert",
    "the view", "a checkpoint", "the report",
)  # fmt: skip

_API_FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "options": {"status": 500}},
    {"kind": "status", "options": {"status": 502}},
    {"kind": "status", "options": {"status": 503, "retry_after": "1"}},
    {"kind": "status", "options": {"status": 504}},
    {"kind": "status", "options": {"status": 429, "retry_after": "1"}},
    {"kind": "body", "options": {"form": "html"}},
    {"kind": "body", "options": {"form": "empty"}},
    {"kind": "body", "options": {"form": "truncated"}},
    {"kind": "body", "options": {"form": "null_data"}},
    {"kind": "errors", "options": {"message": "Store error: database unavailable"}},
    {"kind": "errors", "options": {"message": "Store error: database unavailable", "with_data": True}},
    {"kind": "foreign_id"},
    {"kind": "extra_id"},
    {"kind": "duplicate_id"},
    {"kind": "upper_case_id"},
    {"kind": "malformed_id"},
    {"kind": "hang", "options": {"seconds": 20}},
    {"kind": "drop"},
    {"kind": "reset"},
    {"kind": "slow", "options": {"seconds": 0.5}},
)
_LIMITS: tuple[dict[str, Any], ...] = (
    {"kind": "page_cap", "options": {"rows": 100}},
    {"kind": "statement_timeout", "options": {"max_ids": 90}},
)
_DATABASE_FAULTS: tuple[dict[str, Any], ...] = (
    {"code": 252}, {"code": 241}, {"code": 202}, {"code": 210}, {"http_status": 502}, {"http_status": 503},
    {"matching": "INSERT", "lose_answer": True}, {"matching": "INSERT", "reset": True}, {"matching": "INSERT", "code": 999},
    {"matching": "INSERT", "drop_rows": True}, {"matching": "SELECT", "half": True}, {"matching": "CREATE", "lose_answer": True},
    {"reset": True}, {"delay": 0.5},
)  # fmt: skip
_MISCHIEF = ("none",) * 5 + (
    "truncate the table", "delete rows", "change a row", "damage a checkpoint", "damage a batch", "leave a temporary file",
)  # fmt: skip


@dataclass(frozen=True)
class Stroke:
    """One start and what ends it."""

    blow: Blow
    moment: str
    more_seconds: float
    count: int
    mischief: str


@dataclass(frozen=True)
class Plan:
    """Everything that a seed decides."""

    seed: int
    front: bool
    ids: int
    workers: int
    batch_size: int
    latency: float
    limit: str
    enforced: bool
    api_faults: tuple[dict[str, Any], ...]
    database_faults: tuple[dict[str, Any], ...]
    database_dies: float | None
    strokes: tuple[Stroke, ...]
    cold: bool


@dataclass
class Result:
    """How a round went. ``violations`` is empty when nothing was lost."""

    plan: Plan
    violations: list[Violation] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0

    def describe(self) -> str:
        """The round in one line, or with its story where it failed."""
        place = "server" if self.plan.front else "embedded"
        head = f"seed {self.plan.seed}: {place}, {self.plan.ids} ids, {self.starts} starts, {self.seconds:.0f} s"
        if not self.violations:
            return f"{head}: nothing lost ({'; '.join(self.story)})"
        return "\n".join([f"{head}: FAILED", *(f"  {v}" for v in self.violations), *(f"  . {s}" for s in self.story)])


def plan_of(seed: int) -> Plan:
    """The plan that belongs to a seed."""
    dice = random.Random(seed)
    api = tuple(
        {**fault, "probability": round(dice.uniform(0.02, 0.15), 3)}
        for fault in dice.sample(_API_FAULTS, dice.randint(0, 4))
    )
    if dice.random() < 0.25:
        api += (dice.choice(_LIMITS),)
    if dice.random() < 0.15:
        outage = {"seconds": round(dice.uniform(1, 4), 1), "mode": dice.choice(["status", "drop"])}
        api += ({"kind": "outage", "times": 1, "requests": (dice.randint(2, 12),), "options": outage},)
    front = dice.random() < 0.4
    database = tuple(
        {"times": dice.randint(1, 2), **fault} for fault in dice.sample(_DATABASE_FAULTS, dice.randint(0, 3)) if front
    )
    weighted = [blow for blow, weight in _BLOWS for _ in range(weight)]
    strokes = tuple(
        Stroke(
            dice.choice(weighted), dice.choice(_MOMENTS), round(dice.uniform(0, 0.4), 3), dice.randint(1, 5),
            dice.choice(_MISCHIEF),
        )
        for _ in range(dice.randint(1, 4))
    )  # fmt: skip
    tight = dice.random() < 0.5
    return Plan(
        seed=seed,
        front=front,
        ids=dice.randint(1_500, 5_000),
        workers=dice.choice([1, 2, 2, 3]),
        batch_size=dice.choice([50, 100, 200]),
        latency=dice.choice([0.0, 0.02, 0.1]),
        limit="20/1s" if tight else "200/1s",
        enforced=dice.random() < 0.7,
        api_faults=api,
        database_faults=database,
        database_dies=round(dice.uniform(1, 8), 1) if front and dice.random() < 0.25 else None,
        strokes=strokes,
        cold=dice.random() < 0.1,
    )


def run_round(seed: int, directory: Path, nursery: Nursery) -> Result:
    """Play the round of ``seed`` under ``directory`` (empty) and judge it."""
    plan = plan_of(seed)
    result = Result(plan)
    began = time.monotonic()
    with world(
        directory, nursery, ids=plan.ids, seed=seed, workers=plan.workers, front=plan.front, limit=plan.limit,
        server_limit=plan.limit if plan.enforced else None, latency=plan.latency, jitter=plan.latency / 2,
        GOLDSKY_BATCH_SIZE=str(plan.batch_size), PAYOUT_CHECKPOINT_INTERVAL="2", GOLDSKY_CONCURRENT_REQUESTS="4",
        GOLDSKY_MAX_RETRIES="6",
    ) as place:  # fmt: skip
        _Round(plan, place, result, random.Random(seed + 1)).play()
    result.seconds = time.monotonic() - began
    return result


class _Round:
    def __init__(self, plan: Plan, place: World, result: Result, dice: random.Random) -> None:
        self.plan, self.place, self.result, self.dice = plan, place, result, dice
        self.interruptions = 0
        self.batch_damaged = self.row_changed = self.finished_before = False

    def play(self) -> None:
        try:
            self._configure(faulty=True)
            for number, stroke in enumerate(self.plan.strokes):
                if self._struck(stroke, cold=self.plan.cold and number == 0):
                    break
                self._mischief(stroke.mischief)
            else:
                self._until_done()
        except OverdueError as overdue:
            self.result.violations.append(Violation("O7", str(overdue)))
            return
        self.result.violations += judge(
            self.place.evidence(
                interruptions=None if self.batch_damaged or self.finished_before else self.interruptions,
                in_flight=6 * self.plan.workers,  # four requests a worker, and two answers on their way to disk
                newest_only=self.row_changed,
            )
        )

    def _configure(self, *, faulty: bool) -> None:
        server = self.place.server
        server.faults.clear()
        if faulty:
            for fault in self.plan.api_faults:
                options = dict(fault.get("options", {}))
                rest = {key: value for key, value in fault.items() if key not in ("kind", "options")}
                server.faults.add(fault["kind"], **rest, **options)
        if self.place.front is not None:
            with contextlib.suppress(OSError):
                faults = self.plan.database_faults if faulty else ()
                self.place.front.faults(*(Faults(**fault) for fault in faults))

    def _struck(self, stroke: Stroke, *, cold: bool) -> bool:
        """One start with its blow; whether it was done before the blow fell."""
        place = self.place
        run = place.start("backfill", cold=cold)
        self.result.starts += 1
        with self._dying_database():
            watch = _Moments(place, run)
            reached = watch.reached(stroke.moment, stroke.count, START_SECONDS)
            time.sleep(stroke.more_seconds)
            if run.ended():
                code = run.wait(0)
                self._note(run, code, f"ended before {stroke.blow!r} at {stroke.moment!r}")
                return code == 0
            self._strike(stroke.blow, run)
            code = (
                run.wait(START_SECONDS)
                if stroke.blow in ("kill a worker", "freeze a worker")
                else run.wait(STOP_SECONDS)
            )
        if not run.gone(STOP_SECONDS):
            self.result.violations.append(Violation("O7", f"processes left {STOP_SECONDS:g} s after {stroke.blow!r}"))
            run.kill_all()
        self.interruptions += 1
        if not (place.runtime / "backfill.json").exists():
            self.finished_before = True  # the blow fell into the report: the next start is a new backfill
        self._note(run, code, f"{stroke.blow} at {stroke.moment}{'' if reached else ' (not reached)'}")
        return code == 0

    def _strike(self, blow: Blow, run: Running) -> None:
        if blow == "kill all":
            run.kill_all()
        elif blow == "kill parent":
            run.send(signal.SIGKILL)
        elif blow in ("kill a worker", "freeze a worker"):
            children = run.children()
            if children:
                victim = self.dice.choice(children)
                with contextlib.suppress(ProcessLookupError):
                    if blow == "kill a worker":
                        os.kill(victim, signal.SIGKILL)
                    else:
                        os.kill(victim, signal.SIGSTOP)
                        time.sleep(1.5)
                        os.kill(victim, signal.SIGCONT)
        else:
            run.send(signal.SIGINT if blow == "SIGINT" else signal.SIGTERM)
            if blow == "SIGTERM twice":
                time.sleep(0.1)
                run.send(signal.SIGTERM)

    def _note(self, run: Running, code: int, what: str) -> None:
        self.place.exits.append(code)
        self.result.story.append(f"{what} → {code}")

    def _mischief(self, what: str) -> None:
        """What a user or a disk does between two starts."""
        if what == "none":
            return
        place, dice = self.place, self.dice
        if what in ("truncate the table", "delete rows", "change a row"):
            # There is no table yet, or no database; or a fault that was meant for the pipeline strikes this.
            with contextlib.suppress(AssertionError, IndexError, OSError, HTTPException):
                table = "default.resolutions_external_ingest"
                ids = [row["condition_id"] for row in place.rows(f"SELECT condition_id FROM {table}")]
                if what == "truncate the table":
                    place.command(f"TRUNCATE TABLE {table}")
                elif what == "delete rows":
                    chosen = ", ".join(f"'{identity}'" for identity in dice.sample(ids, min(20, len(ids))))
                    place.command(f"DELETE FROM {table} WHERE condition_id IN ({chosen})")
                else:
                    self.row_changed = True
                    place.command(
                        f"ALTER TABLE {table} UPDATE payout_numerators = [7, 9], payout_denominator = 16 "
                        f"WHERE condition_id = '{dice.choice(ids)}' SETTINGS mutations_sync = 2"
                    )
                self.result.story.append(what)
            return
        pattern = {
            "damage a checkpoint": "*.checkpoint.json",
            "damage a batch": "goldsky_payouts/*/_running/batch-*.parquet",
        }
        if what == "leave a temporary file":
            for directory in [*place.runtime.glob("goldsky_payouts/*/_running")][:1]:
                (directory / ".batch-00000.parquet.abc.tmp").write_bytes(dice.randbytes(100))
                self.result.story.append(what)
            return
        files = sorted(place.runtime.glob(pattern[what]))
        if files:
            victim = dice.choice(files)
            content = victim.read_bytes()
            kind = dice.choice(["truncated", "empty", "random"])
            victim.write_bytes(
                {"truncated": content[: len(content) // 2], "empty": b"", "random": dice.randbytes(len(content))}[kind]
            )
            self.batch_damaged = self.batch_damaged or what == "damage a batch"
            self.result.story.append(f"{what}: {kind} {victim.name}")

    @contextlib.contextmanager
    def _dying_database(self) -> Iterator[None]:
        """Once in a round the database dies for two seconds while a start is going."""
        front, after = self.place.front, self.plan.database_dies
        if front is None or after is None or self.interruptions:
            yield
            return
        done = threading.Event()

        def die() -> None:
            if not done.wait(after):
                front.stop(kill=True)
                time.sleep(2)
                front.start()

        thread = threading.Thread(target=die, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(60)

    def _until_done(self) -> None:
        """Undisturbed starts; after the first two all faults are switched off, and then it has to work."""
        for attempt in range(_QUIET_STARTS):
            if attempt == _QUIET_STARTS - 1:
                self._configure(faulty=False)
            run = self.place.start("backfill")
            self.result.starts += 1
            code = run.wait(START_SECONDS)
            self._note(run, code, "undisturbed")
            if code == 0:
                return
            self.interruptions += 1  # what failed is asked again
            self.result.story.append(" ".join(run.text().split())[-300:])
        self.result.violations.append(
            Violation("O4", f"not done by an undisturbed start without faults:\n{self.place.last_words()}")
        )


class _Moments:
    """Waits for something to have happened in a run, by what can be seen from outside."""

    def __init__(self, place: World, run: Running) -> None:
        self.place, self.run = place, run
        self.requests = len(place.server.log)
        self.batches = self._count("goldsky_payouts/*/_running/batch-*.parquet")
        self.ledgers = self._stamps("goldsky_payouts/*/ledger.parquet")
        self.checkpoints = self._stamps("*.checkpoint.json")
        self.totals = self._stamps("warehouse-totals.json")
        self.measured = self._stamps("vw_resolutions_truth/*")

    def _count(self, pattern: str) -> int:
        return sum(1 for _ in self.place.runtime.glob(pattern))

    def _stamps(self, pattern: str) -> set[tuple[str, int]]:
        found = set()
        for path in self.place.runtime.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                found.add((str(path), path.stat().st_mtime_ns))
        return found

    def reached(self, moment: str, count: int, seconds: float) -> bool:
        """Wait; False where the run ended (or the time did) before it came."""
        happened: dict[str, Callable[[], bool]] = {
            "at once": lambda: True,
            "a request": lambda: len(self.place.server.log) >= self.requests + count,
            "some batches": lambda: self._count("goldsky_payouts/*/_running/batch-*.parquet") >= self.batches + count,
            "all batches": lambda: self._stamps("goldsky_payouts/*/ledger.parquet") != self.ledgers,
            "a ledger": lambda: len(self._stamps("goldsky_payouts/*/ledger.parquet") - self.ledgers) >= min(count, 2),
            "the target table": lambda: "target table" in self._logs(),
            "an insert": lambda: self._inserted() or self._stamps("warehouse-totals.json") != self.totals,
            "the last insert": lambda: self._stamps("warehouse-totals.json") != self.totals,
            "the view": lambda: self._stamps("vw_resolutions_truth/*") != self.measured,
            "a checkpoint": lambda: self._stamps("*.checkpoint.json") != self.checkpoints,
            "the report": lambda: "Success report" in self.run.text() or "Runs finished" in self.run.text(),
        }
        deadline = time.monotonic() + seconds
        while not happened[moment]():
            if self.run.ended(0.01):
                return False
            if time.monotonic() > deadline:
                return False
        return True

    def _logs(self) -> str:
        texts = [path.read_text(errors="replace") for path in self.place.runtime.glob("logs/*.log")]
        return "\n".join(texts)

    def _inserted(self) -> bool:
        parts = self.place.runtime.glob("clickhouse/store/*/*/tmp_insert_*")
        if self.place.front is not None:
            parts = (self.place.root / "clickhouse").glob("store/*/*/tmp_insert_*")
        with contextlib.suppress(FileNotFoundError):
            return any(True for _ in parts)
        return True
