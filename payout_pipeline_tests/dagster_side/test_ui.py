"""The UI in a real browser: a backfill launched by clicking, its progress, and the checks afterwards.

Run by ``make test-ui``, which installs Debian's chromium and, into an environment of its own, Playwright.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from payout_pipeline.checks.catalogue import FETCHED, VIEW, checks_of
from payout_pipeline.settings import VARIABLES, load_settings
from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.running import REPOSITORY

DRIVER = REPOSITORY / "payout_pipeline_tests" / "ui" / "drive.py"
BROWSER = Path("/usr/bin/chromium")
PYTHON = Path(os.environ.get("UI_PYTHON", REPOSITORY / ".venv-ui" / "bin" / "python"))
IDS = 20_000
MINUTES = 8.0

pytestmark = [pytest.mark.ui, pytest.mark.timeout(60 * 15)]


@contextmanager
def dagster_dev(home: Path, environment: dict[str, str]) -> Iterator[str]:
    """``dagster dev`` on a free port, from its first answer to its end with all of its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "dagster"), "dev", "--host", "127.0.0.1", "--port", str(port)]
    command += ["-w", "workspace.yaml"]
    with (home / "dagster.log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 180
            while True:
                try:
                    with urlopen(f"{url}/server_info", timeout=5):
                        break
                except OSError:
                    assert process.poll() is None, (home / "dagster.log").read_text()[-3000:]
                    assert time.monotonic() < deadline, (home / "dagster.log").read_text()[-3000:]
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(10)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What the browser saw, after everything was clicked once."""
    if not BROWSER.exists() or not PYTHON.exists():
        pytest.skip(f"{BROWSER} or {PYTHON} is missing; run `make test-ui`")
    place = tmp_path_factory.mktemp("ui")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, place / name)
    data = generate(IDS, 7, place / "data")
    with SubgraphServer(SubgraphConfig(data.conditions, rate_limit="50/10s", latency=0.3, advancing=True)) as subgraph:
        own = {
            "DAGSTER_HOME": str(place),
            "PAYOUT_RUNTIME_DIR": str(place / "runtime"),
            "CONDITION_IDS_FILE": str(data.ids),
            "GOLDSKY_ENDPOINT": subgraph.url,
        }
        foreign = {*VARIABLES.values(), "DAGSTER_HOME", "DAGSTER_MODULE_NAME"}
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        environment = {**kept, **own}
        screenshots = Path(os.environ.get("UI_SCREENSHOTS", place / "screenshots"))
        with dagster_dev(place, environment) as url:
            driven = subprocess.run(
                [str(PYTHON), str(DRIVER), url, "--profile", str(place / "profile"), "--screenshots", str(screenshots),
                 "--minutes", str(MINUTES)],
                capture_output=True, text=True, timeout=60 * (MINUTES + 5), check=False,
            )  # fmt: skip
        assert driven.returncode == 0, driven.stderr[-3000:] + (place / "dagster.log").read_text()[-3000:]
        found: dict[str, object] = json.loads(driven.stdout)
        report = subprocess.run(
            [str(Path(sys.executable).parent / "payout-pipeline"), "report", "--json"],
            cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        found["report_code"], found["report"] = report.returncode, json.loads(report.stdout)
        found["resolved"] = data.resolved
        found["most_in_a_window"] = subgraph.log.max_in_window(10.0)
        found["screenshots"] = sorted(screenshots.glob("*.png"))
        yield found


def test_the_lineage_shows_the_input_the_users_tables_and_the_view(seen: dict[str, object]) -> None:
    # The UI shortens names in the middle.
    for name in ("condition_ids", "goldsky_payouts", "market_reso", "resolution…_ingest", "vw_resoluti", "pnl_settled"):
        assert name in str(seen["lineage"]), name


def test_a_backfill_of_all_partitions_is_launched_by_clicking_and_succeeds(seen: dict[str, object]) -> None:
    assert "4 partitions" in str(seen["dialog"])
    states, progress = seen["states"], seen["progress"]
    assert isinstance(states, list)
    assert isinstance(progress, list)
    assert states[-1] == "Succeeded"
    assert progress[-1] == 100
    assert progress == sorted(progress)


def test_the_checks_page_shows_every_check_of_the_view_as_succeeded(seen: dict[str, object]) -> None:
    page = str(seen["view_checks"])
    settings = load_settings({})
    names = [info.name for info in checks_of(VIEW, settings)]
    assert f"Checks ({len(names)})" in page
    lines = page.splitlines()
    for name in names:
        assert "Succeeded" in lines[lines.index(name) : lines.index(name) + 3], name
    assert f"{seen['resolved']:,} of {IDS:,} conditions of the input have a payout vector" in page
    fetched = str(seen["fetch_checks"])
    assert all(info.name in fetched for info in checks_of(FETCHED, settings))


def test_every_partition_is_materialized_in_the_ui(seen: dict[str, object]) -> None:
    page = str(seen["partitions"])
    assert "Materialized (4)" in page
    assert "Failed (0)" in page


def test_the_report_of_the_command_line_says_the_same_as_the_ui(seen: dict[str, object]) -> None:
    report = seen["report"]
    assert isinstance(report, dict)
    assert seen["report_code"] == 0, report["headline"]
    assert {check["state"] for check in report["checks"]} <= {"passed", "nothing to check"}
    assert len(report["checks"]) == 36


def test_the_browser_run_stayed_within_the_rate_limit_and_left_three_pictures(seen: dict[str, object]) -> None:
    assert isinstance(seen["most_in_a_window"], int)
    assert seen["most_in_a_window"] <= 50
    pictures = seen["screenshots"]
    assert isinstance(pictures, list)
    assert [path.name for path in pictures] == ["ui-backfill.png", "ui-checks.png", "ui-lineage.png"]
    assert all(2_000 < path.stat().st_size < 300_000 for path in pictures)
