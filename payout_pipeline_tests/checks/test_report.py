"""The success report over real Dagster runs: what counts as a pass, what stays failed, what the exit code says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from rich.console import Console

from payout_pipeline.checks.catalogue import FETCHED, STORED, VIEW, catalogue, checks_of
from payout_pipeline.checks.history import CheckStatus, State, latest_statuses
from payout_pipeline.checks.records import load
from payout_pipeline.checks.results import to_result
from payout_pipeline.commands.output import print_json
from payout_pipeline.commands.report import report_command
from payout_pipeline.definitions import build_defs
from payout_pipeline.jobs import VIEW_JOB, WORKER_JOB
from payout_pipeline.report import Report, build_report, render
from payout_pipeline.report.document import as_json
from payout_pipeline.report.html import page
from payout_pipeline.scrub import register_secret
from payout_pipeline.settings import VARIABLES, RateLimit, Settings
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.verdict import Severity, Table, Verdict
from payout_pipeline_tests.report_fixtures import (  # noqa: F401 - fixtures
    IDS,
    House,
    answer,
    condition,
    finished,
    house,
    open_engine,
    runtime,
)

KEYS = ("worker_1_of_2", "worker_2_of_2")


@dataclass
class Backfill:
    """The pipeline's own definitions against a local subgraph, on a Dagster instance of the test."""

    house: House
    subgraph: SubgraphServer
    defs: dg.Definitions

    @property
    def settings(self) -> Settings:
        return self.house.settings

    def run(self, job: str, key: str | None = None) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def(job).execute_in_process(
            instance=self.house.instance, partition_key=key, raise_on_error=False
        )

    def check(self, key: str) -> dg.ExecuteInProcessResult:
        """Make the checks of a worker's rows again, without loading, as the button of the UI does."""
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection=frozenset(),
            asset_check_selection={dg.AssetCheckKey(dg.AssetKey(STORED), "stored_equals_fetched")},
        )
        return job.execute_in_process(
            instance=self.house.instance, tags={"dagster/partition": key}, raise_on_error=False
        )

    def run_all(self) -> Backfill:
        for key in KEYS:
            assert self.run(WORKER_JOB, key).success
        assert self.run(VIEW_JOB).success
        return self

    def report(self, **changes: Any) -> Report:
        return build_report(self.settings.model_copy(update=changes), self.house.instance)


@pytest.fixture(scope="module")
def subgraph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SubgraphServer]:
    """The answers of the house, served."""
    directory = tmp_path_factory.mktemp("subgraph")
    decimals = {0: '["1","0"]', 1: '["0","1"]', 2: '["0.5","0.5"]', 3: '["0.54","0.46"]'}
    known = [
        f'{condition(n)},"{text.replace(chr(34), chr(34) * 2)}",' for n in range(IDS) if (text := decimals.get(n % 6))
    ]
    (directory / "known.csv").write_text("condition_id,payouts,resolved_at\n" + "\n".join(known) + "\n")
    (directory / "open.txt").write_text("\n".join(condition(n) for n in range(IDS) if answer(n) is None) + "\n")
    with SubgraphServer(SubgraphConfig(directory / "known.csv", directory / "open.txt")) as server:
        yield server


@pytest.fixture
def backfill(house: House, subgraph: SubgraphServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backfill]:  # noqa: F811
    """Nothing run yet."""
    settings = house.settings.model_copy(
        update={
            "goldsky_endpoint": subgraph.url,
            "goldsky_max_retries": 0,
            "goldsky_rate_limit": RateLimit(requests=10_000, seconds=1),
        }
    )
    house.settings = settings
    for field, variable in VARIABLES.items():
        value = getattr(settings, field)
        if value not in (None, False):
            monkeypatch.setenv(variable, str(value))
    yield Backfill(house, subgraph, build_defs(settings))
    subgraph.faults.clear()


def states(report: Report) -> dict[tuple[str, str | None], State]:
    return {(status.info.name, status.partition): status.state for status in report.statuses}


def status_of(report: Report, check: str, partition: str | None = None) -> CheckStatus:
    return next(s for s in report.statuses if (s.info.name, s.partition) == (check, partition))


def text_of(report: Report, width: int = 160, *, verbose: bool = False) -> str:
    out = StringIO()
    render(report, Console(file=out, width=width, highlight=False), verbose=verbose)
    return out.getvalue()


