"""What a user feels, side by side in one run: ``make bench`` (at most 8 minutes on two cores).

Prints one table and writes ``benchmarks/results.json``. After every run the raw rows of the table and of the view are
compared with the truth; a run that stored anything else gets no figure, only "wrong".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import measure, ui
from benchmarks.place import ROOT, Place, Run, Subgraph

IDS = 170_448
MANY = 2_000_000
RESULTS = Path(__file__).resolve().parent / "results.json"
BACKFILL = ("payout-pipeline", "backfill")
ASSETS = ("goldsky_payouts", "resolutions_external_ingest", "vw_resolutions_truth")
PARTITIONS = [f"worker_{number}_of_4" for number in range(1, 5)]
_FETCH = """
import logging
from payout_pipeline.fetch import fetch_worker
from payout_pipeline.ingest import remember_prepared
from payout_pipeline.settings import load_settings
remember_prepared(load_settings())  # as a backfill does, whose workers find the target table prepared
fetch_worker(load_settings(), 1, log=logging.getLogger("bench"))
"""
_MIB = 2**20


@dataclass
class Figure:
    """One line of the table; ``bar`` is the most that ``value`` may be, None where there is none."""

    name: str
    value: float
    unit: str = "s"
    bar: float | None = None
    note: str = ""
    wrong: str = ""

    @property
    def verdict(self) -> str:
        """``wrong`` beats every figure."""
        if self.wrong:
            return f"WRONG: {self.wrong}"
        return "" if self.bar is None else "ok" if self.value <= self.bar else "MISSED"


def _whole(name: str, runs: Sequence[Run], bar: float | None = None) -> Figure:
    walls = [run.wall for run in runs]
    note = f"median of {', '.join(f'{wall:.1f}' for wall in walls)}" if len(walls) > 1 else ""
    wrong = "; ".join({run.wrong for run in runs if run.wrong})
    return Figure(name, statistics.median(walls), bar=bar, note=note, wrong=wrong)


def _requests(name: str, run: Run, count: float | None, span: float | None) -> list[Figure]:
    seen = run.requests
    return [
        Figure(f"{name}: requests", seen.count, "", count, f"at most {seen.most_in_window} in a window", run.wrong),
        Figure(f"{name}: answers of 429", seen.refused, "", 0, "", run.wrong),
        Figure(f"{name}: first to last request", seen.span, bar=span, wrong=run.wrong),
    ]


def limited(place: Place, server: Subgraph) -> list[Figure]:
    """The whole command under the limit, with ten batches a request and with one."""
    ten = [place.run(server, BACKFILL) for _ in range(2)]
    place.finished = ten[-1].home
    one = place.run(server, BACKFILL, extra={"GOLDSKY_BATCHES_PER_REQUEST": "1"})
    return [
        _whole("backfill, 10 batches a request", ten, 14),
        *_requests("backfill, 10 batches a request", max(ten, key=lambda run: run.requests.count), 48, 4),
        Figure("backfill, 10 batches a request: largest process", max(r.measured.peak_rss for r in ten) / _MIB, "MiB"),
        _whole("backfill, 1 batch a request", [one]),
        *_requests("backfill, 1 batch a request", one, None, None),
    ]


def dlt(place: Place, server: Subgraph) -> list[Figure]:
    """The same ids by dlt, into Parquet files and nowhere else."""
    environment = ROOT / ".venv-dlt"
    if not (environment / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "dlt[parquet]>=1.31,<2"]
        subprocess.run(pip, check=True)
    home = place.fresh()
    server.forget_after_a_window()
    measured = measure.run(
        [
            str(environment / "bin" / "python"),
            "-m",
            "benchmarks.dlt_pipeline",
            server.url,
            str(place.data.ids),
            str(home),
        ],
        env={**place.environment(home, server, {}), "RUNTIME__DLTHUB_TELEMETRY": "false"},
        cwd=ROOT,
        log=home / "dlt.log",
    )
    refused = server.requests().refused
    return [
        Figure(
            "dlt, the same ids, limit and latency", measured.wall, note=f"exit {measured.exit_code}, {refused} of 429"
        )
    ]


def one_worker(place: Place, server: Subgraph) -> list[Figure]:
    """One partition by Dagster's own command."""
    select = ",".join(ASSETS[:2])
    command = ("dagster", "asset", "materialize", "-m", "payout_pipeline.definitions", "--select", select)
    return [
        _whole(
            "one worker, dagster asset materialize",
            [place.run(server, (*command, "--partition", PARTITIONS[0]), compare=False)],
        )
    ]


