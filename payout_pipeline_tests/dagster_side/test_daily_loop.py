"""The desk's week: ids from a query, the nightly refresh, what changed, and word when it fails.

Markets are traded, resolve on different days, one resolution is corrected, one night the subgraph is down and one night nothing
is missing. Each night is ``dagster job execute -j daily_refresh`` in a process of its own, on the embedded ClickHouse.
"""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from payout_pipeline.definitions import build_defs
from payout_pipeline.locks import FileLocks
from payout_pipeline.settings import load_settings
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.dagster_ui import ASSETS, dagster_dev
from payout_pipeline_tests.running import Place

VIEW = "cascadian_clean.vw_resolutions_truth"
QUERY = f"""-- What was traded and has no vector yet, and what the desk wants to have looked at again.
SELECT DISTINCT condition_id FROM default.trades
WHERE lower(right(condition_id, 64)) NOT IN (SELECT condition_id FROM {VIEW}) OR condition_id IN (SELECT * FROM default.recheck)
"""
ALERTS = (
    "import dagster as dg; from payout_pipeline.alert_sensors import alerts_now\n"
    "from payout_pipeline.settings import load_settings\n"
    "with dg.DagsterInstance.get() as instance: alerts_now(load_settings(), instance)\n"
)
REFRESH = [
    sys.executable,
    "-m",
    "dagster",
    "job",
    "execute",
    "-m",
    "payout_pipeline.definitions",
    "-j",
    "daily_refresh",
]
Vector = tuple[int, ...]
WON, LOST = (1, 0), (0, 1)


@pytest.fixture
def messages() -> Iterator[tuple[str, list[str]]]:
    """The address of a webhook, and the texts that it was sent."""
    texts: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/services/T0/B0/{'s' * 24}", texts
    server.shutdown()
    server.server_close()


class Desk:
    """A desk's tables, its markets as the chain knows them, and its nights."""

    def __init__(self, directory: Path, webhook: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.markets: dict[str, Vector | None] = {}
        self.conditions = directory / "conditions.csv"
        (directory / "ids.sql").write_text(QUERY)
        self.place = Place(
            directory,
            f"http://127.0.0.1:{self.port}/subgraphs/name/positions",
            None,
            {
                "CONDITION_IDS_QUERY": "ids.sql",
                "PAYOUT_WORKERS": "2",
                "PAYOUT_MIN_UNIQUE_CONDITIONS": "0",
                "PAYOUT_ALERT_WEBHOOK": webhook,
                "GOLDSKY_MAX_RETRIES": "0",
                "GOLDSKY_OUTAGE_BUDGET_SECONDS": "0",
            },
        )
        empty = "SELECT '' AS condition_id WHERE 0"
        for statement in (
            "CREATE TABLE default.trades (condition_id String, shares Float64) ENGINE = MergeTree ORDER BY condition_id",
            "CREATE TABLE default.recheck (condition_id String) ENGINE = MergeTree ORDER BY condition_id",
            "CREATE DATABASE IF NOT EXISTS cascadian_clean",
            f"CREATE VIEW {VIEW} AS {empty}",
        ):
            self.place.execute(statement)

    def trade(self, *numbers: int) -> None:
        """Markets are traded; half of them are written with 0x and in upper case."""
        ids = [f"{number:064x}" for number in numbers]
        self.markets.update(dict.fromkeys(ids))
        written = [f"0x{i.upper()}" if number % 2 else i for number, i in zip(numbers, ids, strict=True)]
        self.place.execute("INSERT INTO default.trades VALUES " + ", ".join(f"('{i}', 1)" for i in written))

    def resolve(self, vector: Vector, *numbers: int) -> None:
        self.markets.update({f"{number:064x}": vector for number in numbers})

    def night(self, *, subgraph: bool = True) -> subprocess.CompletedProcess[str]:
        """The refresh of one night, and the look of the sensor after it."""
        with self.chain() if subgraph else nullcontext():
            done = self.place._run(REFRESH, 200, {})
        looked = self.place._run([sys.executable, "-c", ALERTS], 60, {})
        assert looked.returncode == 0, looked.stdout
        return done

    def chain(self) -> SubgraphServer:
        """A subgraph of what the chain knows at this moment."""
        with self.conditions.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["condition_id", "payouts", "resolved_at"])
            for condition_id, vector in self.markets.items():
                shown = "" if vector is None else json.dumps([str(n / sum(vector)) for n in vector])
                writer.writerow([condition_id, shown, "" if vector is None else "2025-10-01T12:00:00Z"])
        return SubgraphServer(SubgraphConfig(conditions=self.conditions, port=self.port))

    def view(self) -> dict[str, Vector]:
        rows = self.place.query(f"SELECT condition_id, payout_numerators AS n FROM {VIEW}")
        assert len({row["condition_id"] for row in rows}) == len(rows)
        return {row["condition_id"]: tuple(int(n) for n in row["n"]) for row in rows}

    def truth(self) -> dict[str, Vector]:
        return {condition_id: vector for condition_id, vector in self.markets.items() if vector is not None}

    def report(self) -> tuple[int, dict[str, Any]]:
        code, text = self.place.json("report")
        return code, json.loads(text)


