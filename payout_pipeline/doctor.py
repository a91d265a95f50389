"""``payout-pipeline doctor``: everything a run needs, looked at before it runs. Reads, asks, and writes nothing.

Each finding is one line, with what to do where it is a problem. Goldsky is asked at most three times: the schema and
head, one id at the block a run would pin, and, where that block is not kept, one id at the head.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.scrub import excerpt, scrub
from payout_pipeline.settings import Settings
from payout_pipeline.verification import FRESH_WITHIN
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.words import counted, duration
from payout_pipeline.worklist import Worklist, read_worklist

if TYPE_CHECKING:
    from rich.console import Console

    from payout_pipeline.warehouse.client import Session, Warehouse

Level = Literal["ok", "warning", "problem"]
MAX_REQUESTS = 3
#: Longer than this nobody waits for a line, whatever the settings of a run allow.
_ASK_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 2.0
_DATABASE_WAIT_SECONDS = 3.0
#: On disk for each id, generously: ledger, its batches while a run is going, and the embedded database.
_BYTES_PER_ID = 1_500
_BYTES_AT_LEAST = 200_000_000
#: Start of Python and Dagster, loading, the view and its checks, as measured on two cores.
_OVERHEAD_SECONDS = 15.0
_PROBES_PER_WORKER = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``repair`` is what to do; empty where nothing is wrong."""

    subject: str
    level: Level
    text: str
    repair: str = ""

    def as_json(self) -> dict[str, str]:
        """Plain values."""
        return {"subject": self.subject, "level": self.level, "text": self.text, "repair": self.repair}


def examine(settings: Settings, now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)) -> list[Finding]:
    """Look at everything. Faults become findings; only what nobody expected is raised."""
    findings: list[Finding] = []
    worklist = _input(settings, findings)
    findings += _runtime(settings, worklist)
    latency = _goldsky(settings, worklist, findings, now())
    findings += _clickhouse(settings)
    findings.append(_estimate(settings, worklist, latency))
    return findings


def _fault(subject: str, fault: Exception, otherwise: str = "") -> Finding:
    """A fault's message as a finding: its first line, and what it says about the repair, or ``otherwise``."""
    text = scrub(str(fault)).strip()
    head, _, rest = text.partition("\n")
    repair = " ".join(rest.split()).removeprefix("To repair it: ")
    return Finding(subject, "problem", head, repair or otherwise)


def _input(settings: Settings, findings: list[Finding]) -> Worklist | None:
    try:
        worklist = read_worklist(settings)
    except PayoutPipelineError as fault:
        findings.append(_fault("input", fault))
        return None
    if worklist.ids is None:
        findings.append(Finding("input", "ok", "GOLDSKY_MODE=scan: every resolved condition of the subgraph"))
        return worklist
    largest = max(worker.ids or 0 for worker in worklist.workers)
    repeated = f", {counted(worklist.duplicates, 'repeated line')} left out" if worklist.duplicates else ""
    findings.append(
        Finding(
            "input",
            "ok",
            f"{worklist.source}: {counted(worklist.ids, 'condition id')}{repeated}; "
            f"{counted(len(worklist.workers), 'worker')} with up to {largest:,} each",
        )
    )
    return worklist


# ------------------------------------------------------------------------------------------------ runtime directory


def _runtime(settings: Settings, worklist: Worklist | None) -> Iterator[Finding]:
    from payout_pipeline.storage import open_store

    if "://" in settings.runtime_dir:
        try:
            open_store(settings.runtime_dir).names()
        except (PayoutPipelineError, OSError) as fault:
            yield _fault("runtime", fault)
            return
        yield Finding("runtime", "ok", f"{scrub(settings.runtime_dir)} can be read (writing is not tried)")
        return
    path = Path(settings.runtime_dir).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is no directory" if not there.is_dir() else "is not writable for this user"
        yield Finding("runtime", "problem", f"{there} {what}", "Mend that, or set PAYOUT_RUNTIME_DIR elsewhere.")
        return
    free = shutil.disk_usage(there).free
    need = max(_BYTES_AT_LEAST, (worklist.ids or 0 if worklist else 0) * _BYTES_PER_ID)
    state = "is writable" if path.exists() else "will be made"
    text = f"{path} {state}; {free / 1e9:,.1f} GB free, a run needs up to {need / 1e9:,.1f} GB"
    if free < need:
        yield Finding("runtime", "problem", text, "Free some space, or set PAYOUT_RUNTIME_DIR to a larger disk.")
        return
    yield Finding("runtime", "ok", text)
    yield from _leftovers(settings)


