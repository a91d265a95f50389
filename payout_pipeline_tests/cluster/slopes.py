"""The slopes behind docs/scaling.md: what each step costs for 10^5 ids, and what it holds in memory.

``python -m payout_pipeline_tests.cluster.slopes [SIZE …]`` measures each step at each size in a process of its own and
prints one line of JSON each: CPU seconds (user and system, the figure to go by on a shared machine), wall seconds, and the
peak of the resident memory. ``--step NAME SIZE`` is one of them.
"""

from __future__ import annotations

import asyncio
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SIZES = (100_000, 300_000, 1_000_000)
BATCH = 1000
#: (payouts as answered, numerators, denominator) and how many of a hundred ids have it.
VECTORS = (
    (["1", "0"], (1, 0), 1, 37),
    (["0", "1"], (0, 1), 1, 35),
    (["0.5", "0.5"], (1, 1), 2, 2),
    (["0.54", "0.46"], (27, 23), 50, 1),
)
RESOLVED_PERCENT = sum(share for *_, share in VECTORS)


class Meter:
    """Costs between two moments of this process, by name."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.figures[f"{name}_cpu_s"] = round(time.process_time() - cpu, 3)
        self.figures[f"{name}_wall_s"] = round(time.perf_counter() - wall, 3)


def peak_mib() -> int:
    """The largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def write_ids(path: Path, count: int) -> None:
    """``count`` ids, one a line; equal for equal counts."""
    dice = random.Random(count)
    with path.open("w") as file:
        for _ in range(0, count, 10_000):
            block = dice.randbytes(32 * 10_000).hex()
            file.write("".join(block[at : at + 64] + "\n" for at in range(0, len(block), 64)))


def ids(meter: Meter, directory: Path, count: int) -> None:
    """Reading, normalising and deduplicating the input file."""
    from payout_pipeline.ids.id_list import read_ids

    write_ids(directory / "ids.txt", count)
    meter.figures["before_mib"] = peak_mib()
    with meter("read"):
        found = read_ids(directory / "ids.txt")
    assert found.count == count


def filled_ledger(meter: Meter, directory: Path, count: int) -> Any:
    """A finished ledger of ``count`` ids in one chunk, as a worker leaves it."""
    from payout_pipeline.ids.chunks import chunk_of
    from payout_pipeline.ids.id_list import read_ids
    from payout_pipeline.ledger import Ledger, Pin, SnapshotInfo, start_run
    from payout_pipeline.payouts import parse_payouts
    from payout_pipeline_tests.ledger_fixtures import make_rows

    write_ids(directory / "ids.txt", count)
    ledger = Ledger(directory / "runtime", "worker_1_of_1")
    chunk = chunk_of(read_ids(directory / "ids.txt"), 1, 1)
    pin = Pin(block_number=1, deployment="Qm", kind="number", head_number=251)
    plan = SnapshotInfo.planned(
        ledger.partition, chunk, endpoint="http://x", batch_size=BATCH, schema_kind="payouts", pin=pin
    )
    running = start_run(ledger, plan, chunk)
    answers = [json.dumps(vector) for vector, _, _, share in VECTORS for _ in range(share)]
    now = datetime.now(timezone.utc)
    with meter("ledger"):
        for index in running.missing_batches:
            asked = running.ids_to_ask(index)
            raw = {identity: answers[at % 100] for at, identity in enumerate(asked) if at % 100 < RESOLVED_PERCENT}
            found = {identity: parse_payouts(json.loads(text)) for identity, text in raw.items()}
            running.write_batch(index, make_rows(asked, found, raw=raw, block_number=1, fetched_at=now))
    with meter("finish"):
        info = running.finish()
    assert info.counts["resolved"] == count * RESOLVED_PERCENT // 100
    meter.figures["ledger_bytes"] = sum(path.stat().st_size for path in (directory / "runtime").rglob("*.parquet"))
    with meter("verify"):
        assert ledger.verify(chunk).closes
    return ledger


