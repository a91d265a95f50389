"""All figures side by side: ``python -m benchmarks.run [--quick] [--only TEXT]`` (``make bench``).

Prints one table and writes ``benchmarks/results.json``. Every figure is set beside its yardstick, measured in the same
minutes on the same machine. After every run the stored rows are compared with the truth; one that differs gets no
time, only "wrong". What each figure means, and how to repeat one, is in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import data
from benchmarks.harness import Harness, Run, Server, Work

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results.json"
FLOOR = 30.0  # 172 to 200 requests at 50 in any 10 s: three full windows have to pass before the last one opens

_MILLIONS = 2_000_000
_FEWER = 3  # samples where a run takes half a minute, or is nowhere near its bar


@dataclass
class Figure:
    """One line of the table. ``value`` and ``bar`` are in ``unit``; ``samples`` are the single values, in order."""

    name: str
    compared: str
    value: float | None
    bar: float | None
    unit: str
    yardstick: str = ""
    samples: Sequence[float] = ()
    note: str = ""
    wrong: str = ""

    @property
    def verdict(self) -> str:
        """``wrong`` beats every time."""
        if self.wrong:
            return "wrong"
        if self.value is None:
            return "not run"
        if self.bar is None:
            return "–"
        return "ok" if self.value <= self.bar else "MISSED"


class Bench:
    """The regimes. Each method measures one and appends its figures."""

    def __init__(self, harness: Harness, samples: int) -> None:
        self.h = harness
        self.samples = samples
        self.figures: list[Figure] = []
        self.meanwhile: list[Callable[[Bench], None]] = []
        self._trivial: list[float] = []
        self._full: list[Run] = []
        self._unlimited: Run | None = None

    def add(self, figure: Figure) -> None:
        """Keep a figure and say it at once."""
        self.figures.append(figure)
        sys.stdout.write("  " + _line(figure) + "\n")
        sys.stdout.flush()

    def trivial(self) -> float:
        """Seconds of the trivial asset; measured before each run of R2."""
        seconds = self.h.trivial()
        self._trivial.append(seconds)
        return seconds

    def usual_trivial(self) -> float:
        """The median of what was measured of it, where a regime does not pair it with each run."""
        return _median(self._trivial or [self.trivial() for _ in range(self.samples)])

    # --- regimes ------------------------------------------------------------------------------------------------

    def limited(self) -> None:
        """R2: 50 requests per 10 s enforced, 300 ms latency: the whole command."""
        runs: list[Run] = []
        trivials: list[float] = []
        for _ in range(self.samples):
            trivials.append(self.trivial())
            self.h.server.configure(latency=0.3, requests=50, seconds=10)
            runs.append(self.h.backfill("limited", {"GOLDSKY_RATE_LIMIT": "50/10s"}, keep=not runs))
        self.h.settle()
        self._full = runs
        wrong = _wrong(runs)
        spans = [run.span for run in runs]
        over = [run.measured.wall - run.span - trivial for run, trivial in zip(runs, trivials, strict=True)]
        refused = sum(run.refused for run in runs)
        most = max(run.most for run in runs)
        requests = _median(run.requests for run in runs)
        self.add(
            Figure(
                "R2 first to last request",
                "the floor of 30 s",
                _median(spans) / FLOOR,
                1.10,
                "×",
                f"{_median(spans):.1f} s",
                spans,
                f"{requests:.0f} requests, at most {most} in 10 s",
                wrong,
            )
        )
        self.add(Figure("R2 answers of 429", "none", refused, 0, "", "", [run.refused for run in runs], "", wrong))
        self.add(
            Figure(
                "R2 whole command over its requests",
                "a trivial Dagster run",
                _median(over),
                6,
                "s",
                f"{_walls(runs):.1f} s; trivial {_median(trivials):.1f} s",
                over,
                "",
                wrong,
            )
        )

    def latency(self) -> None:
        """R1: no limit, 150 ± 50 ms: fetching, eight in flight on both sides."""
        runs: list[Run] = []
        bares: list[float] = []
        for _ in range(self.samples):
            self.h.server.configure(latency=0.15, jitter=0.05)
            self.h.bare_loop()
            bares.append(self.h.server.report().span)
            self.h.server.configure(latency=0.15, jitter=0.05)
            runs.append(self.h.backfill("latency", {"PAYOUT_WORKERS": "1"}))
        self.h.settle()
        ratios = [run.batch_span / bare for run, bare in zip(runs, bares, strict=True)]
        self.add(
            Figure(
                "R1 fetching, one worker of 8 connections",
                "bare loop, 8 connections",
                _median(ratios),
                1.15,
                "×",
                f"{_median(r.batch_span for r in runs):.2f} s / {_median(bares):.2f} s",
                ratios,
                "",
                _wrong(runs),
            )
        )

    def unlimited(self) -> None:
        """R0: no limit, no latency: the work itself, with Dagster's five runs, and the whole command."""
        works: list[Work] = []
        bares: list[dict[str, float]] = []
        for _ in range(self.samples):
            self.h.server.configure()
            bares.append(self.h.bare_loop())
            self.h.server.configure()
            works.append(self.h.work())
        self.h.server.configure()
        run = self._unlimited = self.h.backfill("unlimited", {}, keep=True, pss=True)
        self.h.settle()
        wrong_work = "; ".join(sorted({work.wrong for work in works if work.wrong}))
        for what, bar, unit in (("wall", 2.0, 0), ("cpu", 2.5, 1)):
            ours, bare = [getattr(work, what) for work in works], [b[what] for b in bares]
            parts = {name: _median(work.parts[name][unit] for work in works) for name in works[0].parts}
            self.add(
                Figure(
                    f"R0 {'CPU' if unit else 'wall'}: fetch + ledger + load + view + checks",
                    "bare loop",
                    _median(o / b for o, b in zip(ours, bare, strict=True)),
                    bar,
                    "×",
                    f"{_median(ours):.2f} s / {_median(bare):.2f} s",
                    ours,
                    ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()),
                    wrong_work,
                )
            )
        trivial = self.usual_trivial()
        self.add(
            Figure(
                "R0 with Dagster: first step's start to last run's end",
                "none",
                run.work_wall,
                None,
                "s",
                f"CPU {run.work_cpu:.2f} s",
                (),
                "five runs in five processes",
                run.wrong,
            )
        )
        self.add(
            Figure(
                "R0 whole command",
                "trivial asset",
                run.measured.wall - trivial,
                20,
                "s",
                f"{run.measured.wall:.1f} s − {trivial:.1f} s",
                (),
                "the bar of the first version: at most 20 s more than the trivial asset",
                run.wrong,
            )
        )

    def memory(self) -> None:
        """Peak memory, embedded and with ClickHouse as a server, and from 170 k ids to 2 M."""
        self.h.server.configure()
        embedded = self._unlimited or self.h.backfill("memory", {}, pss=True)
        self.h.settle()
        self.add(_memory_figure("Peak memory, embedded ClickHouse", embedded, 900))
        if not self.h.has_front:
            self.add(Figure("Peak memory, ClickHouse as a server", "", None, 450, "MB"))
            return
        with self.h.clickhouse() as url:
            self.h.server.configure()
            small = self.h.backfill("server", {"CLICKHOUSE_HOST": url, "PAYOUT_PNL_VIEW": ""}, pss=True, url=url)
            self.h.settle()
        self.add(_memory_figure("Peak memory, ClickHouse as a server", small, 450))
        millions = self.h.write_ids(_MILLIONS)
        with self.h.prepared(millions) as server, self.h.clickhouse() as url:
            large = self.h.backfill(
                "millions",
                {"CLICKHOUSE_HOST": url, "PAYOUT_PNL_VIEW": ""},
                pss=True,
                url=url,
                ids=millions,
                server=server,
                timeout=600,
            )
            self.h.settle()
        wrong = _wrong([small, large])
        pss = [run.measured.peak_pss / 2**20 for run in (small, large)]
        rss = [run.measured.peak_rss / 2**20 for run in (small, large)]
        for what, (before, after) in (("largest process", rss), ("PSS of all", pss)):
            self.add(
                Figure(
                    f"Memory at 2 M ids, server mode, {what}",
                    "itself at 170 k",
                    after - before,
                    50,
                    "MB",
                    f"{after:.0f} MB − {before:.0f} MB",
                    (),
                    "",
                    wrong,
                )
            )
        slow = (large.work_wall / _MILLIONS) / (small.work_wall / data.IDS)
        self.add(
            Figure(
                "R0 time per id at 2 M ids",
                "at 170 k",
                slow,
                1.10,
                "×",
                f"{large.work_wall:.1f} s / {small.work_wall:.2f} s",
                (),
                "",
                wrong,
            )
        )

    def resume(self) -> None:
        """``kill -9`` when half of the batches were answered, then the same command again."""
        runs: list[Run] = []
        ratios: list[float] = []
        over: list[float] = []
        for _ in range(min(_FEWER, self.samples)):
            self.h.server.configure(latency=0.3, requests=50, seconds=10)
            killed, again = self.h.killed_and_resumed({"GOLDSKY_RATE_LIMIT": "50/10s"}, at=86)
            runs.append(again)
            over.append(again.batches - (172 - killed.answered_by_end))
            full = _median(run.measured.wall for run in self._full) if self._full else 0.0
            if full:
                ratios.append(again.measured.wall / full)
        self.h.settle()
        self.add(
            Figure(
                "Resume: batches asked beyond the missing ones",
                "those in flight (4 × 8)",
                _median(over),
                32,
                "",
                f"{_median(r.batches for r in runs):.0f} asked",
                over,
                "",
                _wrong(runs),
            )
        )
        self.add(
            Figure(
                "Resume after kill -9 at half: wall",
                "a full run",
                _median(ratios) if ratios else None,
                0.6,
                "×",
                f"{_walls(runs):.1f} s",
                ratios,
                "",
                _wrong(runs),
            )
        )

    def refresh(self) -> None:
        """``refetch: unresolved`` when three quarters are resolved."""
        with self.h.prepared(self.h.ids) as server:
            full = self.h.backfill("refresh", {}, keep=True, server=server)
            self.h.settle()
            server.configure()
            arguments = ("--refetch", "unresolved")
            again = self.h.backfill("refresh", {}, arguments=arguments, runtime=full.runtime, server=server)
            self.h.settle()
        self.add(
            Figure(
                "Refresh (refetch: unresolved): requests",
                "a full run",
                again.requests / full.requests,
                0.27,
                "×",
                f"{again.requests} / {full.requests}",
                (),
                f"{again.batches} / {full.batches} of them batches",
                _wrong([full, again]),
            )
        )

    def one_worker(self) -> None:
        """``dagster asset materialize`` of one partition at the limit, with 300 ms latency."""
        runs: list[Run] = []
        over: list[float] = []
        trivial = self.usual_trivial()
        for _ in range(self.samples):
            self.h.server.configure(latency=0.3, requests=50, seconds=10)
            run = self.h.materialize("worker_1_of_4", {"GOLDSKY_RATE_LIMIT": "50/10s"})
            runs.append(run)
            over.append(run.measured.wall - run.span - trivial)
        self.h.settle()
        self.add(
            Figure(
                "One worker, dagster asset materialize",
                "trivial asset + its request span",
                _median(over),
                4,
                "s",
                f"{_walls(runs):.1f} s; trivial {trivial:.1f} s, requests {_median(r.span for r in runs):.1f} s",
                over,
                "",
                _wrong(runs),
            )
        )

    def from_the_ui(self) -> None:
        """All workers launched through the webserver's GraphQL; the daemon waits 30 s between its rounds, so once.

        Its yardstick waits at the same time, and ``meanwhile`` is measured: counts of requests, and times with room.
        """
        self.h.server.configure(latency=0.3, requests=50, seconds=10)
        with ThreadPoolExecutor(2) as waiting:
            yardstick = waiting.submit(self.h.ui_noop)
            ours = waiting.submit(self.h.ui_backfill, {"GOLDSKY_RATE_LIMIT": "50/10s"})
            for regime in self.meanwhile:
                regime(self)
            (noop, noop_status), (run, status) = yardstick.result(), ours.result()
        self.h.settle()
        wrong = run.wrong or (
            "" if "SUCCESS" in status and "SUCCESS" in noop_status else f"{status}, no-op {noop_status}"
        )
        self.add(
            Figure(
                "All workers from the UI",
                "no-op partitions from the UI + 30 s",
                run.measured.wall - noop - FLOOR,
                15,
                "s",
                f"{run.measured.wall:.1f} s; no-op {noop:.1f} s",
                (),
                f"{run.refused} answers of 429",
                wrong,
            )
        )

    def commands(self) -> None:
        """report, status and doctor on a full-size runtime directory, beside the import of Dagster."""
        runtime = self.h.kept
        if runtime is None:
            with self.h.prepared(self.h.ids) as server:
                self.h.backfill("commands", {}, keep=True, server=server)
                self.h.settle()
            runtime = self.h.kept
        imports = [self.h.seconds([str(self.h.python), "-c", "import dagster"]) for _ in range(self.samples)]
        base = _median(imports)
        for command in ("report", "status", "doctor"):
            times, wrong = [], ""
            for _ in range(min(_FEWER, self.samples)):
                run = self.h.command([command], runtime)
                times.append(run.wall - base)
                if run.exit_code != 0:
                    wrong = f"exit code {run.exit_code}: {run.output.strip()[-300:]}"
            self.add(
                Figure(
                    f"payout-pipeline {command}",
                    "import dagster",
                    _median(times),
                    3,
                    "s",
                    f"{_median(times) + base:.2f} s − {base:.2f} s",
                    times,
                    "",
                    wrong,
                )
            )

    def dlt(self) -> None:
        """The same ids from the same server by a dlt pipeline; it writes Parquet and nothing else."""
        self.h.server.configure()
        self._dlt("no limit", self.h.server)
        self.h.server.configure()
        ours = self._unlimited or self.h.backfill("beside-dlt", {}, pss=True)
        self.h.settle()
        self.add(
            Figure(
                "payout-pipeline backfill, no limit",
                "the same",
                ours.measured.wall,
                None,
                "s",
                f"CPU {ours.measured.cpu:.1f} s, {ours.measured.peak_rss / 2**20:.0f} MB",
                (),
                f"{data.IDS:,} ids accounted for, in Parquet and in ClickHouse, verified, with the report",
                ours.wrong,
            )
        )

    def dlt_limited(self) -> None:
        """dlt at the limit, with 300 ms latency."""
        with self.h.prepared(self.h.ids) as server:
            server.configure(latency=0.3, requests=50, seconds=10)
            self._dlt("50/10 s, 300 ms", server)

    def _dlt(self, name: str, server: Server) -> None:
        if not self.h.make_dlt():
            self.add(Figure(f"dlt, {name}", "", None, None, "s", note="dlt could not be installed"))
            return
        measured, rows = self.h.dlt(f"dlt-{len(self.figures)}", server)
        refused = server.report().refused
        self.add(
            Figure(
                f"dlt to Parquet, {name}",
                "wall of the whole command",
                measured.wall,
                None,
                "s",
                f"CPU {measured.cpu:.1f} s, {measured.peak_rss / 2**20:.0f} MB",
                (),
                f"{rows}{f', {refused} answers of 429' if refused else ''}; exit code {measured.exit_code}",
            )
        )

    def ids_of_memory(self) -> None:
        """The two million ids and their truth, which ``memory`` needs; no figure."""
        self.h.write_ids(_MILLIONS)