def words_of(report: Report, width: int = 120, *, verbose: bool = False) -> str:
    """The text without the places where it was wrapped."""
    return " ".join(text_of(report, width, verbose=verbose).replace("│", " ").split())


# ------------------------------------------------------------------------------------------------- what it says


def test_a_finished_backfill_is_a_success_with_every_check_of_every_worker(backfill: Backfill) -> None:
    report = backfill.run_all().report()
    assert report.exit_code == 0
    workers = len(checks_of(FETCHED, backfill.settings)) + len(checks_of(STORED, backfill.settings))
    assert len(report.statuses) == 2 * workers + len(checks_of(VIEW, backfill.settings)) == 24
    assert Counter(states(report).values()) == {State.PASSED: 17, State.NOTHING: 5, State.FAILED: 2}
    # A sixth of these ids is unknown to the subgraph; nothing was there before; there is no P&L view.
    assert {name for (name, _), state in states(report).items() if state is State.FAILED} == {"ids_are_known"}
    assert report.headline == "SUCCESS: 17 passed, 5 had nothing to check, 2 warnings"
    text = words_of(report)
    assert "16 of 24 conditions of the input have a payout vector from goldsky-api (66.66 %); at least 16" in text
    assert all(text.count(f"{info.name} ") == 1 for info in catalogue(backfill.settings)), "each check is named once"
    assert "every_id_accounted_for 2 workers 24 of 24, 16 resolved, 4 unresolved, 4 absent" in text
    assert len(text_of(report, 120).splitlines()) <= 45, "it fits one screen"
    each = words_of(report, verbose=True)
    assert "1/2 12 of 12 ids of worker_1_of_2" in each
    assert "2/2 12 of 12 ids of worker_2_of_2" in each


@pytest.mark.slow
def test_the_age_of_the_results_is_shown(backfill: Backfill) -> None:
    backfill.run_all()
    later = datetime.now(timezone.utc) + timedelta(days=3, hours=2)
    report = build_report(backfill.settings, backfill.house.instance, later)
    assert "the oldest result is 3 d 2 h old" in words_of(report)
    assert as_json(report)["checks"][0]["age_seconds"] >= 3 * 86_400


def test_before_anything_ran_the_report_is_one_sentence(backfill: Backfill) -> None:
    report = backfill.report()
    assert report.exit_code == 1
    assert set(states(report).values()) == {State.NEVER}
    assert report.headline == "No check has run yet for this input: payout-pipeline backfill"
    assert len(text_of(report).splitlines()) <= 5


def test_a_wrong_endpoint_is_one_message_with_its_cause_and_what_it_affects(backfill: Backfill) -> None:
    backfill.subgraph.faults.add("status", status=404, text="gone")
    for key in KEYS:
        assert not backfill.run(WORKER_JOB, key).success
    report = backfill.report()
    assert report.exit_code == 1
    (cause,) = report.causes
    assert cause.blocks
    assert {status.info.asset for status in cause.consequences} == {VIEW}
    text = words_of(report)
    assert text.count("404") == 1
    assert f"vw_resolutions_truth ({len(checks_of(VIEW, backfill.settings))} checks)" in text
    assert text.endswith("What to do: payout-pipeline backfill")
    assert "dagster._core" not in text
    assert len(text_of(report, 120).splitlines()) <= 12


@pytest.mark.slow
def test_workers_with_the_same_failure_are_one_message_and_the_sentence_of_all_workers_does_not_repeat_it(
    backfill: Backfill,
) -> None:
    for key in KEYS:
        assert backfill.run(WORKER_JOB, key).success
    backfill.house.run("TRUNCATE TABLE {db}.resolutions_external_ingest")
    for key in KEYS:
        backfill.check(key)
    backfill.run(VIEW_JOB)
    report = backfill.report()
    stored = [c for c in report.causes if "stored_equals_fetched" in c.title]
    assert [cause.partitions for cause in stored] == [KEYS]
    assert "all_workers_complete" in [status.info.name for status in stored[0].consequences]