def _leftovers(settings: Settings) -> Iterator[Finding]:
    """Work of earlier runs: what the next one will continue, and what was set aside as damaged."""
    from payout_pipeline.status import read_status

    try:
        status = read_status(settings)
    except PayoutPipelineError:
        return  # already said: the input cannot be read
    started = [worker for worker in status.workers if worker.ids and worker.state != "done"]
    if started:
        words = ", ".join(f"worker {w.worker}: {w.ids:,} of {w.total_ids:,} ids, {w.state}" for w in started)
        yield Finding("checkpoints", "ok", f"unfinished work is there and will be continued ({words})")
    finished = [worker for worker in status.workers if worker.state == "done"]
    if finished:
        yield Finding(
            "checkpoints", "ok", f"{counted(len(finished), 'worker')} of {len(status.workers)} finished already"
        )
    aside = status.set_aside
    if aside:
        yield Finding(
            "checkpoints",
            "warning",
            f"{counted(len(aside), 'damaged file')} of earlier runs set aside: {', '.join(aside[:3])}",
            "They are not used any more; delete them when you have looked at them.",
        )


# ---------------------------------------------------------------------------------------------------------- Goldsky


def _goldsky(settings: Settings, worklist: Worklist | None, findings: list[Finding], now: datetime) -> float | None:
    """Ask the subgraph; the seconds that one request took, None where there was no answer."""
    first = _first_id(settings) if worklist is not None else None
    try:
        return asyncio.run(_ask(settings, first, findings, now))
    except PayoutPipelineError as fault:
        findings.append(_fault("goldsky", fault, "Check GOLDSKY_ENDPOINT, GOLDSKY_API_TOKEN and the network."))
        return None


def _first_id(settings: Settings) -> str | None:
    """An id to ask for: the first of the file, none in scan mode."""
    import contextlib

    from payout_pipeline.conditions import read_conditions

    if settings.goldsky_mode == "scan":
        return None
    with contextlib.closing(read_conditions(settings.condition_ids_file)) as file:
        return file.ids(0, 1)[0]


async def _ask(settings: Settings, first: str | None, findings: list[Finding], now: datetime) -> float | None:
    from payout_pipeline.goldsky.client import GoldskyClient, SnapshotGoneError
    from payout_pipeline.goldsky.pacing import StoppedError

    stop = asyncio.Event()
    waits: list[str] = []

    def on_wait(reason: str, seconds: float) -> None:
        # A second try after a 429, or a wait behind a run that uses the whole limit, is no doctor's business.
        if reason != "window" or seconds > _LONGEST_WAIT_SECONDS:
            waits.append(reason)
            stop.set()

    with tempfile.TemporaryDirectory(prefix="payout-doctor-") as scratch:
        cautious = settings.model_copy(
            update={
                "goldsky_max_retries": 0,
                "goldsky_timeout_seconds": min(settings.goldsky_timeout_seconds, _ASK_SECONDS),
                "goldsky_outage_budget_seconds": 0.0,
                # While runs share a budget, these requests belong into it; otherwise nothing is left behind.
                "runtime_dir": settings.runtime_dir if _budget_is_shared(settings) else scratch,
            }
        )
        async with GoldskyClient.from_settings(cautious, stop=stop, on_wait=on_wait) as client:
            try:
                started = time.monotonic()
                info = await client.probe(patient=False)
                latency = time.monotonic() - started
                fields = "payouts" if info.schema_kind == "payouts" else "payoutNumerators and payoutDenominator"
                findings.append(
                    Finding(
                        "goldsky", "ok", f"{_address(settings)} answers in {latency:.2f} s; conditions have {fields}"
                    )
                )
                findings.append(_head(info.head_number, info.head_timestamp, info.has_indexing_errors, now))
                if first is None:
                    return latency
                pin = client.make_pin(info, settings.goldsky_block_margin)
                try:
                    answer = await client.fetch_batch([first], pin)
                    kept = f"block {pin.number:,} ({settings.goldsky_block_margin} behind the head) is kept"
                    level: Level = "ok"
                except SnapshotGoneError as gone:
                    if not gone.history_not_kept:
                        raise
                    pin = client.make_pin(info, settings.goldsky_block_margin, history_kept=False)
                    answer = await client.fetch_batch([first], pin)
                    kept = f"block {pin.number:,} is not kept: a run asks at the head instead (no single snapshot)"
                    level = "warning"
                if answer.failed:
                    findings.append(Finding("goldsky", "problem", f"a query failed: {answer.failed[first]}", _RETRY))
                    return latency
                said = "known" if first in answer.found else "not known"
                findings.append(Finding("goldsky", level, f"{kept}; the first id of the file is {said} there"))
                return latency
            except StoppedError:
                if waits and waits[0] != "window":
                    text = excerpt(waits[0])
                    repair = "Wait until that is over; if it stays, lower GOLDSKY_RATE_LIMIT or ask for a higher limit."
                else:
                    text, repair = (
                        "a running backfill uses the whole rate limit; not asked",
                        "Ask again when it is done.",
                    )
                findings.append(Finding("goldsky", "warning", f"{_address(settings)}: {text}", repair))
                return None


