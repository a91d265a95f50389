"""``payout-pipeline demo`` as a newcomer runs it: nothing configured, nothing activated, and then what it says to try."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from payout_pipeline_tests.running import REPOSITORY

COMMAND = Path(sys.executable).with_name("payout-pipeline")


def shell(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A line as typed into a shell that knows nothing of the environment."""
    prefixes = ("PAYOUT_", "GOLDSKY_", "CLICKHOUSE_", "CONDITION_", "DAGSTER_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=directory,
        env={**environment, "PATH": "/usr/bin:/bin", "DAGSTER_HOME": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )


def test_the_demo_ends_in_a_success_and_the_line_that_it_prints_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())

    done = shell(f"{shlex.quote(str(COMMAND))} demo --ids 3000 --rate-limit 0 --latency 0", tmp_path)

    assert done.returncode == 0, done.stdout
    assert "SUCCESS" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if " sql " in line and line.startswith("  PAYOUT_RUNTIME_DIR")]
    tried = shell(line, tmp_path)
    assert tried.returncode == 0, tried.stdout
    assert {"goldsky-api", "market_resolutions_final"} <= set(tried.stdout.split()), tried.stdout