@pytest.mark.slow
def test_results_that_are_outdated_for_one_reason_are_one_message(backfill: Backfill) -> None:
    backfill.run_all()
    backfill.settings.condition_ids_file.write_text(f"{condition(998)}\n{condition(999)}\n")
    report = backfill.report()
    blocking = [cause for cause in report.causes if cause.blocks]
    assert {cause.state for cause in blocking} == {State.OUTDATED}
    assert len(blocking) == 1
    assert report.headline.startswith("NOT A SUCCESS: 17 ERROR checks without a current pass (17 outdated)")
    assert "payout-pipeline backfill" in blocking[0].repair


@pytest.mark.slow
def test_a_failed_worker_stays_failed_after_another_one_passed(backfill: Backfill) -> None:
    assert backfill.run(WORKER_JOB, KEYS[0]).success
    backfill.house.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(3)}'")
    assert not backfill.check(KEYS[0]).success, "a run whose ERROR check fails is a failed run"
    assert backfill.run(WORKER_JOB, KEYS[1]).success
    report = backfill.report()
    assert status_of(report, "stored_equals_fetched", KEYS[0]).state is State.FAILED
    assert status_of(report, "stored_equals_fetched", KEYS[1]).state is State.PASSED
    assert report.exit_code == 1
    worst = report.worst_first[0]
    assert (worst.info.name, worst.partition) == ("stored_equals_fetched", KEYS[0])
    text = text_of(report)
    assert "1 missing" in text
    assert condition(3) in text
    assert not backfill.run(VIEW_JOB).success
    assert (
        "worker_1_of_2: failed stored_equals_fetched" in status_of(backfill.report(), "all_workers_complete").sentence
    )
    # Materializing again heals the table, and the status with it.
    assert backfill.run(WORKER_JOB, KEYS[0]).success
    assert backfill.run(VIEW_JOB).success
    assert backfill.report().exit_code == 0


@pytest.mark.slow
def test_a_changed_input_file_makes_every_check_of_the_changed_worker_one_that_never_ran(backfill: Backfill) -> None:
    backfill.run_all()
    path = backfill.settings.condition_ids_file
    path.write_text("\n".join([*path.read_text().splitlines()[:-1], condition(999)]))
    report = backfill.report()
    assert report.exit_code == 1
    assert status_of(report, "every_id_accounted_for", KEYS[0]).state is State.PASSED
    changed = status_of(report, "every_id_accounted_for", KEYS[1])
    assert changed.state is State.OUTDATED
    assert "The input has changed since" in changed.sentence
    assert status_of(report, "unique_conditions").state is State.OUTDATED


@pytest.mark.slow
def test_another_spelling_of_the_same_ids_is_the_same_input(backfill: Backfill) -> None:
    backfill.run_all()
    path = backfill.settings.condition_ids_file
    path.write_text("".join(f"  0x{line.upper()}\r\n" for line in path.read_text().splitlines()))
    assert backfill.report().exit_code == 0


@pytest.mark.slow
def test_another_number_of_workers_or_another_table_is_no_success_yet(backfill: Backfill) -> None:
    backfill.run_all()
    assert backfill.report(workers=3).exit_code == 1
    other = backfill.report(target_table=f"{backfill.house.database}.another")
    assert status_of(other, "stored_equals_fetched", KEYS[0]).state is State.OUTDATED
    assert status_of(other, "every_id_accounted_for", KEYS[0]).state is State.PASSED
    assert other.exit_code == 1


@pytest.mark.slow
def test_a_stale_source_is_a_warning_and_no_failure(backfill: Backfill) -> None:
    backfill.subgraph.faults.add("stale_head", seconds=5 * 86_400)
    report = backfill.run_all().report()
    assert status_of(report, "source_is_fresh", KEYS[0]).state is State.FAILED
    assert report.exit_code == 0
    assert report.headline == "SUCCESS: 15 passed, 5 had nothing to check, 4 warnings"
    text = words_of(report)
    assert "5 d 0 h old" in text
    assert text.count("WARNING source_is_fresh") == 1, "both workers asked the same subgraph"


@pytest.mark.slow
def test_a_materialization_without_its_checks_makes_the_former_checks_outdated(backfill: Backfill) -> None:
    backfill.run_all()
    backfill.house.materialized(STORED, 1)
    report = backfill.report()
    assert status_of(report, "stored_equals_fetched", KEYS[0]).state is State.OUTDATED
    assert "was materialized again" in status_of(report, "stored_equals_fetched", KEYS[0]).reason
    assert status_of(report, "stored_equals_fetched", KEYS[1]).state is State.PASSED
    assert report.exit_code == 1