_RETRY = "Try again; if it stays, look at the endpoint's own page at its provider."


def _address(settings: Settings) -> str:
    return excerpt(settings.goldsky_endpoint.split("?", 1)[0], 160)


def _budget_is_shared(settings: Settings) -> bool:
    from payout_pipeline.goldsky.pacing import is_kept

    return is_kept(runtime_dir=settings.runtime_dir, limiter_url=settings.limiter_url)


def _head(number: int, timestamp: int | None, indexing_errors: bool, now: datetime) -> Finding:
    if indexing_errors:
        return Finding(
            "goldsky",
            "warning",
            f"head at block {number:,}; the subgraph reports indexing errors, so vectors may be missing or wrong",
            "Ask whoever deploys the subgraph, or set GOLDSKY_ENDPOINT to a healthy version.",
        )
    if timestamp is None:
        return Finding("goldsky", "ok", f"head at block {number:,}; the subgraph does not say how old it is")
    age = now - datetime.fromtimestamp(timestamp, timezone.utc)
    text = f"head at block {number:,}, {duration(age)} old"
    if age > FRESH_WITHIN:
        return Finding(
            "goldsky",
            "warning",
            f"{text}: older than {duration(FRESH_WITHIN)}, so the latest resolutions are missing",
            "Set GOLDSKY_ENDPOINT to a version that is kept up to date, or wait until it has caught up.",
        )
    return Finding("goldsky", "ok", text)


def _estimate(settings: Settings, worklist: Worklist | None, latency: float | None) -> Finding:
    """How long a run will take: the rate limit's own floor, or the latency over all connections, and the overhead."""
    if worklist is None:
        return Finding("estimate", "warning", "no estimate without an input file")
    if worklist.ids is None:
        return Finding("estimate", "ok", "no estimate in scan mode: the subgraph decides how many conditions there are")
    requests = estimated_requests(worklist, settings.goldsky_batch_size)
    floor = rate_floor(requests, settings.goldsky_rate_limit.requests, settings.goldsky_rate_limit.seconds)
    connections = min(len(worklist.workers) * settings.goldsky_concurrent_requests, max(requests, 1))
    waiting = (latency or 0.0) * math.ceil(requests / connections)
    seconds = max(floor, waiting) + _OVERHEAD_SECONDS
    reason = "the rate limit" if floor >= waiting else "the latency"
    return Finding(
        "estimate",
        "ok",
        f"about {duration(timedelta(seconds=seconds))}: {counted(requests, 'request')} at "
        f"{settings.goldsky_rate_limit} cannot take less than {floor:.0f} s ({reason} decides), and about "
        f"{_OVERHEAD_SECONDS:.0f} s go to everything else",
    )


def estimated_requests(worklist: Worklist, batch_size: int) -> int:
    """Requests of a run without any fault: the batches of each worker, and one question for the schema each."""
    return sum(math.ceil((worker.ids or 0) / batch_size) + _PROBES_PER_WORKER for worker in worklist.workers)


