"""The pipeline as its users run it: commands in processes of their own, results read as a user reads them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

from payout_pipeline_tests.chaos.processes import Nursery

REPOSITORY = Path(__file__).resolve().parent.parent
Vectors = dict[str, tuple[tuple[int, ...], int]]


def dagster_home(directory: Path) -> Path:
    """Dagster's instance in ``directory``, initialised as `make setup` does it; its own, so that no other test's runs count."""
    home = directory / "home"
    if not home.is_dir():
        home.mkdir()
        shutil.copy(REPOSITORY / "dagster.yaml", home)
        script = "import dagster as dg; dg.DagsterInstance.get().dispose()"
        subprocess.run([sys.executable, "-c", script], env={**os.environ, "DAGSTER_HOME": str(home)}, check=True)
    return home


@dataclass
class Place:
    """A working directory with an environment of its own."""

    directory: Path
    endpoint: str
    ids_file: Path | None
    extra: dict[str, str] = field(default_factory=dict)
    nursery: Nursery | None = None
    """Starts the commands of the pipeline without paying their imports each time."""

    @property
    def runtime(self) -> Path:
        return self.directory / "runtime"

    @property
    def home(self) -> Path:
        """Dagster's instance, initialised as `make setup` does it."""
        return dagster_home(self.directory)

    @property
    def environment(self) -> dict[str, str]:
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PAYOUT_", "GOLDSKY_", "CLICKHOUSE_", "DAGSTER_", "CONDITION_"))
        }
        return {
            **env,
            "DAGSTER_HOME": str(self.home),
            **({"CONDITION_IDS_FILE": str(self.ids_file)} if self.ids_file is not None else {}),
            "PAYOUT_RUNTIME_DIR": str(self.runtime),
            "GOLDSKY_ENDPOINT": self.endpoint,
            "GOLDSKY_RATE_LIMIT": "100000/1s",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}",
            **self.extra,
        }

    def run(self, *arguments: str, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        """``payout-pipeline`` with these arguments, to its end."""
        return self._command(arguments, timeout, extra)

    def json(self, *arguments: str, **extra: str) -> tuple[int, str]:
        """Exit code and standard output of a command with ``--json``; what it logs goes elsewhere."""
        done = self._command([*arguments, "--json"], 120, extra, apart=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode, done.stdout

    def _sql(self, statement: str) -> str:
        """What a statement puts out. chDB complains on the error output where a machine has no cgroups."""
        done = self._command(["sql", statement, "--format", "JSONEachRow"], 120, {}, apart=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """``payout-pipeline`` in the background, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "payout_pipeline.cli", *arguments],
            cwd=self.directory,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def materialize(
        self, select: str, partition: str | None = None, timeout: float = 120, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """``dagster asset materialize``."""
        command = [sys.executable, "-m", "dagster", "asset", "materialize"]
        command += ["-m", "payout_pipeline.definitions", "--select", select]
        command += ["--partition", partition] if partition else []
        return self._run(command, timeout, extra)

    def _command(
        self, arguments: Sequence[str], timeout: float, extra: Mapping[str, str], *, apart: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """A command of the pipeline; ``apart``: its error output is not mixed into the other."""
        if self.nursery is None:
            command = [sys.executable, "-m", "payout_pipeline.cli", *arguments]
            return self._run(command, timeout, extra, stderr=subprocess.PIPE if apart else subprocess.STDOUT)
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place) / "out", Path(place) / "err"
            environment = {**self.environment, **extra}
            running = self.nursery.start(arguments, environment, self.directory, out, err=err if apart else None)
            code = running.wait(timeout)
            return subprocess.CompletedProcess(arguments, code, running.text(), err.read_text() if apart else "")

    def _run(
        self, command: list[str], timeout: float, extra: Mapping[str, str], *, stderr: int = subprocess.STDOUT
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=timeout,
            check=False,
        )

    def execute(self, statement: str) -> None:
        """A statement without a result, as somebody else would run it."""
        done = self.run("sql", statement)
        assert done.returncode == 0, done.stdout

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Rows of ``payout-pipeline sql``."""
        return [json.loads(line) for line in self._sql(statement).splitlines() if line]

    def stored(self, table: str = "default.resolutions_external_ingest") -> Counter[tuple[str, tuple[int, ...], int]]:
        """Every raw row of the table, duplicates counted."""
        rows = self.query(
            f"SELECT condition_id, payout_numerators AS n, toString(payout_denominator) AS d FROM {table}"
        )
        return Counter((row["condition_id"], tuple(int(n) for n in row["n"]), int(row["d"])) for row in rows)

    def ledger_counts(self) -> Counter[str]:
        """Ids of all finished ledgers by status; fails where an id occurs twice."""
        import pandas as pd

        counts: Counter[str] = Counter()
        seen: set[str] = set()
        for partition in sorted((self.runtime / "goldsky_payouts").iterdir()):
            frame = pd.read_parquet(partition)
            ids = set(frame["condition_id"])
            assert len(ids) == len(frame), f"{partition.name} has an id twice"
            assert not ids & seen, f"{partition.name} has ids of another worker"
            seen |= ids
            counts.update(frame["status"])
        return counts


def truth_of(conditions: Path) -> Vectors:
    """The exact vectors of a CSV of ``condition_id,payouts,resolved_at``; payouts are exact decimals there."""
    vectors: Vectors = {}
    with conditions.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["payouts"]:
                shares = [Fraction(text) for text in json.loads(row["payouts"])]
                denominator = lcm(*(share.denominator for share in shares))
                vectors[row["condition_id"].lower().removeprefix("0x")] = (
                    tuple(int(share * denominator) for share in shares),
                    denominator,
                )
    return vectors


def as_counter(vectors: Vectors, ids: Iterable[str] | None = None) -> Counter[tuple[str, tuple[int, ...], int]]:
    """The truth in the form of :meth:`Place.stored`."""
    chosen = vectors if ids is None else {i: vectors[i] for i in ids if i in vectors}
    return Counter({(condition_id, *vector): 1 for condition_id, vector in chosen.items()})


def prepare_pnl(place: Place, conditions: Path) -> None:
    """The user's tables with trades and a P&L view, as the demo has them; in a process of its own, as chDB is one a process."""
    script = (
        "import sys; from pathlib import Path; from payout_pipeline.settings import load_settings\n"
        "from payout_pipeline.warehouse.client import Warehouse; from payout_pipeline.warehouse.demo import create_demo_pnl\n"
        "settings = load_settings()\n"
        "with Warehouse(settings).session('test') as session:\n"
        "    create_demo_pnl(session, settings, Path(sys.argv[1]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(conditions)], env=place.environment, cwd=place.directory, check=True
    )