REGIMES: dict[str, Callable[[Bench], None]] = {
    "limited": Bench.limited,
    "one_worker": Bench.one_worker,
    "latency": Bench.latency,
    "unlimited": Bench.unlimited,
    "resume": Bench.resume,
    "dlt": Bench.dlt,
    "ui": Bench.from_the_ui,
    "commands": Bench.commands,
    "refresh": Bench.refresh,
    "dlt_limited": Bench.dlt_limited,
    "memory": Bench.memory,
}
#: Measured while the UI's daemon waits, where both are chosen: no time among them is near its bar.
_BESIDE_THE_UI = ("commands", "refresh", "dlt_limited")


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def _walls(runs: list[Run]) -> float:
    return _median(run.measured.wall for run in runs)


def _wrong(runs: list[Run]) -> str:
    return "; ".join(sorted({run.wrong for run in runs if run.wrong}))


def _memory_figure(name: str, run: Run, bar: float) -> Figure:
    measured = run.measured
    return Figure(
        name,
        "largest process",
        measured.peak_rss / 2**20,
        bar,
        "MB",
        f"PSS of all {measured.peak_pss / 2**20:.0f} MB",
        (),
        " ".join(Path(word).name for word in measured.largest.split()[-2:]),
        run.wrong,
    )


def _line(figure: Figure) -> str:
    value = "" if figure.value is None or figure.wrong else f"{figure.value:.2f} {figure.unit}".strip()
    bar = "" if figure.bar is None else f"≤ {figure.bar:g} {figure.unit}".strip()
    more = figure.wrong or "; ".join(part for part in (figure.yardstick, figure.note) if part)
    return f"{figure.name:<50} {value:>11}  {bar:<10} {figure.verdict:<8} {figure.compared:<36} {more}"


