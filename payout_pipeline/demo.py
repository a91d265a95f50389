"""``payout-pipeline demo``: the whole backfill on this machine, without a network and without any configuration.

Generated ids and outcomes, a local subgraph that enforces Goldsky's rate limit in a process of its own, embedded
ClickHouse with a small P&L, the same assets through Dagster as everywhere, and the report.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

import click

from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.settings import VARIABLES, Settings, load_settings

_READY_SECONDS = 60.0
_NO_LIMIT = ("0", "")
_UNLIMITED = "1000000/1s"


def run_demo(*, ids: int, seed: int, rate_limit: str, latency: float, directory: Path | None) -> int:
    """Run everything and return the exit code of the backfill. Starts from nothing: an earlier demo is removed."""
    from payout_pipeline.commands.output import console as make_console

    console = make_console()
    place = (directory or Path("runtime") / "demo").absolute()
    _make_room(place)
    started = time.monotonic()
    from payout_pipeline.subgraph.generate import generate

    console.print(f"Demo in {place}: generating {ids:,} condition ids …")
    data = generate(ids, seed, place / "data")
    with _subgraph(data.conditions, rate_limit, latency) as endpoint:
        settings = _environment(place, data.ids, endpoint, rate_limit)
        console.print(f"Local subgraph at {endpoint} (limit {rate_limit}, latency {latency:g} s).")
        _in_child(_prepare_pnl, settings, data.conditions)
        from payout_pipeline.backfill import run_backfill

        code = run_backfill(settings)
        _requests_seen(endpoint, console)
    console.print(f"Demo finished after {time.monotonic() - started:.1f} s with exit code {code}.")
    # Not by the console, which wraps: these lines are to be pasted.
    click.echo(
        "Look around:\n"  # noqa: S608 - printed for the user, not run
        f"  PAYOUT_RUNTIME_DIR={settings.runtime_dir} {_as_typed()} sql "
        '"SELECT source, count() FROM cascadian_clean.vw_resolutions_truth GROUP BY source"\n'
        f"  DAGSTER_HOME={place / 'home'} PAYOUT_RUNTIME_DIR={settings.runtime_dir} "
        f"CONDITION_IDS_FILE={settings.condition_ids_file} make ui"
    )
    return code


def _as_typed() -> str:
    """This command as a shell finds it: `make demo` needs no activated environment, so its name alone may not do."""
    if shutil.which("payout-pipeline"):
        return "payout-pipeline"
    return os.path.relpath(Path(sys.executable).with_name("payout-pipeline"))


def _make_room(place: Path) -> None:
    """Remove an earlier demo, and nothing that is not one."""
    marker = place / ".payout-pipeline-demo"
    if place.exists() and any(place.iterdir()):
        if not marker.exists():
            raise PayoutPipelineError(
                f"{place} is not empty and no earlier demo: choose another place with --directory, or empty it yourself."
            )
        shutil.rmtree(place)
    place.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _environment(place: Path, ids: Path, endpoint: str, rate_limit: str) -> Settings:
    """Set every variable of the pipeline for this process and its children, so that nothing of the user's leaks in."""
    values = {
        "condition_ids_file": str(ids),
        "runtime_dir": str(place / "runtime"),
        "goldsky_endpoint": endpoint,
        # What the local subgraph allows, the pipeline uses.
        "goldsky_rate_limit": _UNLIMITED if rate_limit in _NO_LIMIT else rate_limit,
    }
    for field, variable in VARIABLES.items():
        os.environ[variable] = values.get(field) or _default_text(field)
    # An instance of its own: the demo's runs are none of the user's, whose results would be outdated by them.
    home = place / "home"
    home.mkdir()
    shutil.copy(Path(__file__).resolve().parent.parent / "dagster.yaml", home)
    os.environ["DAGSTER_HOME"] = str(home)
    return load_settings(dict(os.environ))


def _default_text(field: str) -> str:
    default = Settings.model_fields[field].default
    if default is None or default is False:
        return ""
    if isinstance(default, Fraction):
        return f"{default.numerator}/{default.denominator}"
    return str(default)


@contextmanager
def _subgraph(conditions: Path, rate_limit: str, latency: float) -> Iterator[str]:
    """The local subgraph in a process of its own, from its first line of output until it is terminated."""
    command = [sys.executable, "-m", "payout_pipeline.cli", "subgraph", "--conditions", str(conditions), "--port", "0"]
    command += ["--latency", str(latency)]
    if rate_limit not in _NO_LIMIT:
        command += ["--rate-limit", rate_limit]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        killer = threading.Timer(_READY_SECONDS, process.kill)
        killer.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            killer.cancel()
            if "http://" not in line:
                raise PayoutPipelineError(
                    f"The local subgraph did not start within {_READY_SECONDS:g} s: {line.strip()!r}"
                )
            yield line[line.index("http://") :].strip()
        finally:
            killer.cancel()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _in_child(function: Any, *arguments: Any) -> None:
    """Run ``function`` in a child process: this one must not load the embedded engine before it forks its workers."""
    from payout_pipeline.worker_pool import processes

    process = processes.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise PayoutPipelineError(
            f"{function.__name__.lstrip('_')} ended with exit code {process.exitcode}; see above."
        )


def _prepare_pnl(settings: Settings, conditions: Path) -> None:
    """Tables as the user has them, trades and a P&L view, so that the demo shows the settled figure move."""
    from payout_pipeline.warehouse.client import Warehouse
    from payout_pipeline.warehouse.demo import create_demo_pnl

    with Warehouse(settings).session("demo") as session:
        create_demo_pnl(session, settings, conditions)


def _requests_seen(endpoint: str, console: Any) -> None:
    """Print what the subgraph itself counted."""
    parts = urlsplit(endpoint)
    control = urlunsplit((parts.scheme, parts.netloc, "/_control/log", "", ""))
    with urlopen(control, timeout=30) as response:  # noqa: S310 - the address is our own, on loopback
        log = json.load(response)
    requests = log["requests"]
    if not requests:
        return
    first, last = requests[0]["arrived"], requests[-1]["arrived"]
    refused = sum(1 for request in requests if request["status"] == 429)
    console.print(
        f"The subgraph counted {len(requests)} requests in {last - first:.1f} s from first to last, {refused} answers of 429, "
        f"at most {log['max_in_window']} in any window of {log['window_seconds']:g} s."
    )
