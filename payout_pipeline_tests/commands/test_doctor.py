"""The doctor finds what would stop a run, asks Goldsky at most three times, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from payout_pipeline.commands.doctor import doctor_command
from payout_pipeline.doctor import MAX_REQUESTS, Finding, examine
from payout_pipeline.goldsky.pacing import open_store, shared_status
from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.subgraph.chain import Chain
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.report_fixtures import (  # noqa: F401 - fixtures
    House,
    condition,
    finished,
    house,
    runtime,
)
from payout_pipeline_tests.warehouse_fixtures import World


@pytest.fixture(scope="module")
def subgraph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SubgraphServer]:
    known = tmp_path_factory.mktemp("subgraph") / "known.csv"
    rows = [f'{condition(number)},"[""1"",""0""]",\n' for number in range(1_000)]
    known.write_text("condition_id,payouts,resolved_at\n" + "".join(rows))
    with SubgraphServer(SubgraphConfig(known)) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, subgraph: SubgraphServer) -> Iterator[Settings]:
    subgraph.faults.clear()
    subgraph.log.clear()
    (tmp_path / "ids.txt").write_text("".join(f"{condition(number)}\n" for number in range(10)))
    yield load_settings(
        {},
        condition_ids_file=tmp_path / "ids.txt",
        runtime_dir=str(tmp_path / "runtime"),
        goldsky_endpoint=subgraph.url,
        goldsky_timeout_seconds=2,
        workers=2,
    )
    subgraph.faults.clear()


def about(findings: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


def problems(settings: Settings) -> list[Finding]:
    return [finding for finding in examine(settings) if finding.level == "problem"]


def tree(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_fresh_machine_can_start_and_nothing_is_left_behind(
    settings: Settings, subgraph: SubgraphServer, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    findings = examine(settings)
    assert tree(tmp_path) == before
    assert {finding.level for finding in findings} == {"ok"}
    text = "\n".join(finding.text for finding in findings)
    assert "10 condition ids; 2 workers with up to 5 each" in text
    assert "conditions have payouts" in text
    assert "(250 behind the head) is kept" in text
    assert "10 of 10 ids spread over the list are known there" in text
    assert "embedded: the database and its tables will be made by the first run" in text
    assert len(subgraph.log.entries) == 2 <= MAX_REQUESTS


def test_a_webhook_is_mentioned_and_nothing_is_sent_to_it(settings: Settings) -> None:
    assert not about(examine(settings), "alerts")
    url = SecretStr("http://127.0.0.1:9/services/canary")  # where nobody listens
    (finding,) = about(examine(settings.model_copy(update={"alert_webhook": url})), "alerts")
    assert finding.level == "ok"
    assert "the sensor `alerts`" in finding.text
    assert "canary" not in finding.text


def test_a_finished_backfill_is_seen_and_left_as_it_is(finished: House, subgraph: SubgraphServer) -> None:  # noqa: F811
    subgraph.log.clear()
    settings = finished.settings.model_copy(update={"goldsky_endpoint": subgraph.url})
    runtime_dir = Path(settings.runtime_dir)
    ours = [runtime_dir / name for name in ("goldsky_payouts", "vw_resolutions_truth")]
    before = [tree(directory) for directory in ours]
    findings = examine(settings)
    assert [tree(directory) for directory in ours] == before
    assert not [finding for finding in findings if finding.level == "problem"]
    text = "\n".join(finding.text for finding in about(findings, "clickhouse"))
    assert f"target {settings.target_table} (ReplacingMergeTree) can hold the vectors" in text
    assert "market_resolutions_final is there" in text


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("status", {"status": 404, "text": "no such subgraph"}, "404"),
        ("body", {"form": "html"}, "HTML"),
        ("body", {"form": "message"}, "Not found"),
        ("errors", {"message": "Type `Query` has no field `conditions`"}, "conditions"),
        ("status", {"status": 503, "text": "down"}, "503"),
        ("hang", {}, "timeout"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_one_problem(
    settings: Settings, subgraph: SubgraphServer, fault: Any, options: dict[str, Any], said: str
) -> None:
    subgraph.faults.add(fault, **options)
    found = problems(settings)
    assert [finding.subject for finding in found] == ["goldsky"]
    assert said.lower() in found[0].text.lower().replace("time-out", "timeout").replace("timed out", "timeout")
    assert found[0].repair
    assert len(subgraph.log.entries) <= MAX_REQUESTS


def test_a_429_is_a_warning_and_is_not_asked_again(settings: Settings, subgraph: SubgraphServer) -> None:
    subgraph.faults.add("status", status=429, text="slow down", retry_after="30")
    findings = about(examine(settings), "goldsky")
    assert [finding.level for finding in findings] == ["warning"]
    assert "429" in findings[0].text
    assert len(subgraph.log.entries) == 1


def test_a_stale_head_and_indexing_errors_are_warnings(settings: Settings, subgraph: SubgraphServer) -> None:
    subgraph.faults.add("stale_head", seconds=3 * 86_400)
    warning = next(finding for finding in examine(settings) if finding.level == "warning")
    assert "3 d 0 h old" in warning.text
    subgraph.faults.clear()
    subgraph.faults.add("indexing_errors")
    warning = next(finding for finding in examine(settings) if finding.level == "warning")
    assert "indexing errors" in warning.text


def test_a_sample_spread_over_the_list_finds_ids_that_are_no_condition_ids(
    settings: Settings, subgraph: SubgraphServer
) -> None:
    """The first ids are known; a tenth of the list, somewhere behind them, are question ids."""
    ids = [condition(number) for number in range(900)]
    settings.condition_ids_file.write_text("\n".join([*ids[:600], *(f"{n:064x}" for n in range(100)), *ids[600:]]))
    findings = about(examine(settings), "goldsky")
    assert findings[-1].level == "warning"
    assert "900 of 1,000 ids spread over the list are known there; 100 are not (10.00 %" in findings[-1].text
    assert "Question ids and token ids" in findings[-1].repair
    assert len(subgraph.log.entries) <= MAX_REQUESTS
    settings.condition_ids_file.write_text("\n".join([*ids[:600], *(f"{n:064x}" for n in range(45)), *ids[600:]]))
    assert about(examine(settings), "goldsky")[-1].level == "ok", "a few unknown ids are usual"


def test_a_success_bar_above_the_number_of_ids_is_a_warning(settings: Settings) -> None:
    high = settings.model_copy(update={"min_unique_conditions": Fraction(120_000)})
    warning = next(finding for finding in examine(high) if finding.level == "warning")
    assert "the success bar of 120,000 conditions cannot be reached: the list has 10 ids" in warning.text
    assert "PAYOUT_MIN_UNIQUE_CONDITIONS" in warning.repair


def test_history_that_is_not_kept_takes_a_third_request_and_is_a_warning(tmp_path: Path, settings: Settings) -> None:
    known = tmp_path / "known.csv"
    known.write_text(f'condition_id,payouts,resolved_at\n{condition(0)},"[""1"",""0""]",\n')
    chain = Chain.until_now()
    with SubgraphServer(SubgraphConfig(known, chain=chain, earliest_block=chain.head() - 100)) as pruned:
        findings = about(examine(settings.model_copy(update={"goldsky_endpoint": pruned.url})), "goldsky")
        assert len(pruned.log.entries) <= MAX_REQUESTS
    assert [finding.level for finding in findings] == ["ok", "ok", "warning", "warning"]
    assert "is not kept" in findings[2].text
    assert "1 of 10 ids" in findings[3].text


def test_bad_input_is_a_problem_with_its_lines_and_the_endpoint_is_not_asked(
    settings: Settings, subgraph: SubgraphServer
) -> None:
    settings.condition_ids_file.write_text("condition_id\n0x12\n")
    found = problems(settings)
    assert [finding.subject for finding in found] == ["input"]
    assert "line 2" in found[0].text + found[0].repair
    settings.condition_ids_file.unlink()
    assert "does not exist" in problems(settings)[0].text


def test_a_runtime_directory_that_is_no_directory_is_a_problem(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = problems(settings.model_copy(update={"runtime_dir": str(tmp_path / "file" / "runtime")}))
    assert [finding.subject for finding in found] == ["runtime"]
    assert "is no directory" in found[0].text


def test_files_that_were_set_aside_as_damaged_are_a_warning(settings: Settings) -> None:
    name = "payout-backfill-worker1.checkpoint.json.corrupt-20251109T103000.000000Z"
    Path(settings.runtime_dir).mkdir()
    (Path(settings.runtime_dir) / name).write_text("?")
    warning = next(finding for finding in examine(settings) if finding.level == "warning")
    assert name in warning.text


def test_a_server_has_its_version_tables_and_missing_user_tables_named(settings: Settings, http_world: World) -> None:
    world = http_world.settings
    fields = ("clickhouse_host", "clickhouse_user", "clickhouse_password", "target_table", "truth_view", "pnl_view",
              "market_resolutions_table")  # fmt: skip
    there = settings.model_copy(update={field: getattr(world, field) for field in fields})
    findings = about(examine(there), "clickhouse")
    text = "\n".join(finding.text for finding in findings)
    assert "answers, version" in text
    assert "does not exist yet; a run creates it" in text
    assert [f.level for f in findings if world.market_resolutions_table in f.text] == ["problem"]
    assert "PAYOUT_MARKET_RESOLUTIONS_TABLE" in next(f.repair for f in findings if f.level == "problem")
    http_world.run(
        "CREATE TABLE {db}.resolutions_external_ingest (condition_id String, payout_numerators String) ENGINE = Memory"
    )
    found = problems(there)
    assert any("cannot hold the payout vectors" in f.text for f in found)
    assert not (Path(there.runtime_dir)).exists()


def test_a_table_in_the_views_place_is_a_problem(settings: Settings, http_world: World) -> None:
    fields = ("clickhouse_host", "clickhouse_user", "clickhouse_password", "target_table", "truth_view")
    there = settings.model_copy(update={field: getattr(http_world.settings, field) for field in fields})
    http_world.run("CREATE TABLE {db}_clean.vw_resolutions_truth (n UInt8) ENGINE = MergeTree ORDER BY n")
    found = [f for f in examine(there) if f.text.startswith("PAYOUT_TRUTH_VIEW")]
    assert [f.level for f in found] == ["problem"]
    assert "RENAME TABLE" in found[0].repair


def test_a_wrong_password_is_one_problem_without_the_password(settings: Settings, http_world: World) -> None:
    from pydantic import SecretStr

    wrong = settings.model_copy(
        update={
            "clickhouse_host": http_world.settings.clickhouse_host,
            "clickhouse_user": http_world.settings.clickhouse_user,
            "clickhouse_password": SecretStr("not-the-pa55word"),
        }
    )
    found = problems(wrong)
    assert [finding.subject for finding in found] == ["clickhouse"]
    assert "not-the-pa55word" not in repr(found)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_while_runs_share_a_budget_the_doctors_requests_are_part_of_it(settings: Settings, form: str) -> None:
    directory = Path(settings.runtime_dir)
    directory.mkdir()
    named = settings.model_copy(update={"runtime_dir": form.format(directory)})
    budget = open_store(named.goldsky_endpoint, named.goldsky_rate_limit, runtime_dir=named.runtime_dir)
    assert shared_status(budget)["used"] == 0  # made by a run that has sent nothing yet

    examine(named)

    assert 1 <= shared_status(budget)["used"] <= MAX_REQUESTS
    budget.close()


def test_the_command_exits_0_where_a_run_can_start_and_1_where_not(
    settings: Settings, subgraph: SubgraphServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDITION_IDS_FILE", str(settings.condition_ids_file))
    monkeypatch.setenv("PAYOUT_RUNTIME_DIR", settings.runtime_dir)
    monkeypatch.setenv("GOLDSKY_ENDPOINT", settings.goldsky_endpoint)
    good = CliRunner().invoke(doctor_command, [])
    assert good.exit_code == 0, good.output
    assert "A run can start" in good.output
    subgraph.faults.add("status", status=404, text="gone")
    bad = CliRunner().invoke(doctor_command, ["--json"])
    assert bad.exit_code == 1
    assert {finding["level"] for finding in json.loads(bad.output)} == {"ok", "problem"}


def test_the_command_says_a_fault_once_and_logs_nothing_beside_it(settings: Settings, subgraph: SubgraphServer) -> None:
    subgraph.faults.add("status", status=503, text="down")
    environment = os.environ | {
        "CONDITION_IDS_FILE": str(settings.condition_ids_file),
        "PAYOUT_RUNTIME_DIR": settings.runtime_dir,
        "GOLDSKY_ENDPOINT": settings.goldsky_endpoint,
    }
    command = [sys.executable, "-m", "payout_pipeline.cli", "doctor"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1, found.stdout + found.stderr
    assert found.stderr == ""
    assert found.stdout.count("503") == 1


def test_time_is_a_parameter(settings: Settings) -> None:
    later = datetime(2099, 1, 1, tzinfo=timezone.utc)
    assert any("older than 1 d 0 h" in finding.text for finding in examine(settings, lambda: later))