def resume(place: Place, server: Subgraph) -> list[Figure]:
    """``kill -9`` when half of the requests were answered, then the same command again."""
    killed = place.run(server, BACKFILL, kill_after=12)
    again = place.run(server, BACKFILL, home=killed.home)
    return [
        _whole("resume after kill -9 at half", [again]),
        Figure(
            "resume: requests",
            again.requests.count,
            "",
            note=f"{killed.requests.count} before the kill",
            wrong=again.wrong,
        ),
    ]


def refresh(place: Place, server: Subgraph) -> list[Figure]:
    """A second backfill that asks only for what is not resolved yet."""
    home = place.finished or place.run(server, BACKFILL).home
    again = place.run(server, (*BACKFILL, "--refetch", "unresolved"), home=home)
    return [_whole("refetch: unresolved", [again]), *_requests("refetch: unresolved", again, 48, None)]


def from_the_ui(place: Place, server: Subgraph) -> list[Figure]:
    """A partition backfill launched through the webserver; its daemon looks every 30 s."""
    home = place.fresh()
    server.forget_after_a_window()
    environment = place.environment(home, server, {})
    with ui.dagster_dev(
        Path(sys.executable), "payout_pipeline.definitions", environment, home, home / "ui.log"
    ) as port:
        seconds, status = ui.backfill(port, ASSETS, PARTITIONS, 300)
    wrong = place.compare(home, server) if "SUCCESS" in status else status
    return [Figure("all workers and the view from the UI", seconds, wrong=wrong)]


def unlimited(place: Place, server: Subgraph) -> list[Figure]:
    """No limit and no latency: what the work itself takes."""
    return [_whole("backfill, no limit, no latency", [place.run(server, BACKFILL)])]


def many(place: Place, server: Subgraph) -> list[Figure]:
    """Two million ids under the limit; the requests of one worker alone show its memory without the engine's."""
    run = place.run(server, BACKFILL, timeout=900)
    fetch = place.run(server, ("python", "-c", _FETCH), compare=False)
    return [
        _whole("2 million ids", [run]),
        *_requests("2 million ids", run, None, 60),
        Figure("2 million ids: largest process", run.measured.peak_rss / _MIB, "MiB"),
        Figure(
            "2 million ids: a worker until its ledger is finished",
            fetch.measured.peak_rss / _MIB,
            "MiB",
            400,
            wrong=fetch.wrong,
        ),
    ]


PARTS: dict[str, Callable[[Place, Subgraph], list[Figure]]] = {
    "limited": limited,
    "dlt": dlt,
    "one_worker": one_worker,
    "resume": resume,
    "refresh": refresh,
    "ui": from_the_ui,
    "unlimited": unlimited,
    "many": many,
}


def _line(figure: Figure) -> str:
    bar = "" if figure.bar is None else f"<= {figure.bar:g}"
    return f"{figure.name:<52} {figure.value:>9,.1f} {figure.unit:<4} {bar:<8} {figure.verdict:<8} {figure.note}"


def _machine() -> dict[str, str | int]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"commit": commit.stdout.strip(), "python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}


def main() -> None:
    """Measure, print, write. Exit 1 where a run stored wrong rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma (default: all)")
    parser.add_argument("--ids", type=int, default=IDS)
    chosen = parser.parse_args()
    names = chosen.only.split(",")
    figures: list[Figure] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="payout-bench-") as temporary:
        place = Place(Path(temporary) / "usual", chosen.ids)
        for limit in (True, False):
            wanted = [name for name in PARTS if name in names and (name == "unlimited") is not limit and name != "many"]
            if wanted:
                with place.subgraph(limited=limit) as server:
                    figures += [figure for name in wanted for figure in _measured(PARTS[name], place, server)]
        if "many" in names:
            large = Place(Path(temporary) / "many", MANY)
            with large.subgraph(limited=True) as server:
                figures += _measured(many, large, server)
    seconds = time.monotonic() - began
    sys.stdout.write(f"{len(figures)} figures in {seconds:.0f} s\n")
    if names == list(PARTS):
        document = {"machine": _machine(), "seconds": round(seconds), "figures": [asdict(figure) for figure in figures]}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(figure.wrong for figure in figures))


def _measured(part: Callable[[Place, Subgraph], list[Figure]], place: Place, server: Subgraph) -> list[Figure]:
    found = part(place, server)
    for figure in found:
        sys.stdout.write(_line(figure) + "\n")
        sys.stdout.flush()
    return found


if __name__ == "__main__":
    main()