def fetch(meter: Meter, directory: Path, count: int) -> None:
    """Asking for the ids and checking the answers, in this process; the subgraph is another one."""
    from payout_pipeline.goldsky.client import GoldskyClient
    from payout_pipeline.settings import load_settings

    write_ids(directory / "ids.txt", count)
    listed = (directory / "ids.txt").read_text().split()
    answers = [json.dumps(vector) for vector, _, _, share in VECTORS for _ in range(share)]
    with (directory / "conditions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("condition_id", "payouts", "resolved_at"))
        for at, identity in enumerate(listed):
            if at % 100 < RESOLVED_PERCENT:
                writer.writerow((identity, answers[at % 100], "2025-01-01T00:00:00Z"))
    program = [str(Path(sys.executable).parent / "payout-pipeline"), "subgraph", "--conditions"]
    server = subprocess.Popen([*program, str(directory / "conditions.csv")], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    endpoint = server.stdout.readline().removeprefix("listening on ").strip()
    settings = load_settings(
        {
            "GOLDSKY_ENDPOINT": endpoint,
            "GOLDSKY_RATE_LIMIT": "100000/1s",
            "PAYOUT_RUNTIME_DIR": str(directory / "runtime"),
        }
    )
    (directory / "runtime").mkdir()

    async def ask() -> None:
        batches = iter([listed[at : at + BATCH] for at in range(0, count, BATCH)])
        async with GoldskyClient.from_settings(settings) as client:
            pin = client.make_pin(await client.probe(), 0)

            async def lane() -> None:
                for batch in batches:
                    answer = await client.fetch_batch(batch, pin)
                    assert len(answer.found) == BATCH * RESOLVED_PERCENT // 100

            with meter("fetch"):
                await asyncio.gather(*(lane() for _ in range(8)))

    try:
        asyncio.run(ask())
    finally:
        server.terminate()
        server.wait(20)


def ledger(meter: Meter, directory: Path, count: int) -> None:
    """Converting the answers, writing a durable file for each batch, finishing and verifying."""
    filled_ledger(meter, directory, count)


def load(meter: Meter, directory: Path, count: int) -> None:
    """Loading a ledger into the embedded ClickHouse, loading it again, and reading through the view."""
    from payout_pipeline.settings import load_settings
    from payout_pipeline.warehouse.client import Warehouse
    from payout_pipeline.warehouse.identifiers import QualifiedName
    from payout_pipeline.warehouse.load import load_rows
    from payout_pipeline.warehouse.target import ensure_sources, ensure_target
    from payout_pipeline.warehouse.view import rebuild_view

    filled = filled_ledger(Meter(), directory, count)
    settings = load_settings({"PAYOUT_RUNTIME_DIR": str(directory / "runtime"), "PAYOUT_PNL_VIEW": ""})
    meter.figures["before_mib"] = peak_mib()
    with Warehouse(settings, comment="slopes").session("slopes") as session:
        target = ensure_target(session, QualifiedName.parse(settings.target_table), None)
        ensure_sources(session, settings)
        with meter("load"):
            first = load_rows(session, target, filled.read(), log=lambda _line: None)
        assert first.written == count * RESOLVED_PERCENT // 100
        with meter("load_again"):
            assert load_rows(session, target, filled.read(), log=lambda _line: None).written == 0
        with meter("view"):
            rebuild_view(session, settings)
        with meter("read_view"):
            view = QualifiedName.parse(settings.truth_view).sql
            rows = session.rows(
                f"SELECT count() AS r, uniqExact(condition_id) AS c FROM {view}", doing="reading the view"
            )
        assert list(rows[0].values()) == [first.written, first.written]


def admissions(meter: Meter, directory: Path, count: int) -> None:
    """Places in the shared window, one after another, with each keeper that is installed."""
    from payout_pipeline.goldsky.pacing import Pacer
    from payout_pipeline.settings import RateLimit
    from payout_pipeline_tests.cluster.services import missing_parts, postgres_server, redis_server

    count = min(count, 2000)
    limit = RateLimit(requests=1_000_000, seconds=10)

    async def take(url: str | None) -> None:
        pacer = Pacer.open(
            "http://x", limit, runtime_dir=directory, limiter_url=url, request_timeout=60, max_retry_after=60
        )
        for _ in range(count):
            async with pacer.slot():
                pass

    with ExitStack() as stack:
        keepers: dict[str, str | None] = {"file": None}
        if not missing_parts():
            keepers["redis"] = stack.enter_context(redis_server(directory / "redis"))[1]
            urls = stack.enter_context(postgres_server(directory / "postgres", ["limiter"]))[1]
            keepers["postgresql"] = urls["limiter"]
        for name, url in keepers.items():
            asyncio.run(take(url))  # opens and warms up
            with meter(f"{name}_{count}"):
                asyncio.run(take(url))


STEPS: dict[str, Callable[[Meter, Path, int], None]] = {
    "ids": ids,
    "fetch": fetch,
    "ledger": ledger,
    "load": load,
    "admissions": admissions,
}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--step"]:
        step, size = arguments[1], int(arguments[2])
        with tempfile.TemporaryDirectory() as directory:
            meter = Meter()
            STEPS[step](meter, Path(directory), size)
        print(json.dumps({"step": step, "size": size, **meter.figures, "peak_mib": peak_mib()}), flush=True)
        return
    sizes = [int(size) for size in arguments] or list(SIZES)
    for step in STEPS:
        for size in sizes[:1] if step == "admissions" else sizes:
            command = [sys.executable, "-m", "payout_pipeline_tests.cluster.slopes", "--step", step, str(size)]
            subprocess.run(command, check=True, timeout=1200)


if __name__ == "__main__":
    main(sys.argv[1:])