def rate_floor(requests: int, allowed: int, seconds: float) -> float:
    """Seconds from the first request to the last that a limit of ``allowed`` in any ``seconds`` enforces."""
    return max(0, (requests - 1) // allowed) * seconds


# ------------------------------------------------------------------------------------------------------- ClickHouse


def _clickhouse(settings: Settings) -> list[Finding]:
    try:
        warehouse = _warehouse(settings)
        if warehouse is None:
            if importlib.util.find_spec("chdb") is None:
                return [
                    Finding(
                        "clickhouse",
                        "problem",
                        "CLICKHOUSE_HOST is not set and the embedded engine (chdb) is not installed",
                        "Set CLICKHOUSE_HOST, or pip install 'payout-pipeline[embedded]'.",
                    )
                ]
            return [Finding("clickhouse", "ok", "embedded: the database and its tables will be made by the first run")]
        findings: list[Finding] = []
        with warehouse.session("doctor", patient=False) as session:
            findings.append(Finding("clickhouse", "ok", f"{session.address} answers, version {session.version}"))
            findings += _tables(session, settings)
            if not session.embedded:
                findings += _rights(session, settings)
        return findings
    except PayoutPipelineError as fault:
        return [_fault("clickhouse", fault)]


def _warehouse(settings: Settings) -> Warehouse | None:
    """A warehouse that leaves nothing behind; None where the embedded database does not exist yet."""
    from payout_pipeline.warehouse.client import Warehouse, server_of

    server = server_of(settings)
    wait = min(settings.clickhouse_wait_seconds, _DATABASE_WAIT_SECONDS)
    if server is None:
        directory = Path(settings.runtime_dir) / "clickhouse"
        if not directory.is_dir():
            return None
        return Warehouse(
            server=None, directory=directory, database=settings.clickhouse_database, wait_seconds=wait, comment="doctor"
        )
    return Warehouse(server=server, directory=None, database=server.database, wait_seconds=wait, comment="doctor")


def _tables(session: Session, settings: Settings) -> Iterator[Finding]:
    from payout_pipeline.warehouse.schema import ID_COLUMNS, check_view_place, inspect_table
    from payout_pipeline.warehouse.target import check_target

    name = QualifiedName.parse(settings.target_table)
    target = inspect_table(session, name)
    if target is None:
        yield Finding("clickhouse", "ok", f"target {name} does not exist yet; a run creates it")
    else:
        try:
            check_target(target, settings.clickhouse_cluster)
            types = ", ".join(f"{column} {kind}" for column, kind in list(target.columns.items())[1:4])
            yield Finding("clickhouse", "ok", f"target {name} ({target.engine}) can hold the vectors: {types}")
        except PayoutPipelineError as fault:
            yield _fault("clickhouse", fault)
    try:
        check_view_place(session, settings)
    except PayoutPipelineError as fault:
        yield _fault("clickhouse", fault)
    embedded = "; embedded, a run creates it empty" if session.embedded else ""
    for variable, text, level in (
        ("PAYOUT_MARKET_RESOLUTIONS_TABLE", settings.market_resolutions_table, "problem"),
        ("PAYOUT_PNL_VIEW", settings.pnl_view, "warning"),
    ):
        if not text:
            yield Finding("clickhouse", "ok", f"{variable} is empty: no P&L check")
            continue
        found = inspect_table(session, QualifiedName.parse(text))
        if found is None and embedded:
            yield Finding("clickhouse", "ok", f"{text} does not exist{embedded}")
        elif found is None:
            repair = f"Create it, GRANT SELECT on it, or set {variable}"
            tail = " to nothing for no P&L check." if variable == "PAYOUT_PNL_VIEW" else "."
            severity: Level = "problem" if level == "problem" else "warning"
            yield Finding("clickhouse", severity, f"{text} does not exist or may not be seen", repair + tail)
        elif variable == "PAYOUT_MARKET_RESOLUTIONS_TABLE" and found.id_column is None:
            yield Finding(
                "clickhouse",
                "problem",
                f"{text} has neither {' nor '.join(ID_COLUMNS)} (it has {', '.join(found.columns)})",
                f"Set {variable} to the table of known resolutions.",
            )
        else:
            column = f", ids in {found.id_column}" if found.id_column else ""
            yield Finding("clickhouse", "ok", f"{text} is there ({found.engine}{column})")


def _rights(session: Session, settings: Settings) -> Iterator[Finding]:
    """What a run does on the server, asked for without doing it (``CHECK GRANT``, ClickHouse 24.11 and later)."""
    target, view = QualifiedName.parse(settings.target_table), QualifiedName.parse(settings.truth_view)
    wanted = (
        (f"SELECT, INSERT, ALTER DELETE ON {target.sql}", "load"),
        (f"SELECT ON {QualifiedName.parse(settings.market_resolutions_table).sql}", "read the known resolutions"),
        (f"SELECT, CREATE VIEW, DROP VIEW ON {view.sql}", "rebuild the view"),
    )
    missing: list[str] = []
    for grant, _purpose in wanted:
        try:
            allowed: Any = session.scalar(f"CHECK GRANT {grant}", doing=f"asking for the right to {_purpose}")
        except PayoutPipelineError:
            yield Finding("clickhouse", "ok", "rights cannot be asked for on this version; a run finds out")
            return
        if not int(allowed):
            missing.append(grant)
    if missing:
        yield Finding(
            "clickhouse",
            "problem",
            f"the user lacks {len(missing)} of {len(wanted)} sets of rights",
            "; ".join(f"GRANT {grant}" for grant in missing) + f" TO {settings.clickhouse_user or 'default'}.",
        )
    else:
        yield Finding("clickhouse", "ok", "rights: load, delete superseded rows, rebuild the view")


def print_findings(findings: list[Finding], console: Console) -> None:
    """One line each, what to do below it where something is wrong, and the sum of it."""
    from rich.markup import escape

    marks = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "problem": "[bold red]PROBLEM[/]"}
    for finding in findings:
        console.print(f"{marks[finding.level]}  {finding.subject:<11} {escape(finding.text)}")
        if finding.repair:
            console.print(f"{'':22}[dim]→ {escape(finding.repair)}[/]")
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        console.print(f"[bold red]{counted(problems, 'problem')} would stop a run.[/]")
    else:
        console.print("[bold green]A run can start:[/] payout-pipeline backfill")