@pytest.mark.slow
def test_a_run_that_died_leaves_checks_that_were_not_made(backfill: Backfill) -> None:
    backfill.run_all()
    backfill.subgraph.faults.add("status", status=404, text="gone")
    assert not backfill.run(WORKER_JOB, KEYS[0]).success
    report = backfill.report()
    assert status_of(report, "every_id_accounted_for", KEYS[0]).state is State.NOT_MADE
    text = words_of(report)
    assert "not made (goldsky_payouts, resolutions_external_ingest, worker_1_of_2)" in text
    assert "404" in text, "the message with which the run failed is the cause"
    assert report.exit_code == 1


# ------------------------------------------------------------------------------------------------------- its forms


def test_the_json_has_every_check_with_its_numbers_tables_and_statement(backfill: Backfill) -> None:
    found = json.loads(json.dumps(as_json(backfill.run_all().report())))
    assert (found["exit_code"], found["input"]["ids"], found["input"]["workers"]) == (0, IDS, 2)
    checks = {(check["check"], check["partition"]): check for check in found["checks"]}
    unique = checks["unique_conditions", None]
    assert (unique["expected"], unique["actual"], unique["state"], unique["severity"]) == (16, 16, "passed", "ERROR")
    assert "uniqExact" in unique["sql"]
    assert unique["tables"][0]["rows"] == [["goldsky-api", 16, 16]]
    assert checks["every_id_accounted_for", KEYS[0]]["facts"]["unresolved"] == 2
    assert unique["at"].endswith("+00:00")