def _markdown(document: Mapping[str, Any]) -> str:
    """The table of docs/performance.md, and the line before it."""
    lines = ["| figure | measured | bar | | compared with | values |", "|---|---|---|---|---|---|"]
    for row in document["figures"]:
        value = "" if row["value"] is None or row["wrong"] else f"{row['value']:.2f} {row['unit']}".strip()
        bar = "" if row["bar"] is None else f"≤ {row['bar']:g} {row['unit']}".strip()
        more = row["wrong"] or "; ".join(part for part in (row["yardstick"], row["note"]) if part)
        verdict = row["verdict"].replace("MISSED", "**missed**")
        lines.append(f"| {row['name']} | {value} | {bar} | {verdict} | {row['compared']} | {more} |")
    machine = document["machine"]
    said = (
        f"Median of {document['samples']} (resume, and what is nowhere near its bar: {_FEWER}; where a run says it for sure: 1), "
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, commit {machine['commit'][:10]}, "
        f"load before it {machine['load_before']:.1f}, {document['seconds']} s in all."
    )
    return "\n".join([said, "", *lines]) + "\n"


def _machine() -> dict[str, Any]:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": head.stdout.strip(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
    }


def _said(name: str) -> Callable[[Bench], None]:
    """The regime, with its name before its figures and its seconds behind them."""

    def regime(bench: Bench) -> None:
        sys.stdout.write(f"{name}: {(REGIMES[name].__doc__ or '').strip().splitlines()[0]}\n")
        sys.stdout.flush()
        began = time.monotonic()
        REGIMES[name](bench)
        sys.stdout.write(f"  ({name}: {time.monotonic() - began:.0f} s)\n")

    return regime


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one sample of everything instead of the median of five")
    parser.add_argument("--only", default="", help=f"regimes, by comma: {', '.join(REGIMES)}")
    parser.add_argument("--directory", type=Path, help="where runs happen (a temporary directory, removed afterwards)")
    parser.add_argument(
        "--markdown", action="store_true", help="print the figures of results.json for the documentation"
    )
    options = parser.parse_args()
    if options.markdown:
        sys.stdout.write(_markdown(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    chosen = [name for name in options.only.split(",") if name] or list(REGIMES)
    unknown = sorted(set(chosen) - set(REGIMES))
    if unknown:
        parser.error(f"no such regime: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is ended
    place = Path(options.directory or tempfile.mkdtemp(prefix="payout-bench-")).absolute()
    place.mkdir(parents=True, exist_ok=True)
    started, machine = time.monotonic(), _machine()
    samples = 1 if options.quick else 5
    try:
        with Harness(ROOT, place) as harness:
            bench = Bench(harness, samples)
            beside = [name for name in _BESIDE_THE_UI if name in chosen] if "ui" in chosen else []
            bench.meanwhile = [*map(_said, beside), *([Bench.ids_of_memory] if "memory" in chosen else [])]
            for name in chosen:
                if name not in beside:
                    _said(name)(bench)
    finally:
        if options.directory is None:
            shutil.rmtree(place, ignore_errors=True)
    seconds = time.monotonic() - started
    sys.stdout.write(f"\n{'':<50} {'measured':>11}  {'bar':<10} {'':<8} {'compared with':<36}\n")
    for figure in bench.figures:
        sys.stdout.write(_line(figure) + "\n")
    sys.stdout.write(f"\n{len(bench.figures)} figures, {samples} sample(s), {seconds:.0f} s.\n")
    figures: list[Mapping[str, Any]] = [{**asdict(figure), "verdict": figure.verdict} for figure in bench.figures]
    if not options.only:
        document = {"machine": machine, "samples": samples, "seconds": round(seconds), "figures": figures}
        RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sys.stdout.write(f"Written to {RESULTS.relative_to(ROOT)}.\n")
    sys.exit(1 if any(figure.wrong for figure in bench.figures) else 0)


if __name__ == "__main__":
    main()