def young_desk(directory: Path, webhook: str) -> Desk:
    """Ten markets, three of them resolved."""
    desk = Desk(directory, webhook)
    desk.trade(*range(1, 11))
    desk.resolve(WON, 1, 2, 3)
    return desk


def _changes(report: dict[str, Any]) -> dict[str, int]:
    return {kind: count for kind, count in (report["changes"] or {}).items() if isinstance(count, int) and count}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_week_at_the_desk(tmp_path: Path, messages: tuple[str, list[str]]) -> None:
    webhook, texts = messages
    desk = Desk(tmp_path, webhook)

    # Monday: the first list.
    desk.trade(*range(1, 31))
    desk.resolve(WON, *range(1, 11))
    done = desk.night()
    assert done.returncode == 0, done.stdout
    code, report = desk.report()
    assert (code, desk.view(), _changes(report)) == (0, desk.truth(), {})

    # Tuesday: more is traded, and more is resolved.
    desk.trade(*range(31, 41))
    desk.resolve(LOST, *range(11, 16), 31, 32)
    assert desk.night().returncode == 0
    code, report = desk.report()
    assert (code, desk.view(), _changes(report)) == (0, desk.truth(), {"newly_resolved": 7})

    # Wednesday: a resolution is corrected; the desk wants it looked at again.
    desk.resolve(LOST, 3)
    desk.resolve((1, 1), 16)
    desk.place.execute(
        "INSERT INTO default.recheck SELECT condition_id FROM default.trades WHERE condition_id LIKE '%03'"
    )
    assert desk.night().returncode == 0
    code, report = desk.report()
    assert (code, desk.view(), _changes(report)) == (0, desk.truth(), {"newly_resolved": 1, "vector_changed": 1})
    assert report["changes"]["first"][0] == {
        "condition_id": f"{3:064x}", "change": "vector_changed", "before": "[1, 0]/1", "after": "[0, 1]/1",
    }  # fmt: skip
    warned = [c for c in report["checks"] if c["check"] == "vectors_unchanged" and c["state"] == "failed"]
    assert len(warned) == 1
    assert f"{3:064x}" in warned[0]["description"]
    assert texts == []

    # Thursday: the subgraph is down. The view is as it was, and one message says so.
    before = desk.view()
    desk.resolve(WON, *range(17, 31), *range(33, 41))
    done = desk.night(subgraph=False)
    assert done.returncode != 0
    code, report = desk.report()
    assert (code, desk.view()) == (1, before)
    assert len(texts) == 1, texts
    assert "worker_1_of_2" in texts[0]
    assert "worker_2_of_2" in texts[0]
    assert webhook not in texts[0]

    # Friday: it is back, and one message says so. Everything is resolved now.
    desk.place.execute("TRUNCATE TABLE default.recheck")
    assert desk.night().returncode == 0
    code, report = desk.report()
    assert (code, desk.view(), _changes(report)) == (0, desk.truth(), {"newly_resolved": 22})
    assert len(texts) == 2, texts
    assert "WELL AGAIN" in texts[1]

    # Saturday: nothing is missing, which is a success that says so.
    assert desk.night().returncode == 0
    code, report = desk.report()
    assert (code, desk.view(), report["input"]["ids"]) == (0, desk.truth(), 0)
    bar = next(check for check in report["checks"] if check["check"] == "unique_conditions")
    assert (bar["state"], bar["description"]) == ("nothing to check", "The input has no ids: no condition is missing.")

    # Sunday: new markets.
    desk.trade(*range(41, 46))
    desk.resolve(WON, 41, 42)
    assert desk.night().returncode == 0
    code, report = desk.report()
    assert (code, desk.view(), _changes(report)) == (0, desk.truth(), {"newly_resolved": 2})
    assert len(texts) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_refresh_waits_for_a_backfill_by_hand_and_keeps_its_list(
    tmp_path: Path, messages: tuple[str, list[str]]
) -> None:
    desk = young_desk(tmp_path, messages[0])
    assert desk.night().returncode == 0
    desk.trade(11)
    desk.resolve(WON, 4, 11)
    with desk.chain(), ExitStack() as by_hand:
        lock = FileLocks(tmp_path / "runtime" / "locks").hold(
            "worker_2_of_2", purpose="goldsky_payouts", run_id="by-hand"
        )
        by_hand.enter_context(lock)
        with subprocess.Popen(
            REFRESH,
            cwd=tmp_path,
            env=desk.place.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as refresh:
            said = ""
            for line in refresh.stdout or ():
                said += line
                if "waiting for worker_2_of_2" in line:
                    by_hand.close()
    assert refresh.returncode == 0, said
    assert "the list of 10 ids is kept: worker_2_of_2 is held by" in said
    assert "waiting for worker_2_of_2, held by process" in said
    assert "by-hand" in said
    assert f"{4:064x}" in desk.view()
    assert f"{11:064x}" not in desk.view()

    assert desk.night().returncode == 0
    assert desk.view() == desk.truth()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_backfill_command_takes_the_list_and_a_backfill_that_is_continued_keeps_it(
    tmp_path: Path, messages: tuple[str, list[str]]
) -> None:
    desk = young_desk(tmp_path, messages[0])
    failed = desk.place.run("backfill")  # no subgraph
    assert failed.returncode == 1
    assert "The view was not rebuilt" in failed.stdout
    desk.trade(11)
    desk.resolve(WON, 11)
    with desk.chain():
        continued = desk.place.run("backfill")
        assert (continued.returncode, sorted(desk.view())) == (0, [f"{n:064x}" for n in (1, 2, 3)]), continued.stdout
        assert "Continuing the backfill" in continued.stdout

        anew = desk.place.run("backfill")
    assert (anew.returncode, desk.view()) == (0, desk.truth()), anew.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_backfill_from_the_ui_takes_the_list_first(tmp_path: Path, messages: tuple[str, list[str]]) -> None:
    desk = young_desk(tmp_path, messages[0])
    with (
        desk.chain(),
        dagster_dev(tmp_path, desk.place.environment) as ui,
    ):
        backfill = ui.backfill(["worker_1_of_2", "worker_2_of_2"], ["condition_ids", *ASSETS])
        assert ui.ended(backfill) == "COMPLETED_SUCCESS", ui.log.read_text()[-4000:]
        assert sorted(len(run.assets) for run in ui.runs(backfill)) == [1, 1, 2, 2]
    assert desk.view() == desk.truth()
    assert desk.report()[0] == 0


def test_what_starts_by_itself_is_off_and_the_refresh_runs_everything_in_order() -> None:
    defs = build_defs(load_settings({"CONDITION_IDS_QUERY": "SELECT 1"}))
    schedules = {schedule.name: schedule for schedule in defs.schedules or ()}
    assert all(s.default_status is dg.DefaultScheduleStatus.STOPPED for s in schedules.values())  # type: ignore[union-attr]
    assert schedules["daily_refresh"].job_name == "daily_refresh"
    nodes = defs.resolve_job_def("daily_refresh").graph.node_names()
    assert sorted(nodes) == ["list_of_ids", "view_and_checks", "worker"]
    assert "condition_ids" in {key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys}


def test_a_file_of_ids_is_no_asset_that_runs() -> None:
    defs = build_defs(load_settings({}))
    assert "condition_ids" not in {key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys}