@pytest.mark.slow
def test_the_command_exits_1_until_the_backfill_is_done_and_0_afterwards(
    backfill: Backfill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        backfill.house.instance = instance
        first = CliRunner().invoke(report_command, ["--json"])
        assert first.exit_code == 1
        assert json.loads(first.output)["exit_code"] == 1
        backfill.run_all()
    second = CliRunner().invoke(report_command, ["--html", str(tmp_path / "deep" / "report.html")])
    assert second.exit_code == 0, second.output
    assert "SUCCESS: 17 passed" in second.output
    assert "SUCCESS" in (tmp_path / "deep" / "report.html").read_text()


class _Tags(HTMLParser):
    """Counts tags, and collects everything that would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]


def parsed(text: str) -> _Tags:
    tags = _Tags()
    tags.feed(text)
    return tags


def test_the_page_is_self_contained_and_draws_what_was_fetched(backfill: Backfill) -> None:
    report = backfill.run_all().report()
    text = page(report)
    assert 'title="unresolved 2"' in text
    assert 'title="view after the rebuild 16"' in text
    tags = parsed(text)
    assert tags.loaded == []
    assert tags.tags["figure"] == 2
    assert "script" not in tags.tags
    assert "SUCCESS: 17 passed" in text


def test_what_comes_from_an_answer_is_escaped_in_the_page_and_on_the_terminal(finished: House) -> None:  # noqa: F811
    evil = "<script>alert(1)</script>[bold]&\x1b[31m"
    verdict = Verdict(
        False, f"1 id failed: {evil}", 0.01, 1.0,
        tables=(Table("failed ids", ("condition_id", "error"), ((condition(1), evil),)),), repair=f"look at {evil}",
        check="error_rate",
    )  # fmt: skip
    finished.checked(verdict, 1)
    report = build_report(finished.settings, finished.instance)
    text = page(report)
    assert "script" not in parsed(text).tags
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    shown = text_of(report)
    assert "[bold]" in shown, "markup of an answer is text, not style"
    assert "\x1b[31m" not in shown


LONG = "a sentence of many words that ends with the command that helps: payout-pipeline backfill --workers 1,2"


@pytest.mark.parametrize("width", [80, 120, 160])
def test_text_is_wrapped_and_never_cropped(finished: House, width: int) -> None:  # noqa: F811
    verdict = Verdict(
        False, LONG, 0.01, 1.0,
        tables=(Table("failed ids", ("condition_id", "error"), ((condition(1), LONG),)),), repair=LONG,
        check="error_rate",
    )  # fmt: skip
    finished.checked(verdict, 1)
    report = build_report(finished.settings, finished.instance)
    assert words_of(report, width).count(LONG) >= 2, "what was found, and what to do"
    out = StringIO()
    render(report, Console(file=out, width=width, soft_wrap=True))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any(condition(1) in line for line in lines), "an id stays whole"


def test_numbers_that_json_does_not_have_are_text(finished: House, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    nan, infinite = float("nan"), float("inf")
    report = build_report(finished.settings, finished.instance)
    verdict = Verdict(False, LONG, nan, infinite, facts={"total": nan})
    print_json(as_json(replace(report, statuses=(replace(report.statuses[0], verdict=verdict),))))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (check,) = json.loads(capsys.readouterr().out, parse_constant=refuse)["checks"]
    assert (check["expected"], check["actual"], check["facts"]["total"]) == ("nan", "inf", "nan")


def test_the_paths_of_a_materialization_are_shown_as_they_are(backfill: Backfill) -> None:
    result = backfill.run(WORKER_JOB, KEYS[0])
    (event,) = result.asset_materializations_for_node("goldsky_payouts")
    files = str(event.metadata["files"].value)
    assert f"{backfill.settings.runtime_dir}/goldsky_payouts/{KEYS[0]}" in files
    assert "\\" not in files


# ---------------------------------------------------------------------------------------------- results, kept


def test_a_verdict_comes_back_as_it_was_kept(finished: House) -> None:  # noqa: F811
    verdict = Verdict(
        False, "A sentence äß\n<>[].", 2**53 + 1, 0.5,
        tables=(Table("rows", ("x", "y"), (("1", 2), ("3", True))),), sql="SELECT 1", repair="Do it.", facts={"a": 1},
        check="error_rate", severity=Severity.WARN,
    )  # fmt: skip
    finished.checked(verdict, 1)
    assert load(finished.settings, FETCHED, KEYS[0])["error_rate"].verdict == verdict


def test_numbers_beyond_what_javascript_keeps_are_sent_as_text() -> None:
    result = to_result(Verdict(True, "s", 2**64, 0.0, check="error_rate"), FETCHED)
    assert result.metadata["expected"] == dg.MetadataValue.text(str(2**64))
    assert result.metadata["actual"] == dg.MetadataValue.float(0.0)


def test_secrets_are_scrubbed_from_everything_a_check_says() -> None:
    register_secret("canary-5ecret-value")
    leaked = "token canary-5ecret-value was refused"
    result = to_result(
        Verdict(
            False, leaked, leaked, leaked,
            tables=(Table("t", ("error",), ((leaked,),)),), sql=leaked, repair=leaked, facts={"fact": leaked},
            check="error_rate",
        ),
        FETCHED,
    )  # fmt: skip
    assert "canary-5ecret-value" not in repr(result)


@pytest.mark.slow
def test_checks_have_a_status_per_partition_and_no_partition_without_one(backfill: Backfill) -> None:
    assert backfill.run(WORKER_JOB, KEYS[1]).success
    worklist = backfill.house.worklist
    found = latest_statuses(backfill.house.instance, backfill.settings, worklist, (FETCHED,))
    assert [(s.partition, s.state) for s in found if s.info.name == "error_rate"] == [
        (KEYS[0], State.NEVER),
        (KEYS[1], State.PASSED),
    ]
    at = found[-1].at
    assert at is not None
    assert abs((datetime.now(timezone.utc) - at).total_seconds()) < 120


@pytest.mark.slow
def test_ids_that_failed_within_the_allowed_rate_are_listed_although_the_check_passed(
    backfill: Backfill, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = next(condition(n) for n in range(IDS) if answer(n) is None)
    monkeypatch.setenv("PAYOUT_MAX_ERROR_RATE", "0.5")
    backfill.subgraph.faults.add("raw", fields={f"0x{spoilt}": {"payouts": ["1", "1"]}})
    report = backfill.run_all().report(max_error_rate=0.5)
    failing = next(s for s in report.statuses if s.info.name == "error_rate" and s.verdict and s.verdict.tables)
    text = text_of(report, 120)
    assert f"ids without a usable answer of {failing.partition}" in text
    assert spoilt in text
    assert "invalid" in text
