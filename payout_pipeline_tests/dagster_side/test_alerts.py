"""Word to the webhook: once when something fails, once when it is over, nothing lost, no secret in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from payout_pipeline.alert_sensors import alerts_now
from payout_pipeline.alerts import STATE_FILE, Delivery, Sign, Trouble, settle
from payout_pipeline.checks.catalogue import REFRESH_JOB, STORED, VIEW
from payout_pipeline.errors import ConfigurationError, StorageError
from payout_pipeline.jobs import VIEW_JOB, WORKER_JOB
from payout_pipeline.resources import PipelineResource
from payout_pipeline.scrub import register_secret, scrub
from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.checks.test_report import KEYS, Backfill, backfill, subgraph  # noqa: F401 - fixtures
from payout_pipeline_tests.report_fixtures import condition, house, open_engine, runtime  # noqa: F401 - fixtures
from payout_pipeline_tests.running import Place

NOW = datetime(2026, 11, 26, 3, 20, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
CANARY = "T0CANARY/B0CANARY/xoxCanary0Canary0Canary0"


class Webhook(ThreadingHTTPServer):
    """Takes messages, or does not: ``status`` is what it answers; 0: nothing, until it is closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.asked: list[str] = []
        self.taken: list[str] = []
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/{CANARY}"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert list(body) == ["text"], "Slack refuses what it does not know"
        self.server.asked.append(self.path)
        if not self.server.status:
            self.server.closed.wait(20)
            return
        if self.server.status == 200:
            self.server.taken.append(body["text"])
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.url}/moved")
        self.end_headers()
        self.wfile.write(f"cannot POST {self.path}".encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.closed.set()
        server.shutdown()


@pytest.fixture
def settings(tmp_path: Path, webhook: Webhook) -> Settings:
    return load_settings({"PAYOUT_RUNTIME_DIR": str(tmp_path / "runtime"), "PAYOUT_ALERT_WEBHOOK": webhook.url})


def failed_run(
    event: str = "r1", *, key: str = "run A", items: tuple[str, ...] = ("w1", "w2"), text: str = "why"
) -> Trouble:
    signs = {item: Sign(topic=key, event=f"{event} {item}") for item in items}
    return Trouble(key, f"runs of {', '.join(items)}", NOW, [text], "payout-pipeline backfill", signs)


def look(
    settings: Settings, *troubles: Trouble, over: set[str] | None = None, at: timedelta = timedelta(0)
) -> Delivery:
    return settle(settings, troubles, lambda item: item in (over or set()), NOW + at, timeout_seconds=0.3)


# -------------------------------------------------------------------------------------------------- what is said when


def test_a_trouble_is_one_message_with_what_since_when_why_and_what_to_do(settings: Settings, webhook: Webhook) -> None:
    look(settings, failed_run())
    assert webhook.taken == [
        "Payout pipeline FAILED: runs of w1, w2\nSince 2026-11-26 03:20 UTC\nwhy\nWhat to do: payout-pipeline backfill"
    ]
    for minutes in (1, 30, 59, 61, 600):
        look(settings, failed_run(), at=timedelta(minutes=minutes))
    assert len(webhook.taken) == 1, "still the same failure"


def test_a_trouble_that_is_over_is_one_message_once_all_of_it_is_well(settings: Settings, webhook: Webhook) -> None:
    look(settings, failed_run())
    look(settings, over={"w1"})
    assert len(webhook.taken) == 1, "of w2 nobody knows, such as while it runs"
    for _ in range(3):
        look(settings, over={"w1", "w2"}, at=24 * HOUR)
    assert webhook.taken[1:] == [
        "Payout pipeline WELL AGAIN: runs of w1, w2\nIt had failed since 2026-11-26 03:20 UTC (1 d 0 h)."
    ]


def test_what_was_never_announced_is_not_well_again(settings: Settings, webhook: Webhook) -> None:
    look(settings, over={"w1", "w2"})
    assert webhook.taken == []


def test_another_failure_of_the_same_within_an_hour_is_no_message_and_later_it_is_one(
    settings: Settings, webhook: Webhook
) -> None:
    look(settings, failed_run("r1"))
    look(settings, failed_run("r2"), at=0.9 * HOUR)
    look(settings, failed_run("r2"), at=1.1 * HOUR)
    assert len(webhook.taken) == 1
    look(settings, failed_run("r3"), at=1.2 * HOUR)
    assert len(webhook.taken) == 2


def test_workers_that_join_a_failure_are_no_message_and_it_is_over_when_they_are_well_too(
    settings: Settings, webhook: Webhook
) -> None:
    look(settings, failed_run(items=("w1",)))
    look(settings, failed_run(items=("w1", "w2", "w3")), at=0.1 * HOUR)
    look(settings, failed_run(items=("w2", "w3")), over={"w1"}, at=0.2 * HOUR)
    assert len(webhook.taken) == 1
    look(settings, over={"w1", "w2", "w3"}, at=0.3 * HOUR)
    assert len(webhook.taken) == 2
    assert "runs of w1, w2, w3" in webhook.taken[1]


def test_what_fails_again_right_after_it_was_over_waits_for_the_hour_to_end(
    settings: Settings, webhook: Webhook
) -> None:
    look(settings, failed_run("r1"))
    look(settings, over={"w1", "w2"}, at=0.1 * HOUR)
    for at in (0.2, 0.5, 0.9):
        look(settings, failed_run("r2"), at=at * HOUR)
    assert len(webhook.taken) == 2
    look(settings, failed_run("r2"), at=1.1 * HOUR)
    assert [text.split(":")[0] for text in webhook.taken[2:]] == ["Payout pipeline FAILED"]
    look(settings, over={"w1", "w2"}, at=1.2 * HOUR)
    assert len(webhook.taken) == 4


def test_what_fails_and_recovers_every_ten_minutes_is_at_most_two_messages_an_hour(
    settings: Settings, webhook: Webhook
) -> None:
    for number in range(36):
        at = number / 6 * HOUR
        look(settings, failed_run(f"r{number}"), at=at)
        look(settings, over={"w1", "w2"}, at=at + HOUR / 12)
    failures = [text for text in webhook.taken if "FAILED" in text]
    assert 5 <= len(failures) <= 6
    assert len(webhook.taken) - len(failures) <= 6


def test_another_cause_for_the_same_worker_within_the_hour_is_no_second_message(
    settings: Settings, webhook: Webhook
) -> None:
    look(settings, failed_run("r1", key="run A"))
    look(settings, failed_run("r2", key="run B"), at=0.5 * HOUR)
    assert len(webhook.taken) == 1
    look(settings, over={"w1", "w2"}, at=0.6 * HOUR)
    assert len(webhook.taken) == 2, "one thing is over, not two"


def test_a_consequence_is_no_message_and_has_to_be_well_too(settings: Settings, webhook: Webhook) -> None:
    trouble = failed_run()
    trouble.consequences["view"] = Sign(topic="view", event="v1")
    look(settings, trouble)
    look(settings, over={"w1", "w2"})
    assert len(webhook.taken) == 1
    look(settings, over={"w1", "w2", "view"})
    assert len(webhook.taken) == 2


def test_different_troubles_are_a_message_each(settings: Settings, webhook: Webhook) -> None:
    look(settings, failed_run(key="run A", items=("w1",)), failed_run(key="run B", items=("w2",)))
    assert len(webhook.taken) == 2


# ------------------------------------------------------------------------------------- a webhook that does not take it


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, "did not answer within 0.3 s"),
        (302, "redirects (HTTP 302), which is not followed. Set PAYOUT_ALERT_WEBHOOK to the final URL"),
        (500, "answered HTTP 500"),
        (404, "answered HTTP 404"),
    ],
)
def test_a_message_that_is_not_taken_is_a_warning_and_is_sent_again_exactly_once(
    settings: Settings, webhook: Webhook, caplog: pytest.LogCaptureFixture, status: int, said: str
) -> None:
    webhook.status = status
    with caplog.at_level(logging.WARNING, "payout_pipeline"):
        told = look(settings, failed_run())
    assert said in told.problem
    assert told.waiting == 1
    assert said in caplog.text
    assert "PAYOUT_ALERT_WEBHOOK" in caplog.text
    assert "CANARY" not in caplog.text
    look(settings, failed_run())
    assert webhook.taken == []
    assert all(path.endswith(CANARY) for path in webhook.asked), "a redirect is not followed"
    webhook.status = 200
    for _ in range(3):
        look(settings, failed_run())
    assert len(webhook.taken) == 1


def test_a_webhook_that_nobody_listens_at_is_a_warning_without_its_url(settings: Settings, webhook: Webhook) -> None:
    webhook.shutdown()
    webhook.server_close()
    told = look(settings, failed_run())
    assert "cannot be reached: ClientConnectorError" in told.problem
    assert "CANARY" not in told.problem


def test_a_failure_and_its_end_while_the_webhook_was_down_are_both_delivered_in_order(
    settings: Settings, webhook: Webhook
) -> None:
    webhook.status = 503
    look(settings, failed_run())
    look(settings, over={"w1", "w2"}, at=5 * HOUR)
    webhook.status = 200
    told = look(settings, at=9 * HOUR)
    assert list(told.sent) == webhook.taken
    assert ["FAILED" in text for text in webhook.taken] == [True, False]


def test_three_failed_nights_while_the_webhook_was_down_are_one_message(settings: Settings, webhook: Webhook) -> None:
    webhook.status = 503
    for night in range(3):
        look(settings, failed_run(f"r{night}"), at=night * 24 * HOUR)
    webhook.status = 200
    look(settings, failed_run("r2"), at=50 * HOUR)
    look(settings, failed_run("r3"), at=50.5 * HOUR)
    assert len(webhook.taken) == 1, "never two within an hour, counted from when it was delivered"


def test_a_damaged_state_is_kept_aside_and_a_runtime_directory_that_is_full_sends_nothing(
    settings: Settings, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(settings, failed_run())
    state = Path(settings.runtime_dir) / STATE_FILE
    state.write_text('{"open": 3')
    look(settings, failed_run())
    assert len(list(state.parent.glob(f"{STATE_FILE}.corrupt-*"))) == 1
    assert len(webhook.taken) == 2
    blocked = settings.model_copy(update={"runtime_dir": str(state / "below-a-file")})
    with pytest.raises(StorageError):
        look(blocked, failed_run())
    assert len(webhook.taken) == 2


# ----------------------------------------------------------------------------------------------------- what is in it


def test_a_message_has_no_secret_no_markup_and_no_more_than_1500_characters(
    settings: Settings, webhook: Webhook
) -> None:
    register_secret("canary-of-alerts")
    long = "<!channel> token canary-of-alerts " + webhook.url + " " + "x" * 5_000 + "\x1b[31m"
    look(settings, failed_run(text=long))
    (text,) = webhook.taken
    assert len(text) <= 1_500
    assert "canary-of-alerts" not in text
    assert "CANARY" not in text
    assert "<" not in text
    assert "\x1b" not in text
    assert text.endswith("What to do: payout-pipeline backfill")


@pytest.mark.parametrize(
    "url",
    ["ftp://h/canary-77", "hooks.example.org/canary-77", "http://", "http://[canary-77", "http://h:x77/canary-77"],
)
def test_g1_a_webhook_that_is_no_url_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PAYOUT_ALERT_WEBHOOK: expected an http") as caught:
        load_settings({"PAYOUT_ALERT_WEBHOOK": url})
    assert "77" not in str(caught.value)
    assert load_settings({"PAYOUT_ALERT_WEBHOOK": " "}).alert_webhook is None


def test_g1_no_part_of_the_webhooks_url_is_printed(settings: Settings, webhook: Webhook) -> None:
    again = load_settings({"PAYOUT_ALERT_WEBHOOK": webhook.url})
    for text in (webhook.url, f"/services/{CANARY}", CANARY.rpartition("/")[2], repr(again), again.model_dump_json()):
        assert "xoxCanary" not in scrub(text)
    assert scrub("http://127.0.0.1:3000/services") == "http://127.0.0.1:3000/services"


# ---------------------------------------------------------------------------------------------- what is in trouble now


class Desk:
    """The pipeline, its webhook, and looks at both at chosen times."""

    def __init__(self, backfill: Backfill, webhook: Webhook) -> None:  # noqa: F811
        self.backfill, self.webhook = backfill, webhook
        self.now = datetime.now(timezone.utc)

    def after(self, hours: float) -> list[str]:
        """The messages that a look gives, so long after the last one."""
        self.now += hours * HOUR
        before = len(self.webhook.taken)
        settings = self.backfill.settings.model_copy(update={"alert_webhook": SecretStr(self.webhook.url)})
        told = alerts_now(settings, self.backfill.house.instance, self.now, timeout_seconds=2)
        assert list(told.sent) == self.webhook.taken[before:]
        return list(told.sent)


@pytest.fixture
def desk(backfill: Backfill, webhook: Webhook) -> Desk:  # noqa: F811
    return Desk(backfill, webhook)


@pytest.mark.slow
def test_a_night_with_the_subgraph_down_is_one_message_naming_the_workers_and_one_when_it_is_over(desk: Desk) -> None:
    backfill = desk.backfill  # noqa: F811
    assert desk.after(0) == [], "nothing has run yet"
    backfill.subgraph.faults.add("status", status=503, text="down <!channel>")
    assert not backfill.run(WORKER_JOB, KEYS[0]).success
    (text,) = desk.after(0)
    assert f"FAILED: run of {KEYS[0]} (goldsky_payouts, resolutions_external_ingest)" in text
    assert "503" in text
    assert text.endswith("What to do: payout-pipeline backfill --workers 1")
    assert not backfill.run(WORKER_JOB, KEYS[1]).success
    assert not backfill.run(VIEW_JOB).success, "it refuses while workers are missing"
    assert desk.after(0.1) == [], "the other worker and the view have the same cause"
    assert desk.after(2) == []
    backfill.subgraph.faults.clear()
    for key in KEYS:
        assert backfill.run(WORKER_JOB, key).success
    assert desk.after(1) == [], "the view is still missing"
    assert backfill.run(VIEW_JOB).success
    (over,) = desk.after(0)
    assert over.startswith(f"Payout pipeline WELL AGAIN: 2 runs of {', '.join(KEYS)} (goldsky_payouts")
    assert desk.after(2) == []


@pytest.mark.slow
def test_failed_error_checks_are_one_message_a_run_and_one_when_they_pass(desk: Desk) -> None:
    backfill = desk.backfill.run_all()  # noqa: F811
    assert desk.after(0) == [], "warnings alone are no message"
    backfill.house.run(f"DELETE FROM {{db}}.resolutions_external_ingest WHERE condition_id = '{condition(3)}'")
    assert not backfill.check(KEYS[0]).success
    assert not backfill.run(VIEW_JOB).success
    of_worker, of_view = desk.after(0)
    assert f"FAILED: check stored_equals_fetched ({STORED}, {KEYS[0]})\n" in of_worker
    assert "1 missing" in of_worker
    assert f"FAILED: checks unique_conditions, no_null_payouts, coverage_before_after ({VIEW})\n" in of_view
    assert "no_null_payouts: 1 of 16 conditions" in of_view
    assert desk.after(2) == []
    assert backfill.run(WORKER_JOB, KEYS[0]).success
    assert backfill.run(VIEW_JOB).success
    assert ["WELL AGAIN" in text for text in desk.after(0)] == [True, True]


def test_a_view_that_was_not_rebuilt_for_36_hours_is_one_message_and_one_when_it_was(desk: Desk) -> None:
    desk.backfill.house.materialized(VIEW)
    assert desk.after(35.9) == []
    (text,) = desk.after(0.2)
    assert "the view was last rebuilt 1 d 12 h ago" in text.lower()
    assert "daily_refresh" in text
    assert desk.after(24) == []
    desk.backfill.house.materialized(VIEW)
    desk.now = datetime.now(timezone.utc)
    (over,) = desk.after(0)
    assert "WELL AGAIN: the refresh of" in over


def test_a_view_that_is_late_because_a_run_failed_is_no_second_message(desk: Desk) -> None:
    desk.backfill.house.materialized(VIEW)
    desk.backfill.subgraph.faults.add("status", status=404, text="gone")
    assert not desk.backfill.run(WORKER_JOB, KEYS[0]).success
    assert len(desk.after(0)) == 1
    assert desk.after(40) == []


def test_a_cancelled_run_is_no_failure_and_not_the_end_of_one(desk: Desk) -> None:
    def report(status: dg.DagsterRunStatus) -> None:
        instance = desk.backfill.house.instance
        run = instance.create_run_for_job(desk.backfill.defs.resolve_job_def(VIEW_JOB))
        if status is dg.DagsterRunStatus.FAILURE:
            instance.report_run_failed(run, message="the process was killed")
        else:
            instance.report_run_canceled(run)

    report(dg.DagsterRunStatus.CANCELED)
    assert desk.after(0) == []
    report(dg.DagsterRunStatus.FAILURE)
    (text,) = desk.after(0)
    assert f"FAILED: run of {VIEW}\n" in text
    assert "the process was killed" in text
    report(dg.DagsterRunStatus.CANCELED)
    assert desk.after(2) == []


def test_a_refresh_whose_process_was_killed_is_one_message(desk: Desk) -> None:
    instance = desk.backfill.house.instance
    killed = instance.create_run_for_job(desk.backfill.defs.resolve_job_def(REFRESH_JOB))
    instance.report_run_failed(killed, message="the process was killed")
    (text,) = desk.after(0)
    assert f"FAILED: run of {REFRESH_JOB}\n" in text
    assert "the process was killed" in text


@pytest.mark.slow
def test_a_daily_refresh_that_failed_by_its_workers_is_their_message_and_none_of_its_own(
    tmp_path: Path, webhook: Webhook
) -> None:
    data = generate(60, 5, tmp_path / "data")
    with SubgraphServer(SubgraphConfig(conditions=data.conditions)) as server:
        server.faults.add("status", status=404, text="gone")
        place = Place(tmp_path, server.url, data.ids, {"PAYOUT_WORKERS": "2", "PAYOUT_PNL_VIEW": ""})
        command = ["-m", "dagster", "job", "execute", "-m", "payout_pipeline.definitions", "-j", REFRESH_JOB]
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=place.environment, check=False)
        settings = load_settings({**place.environment, "PAYOUT_ALERT_WEBHOOK": webhook.url})
        with dg.DagsterInstance.from_config(str(place.home)) as instance:
            assert {record.dagster_run.job_name for record in instance.get_run_records()} == {REFRESH_JOB, WORKER_JOB}
            alerts_now(settings, instance)
    (text,) = webhook.taken
    assert f"FAILED: 2 runs of {', '.join(KEYS)} (goldsky_payouts" in text


def test_an_input_that_cannot_be_read_is_told_of_as_the_failure_of_the_runs(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    path = desk.backfill.settings.condition_ids_file
    good = path.read_text()
    path.write_text("no id\n")
    for key in KEYS:
        assert not desk.backfill.run(WORKER_JOB, key).success
    (text,) = desk.after(0)
    assert all(key in text for key in KEYS)
    assert "The checks cannot be looked at" in caplog.text
    path.write_text(good)
    assert desk.after(2) == []
    for key in KEYS:
        assert desk.backfill.run(WORKER_JOB, key).success
    assert len(desk.after(0)) == 1


def test_workers_that_are_no_longer_there_are_no_trouble(desk: Desk) -> None:
    desk.backfill.subgraph.faults.add("status", status=404, text="gone")
    assert not desk.backfill.run(WORKER_JOB, KEYS[1]).success
    assert len(desk.after(0)) == 1
    desk.backfill.house.settings = desk.backfill.settings.model_copy(update={"workers": 1})
    assert ["WELL AGAIN" in text for text in desk.after(2)] == [True]


# ----------------------------------------------------------------------------------------------------------- in Dagster


def test_the_sensor_is_stopped_by_default_and_says_what_it_did(backfill: Backfill, webhook: Webhook) -> None:  # noqa: F811
    (sensor,) = [sensor for sensor in backfill.defs.sensors or () if sensor.name == "alerts"]
    assert isinstance(sensor, dg.SensorDefinition)
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED

    def tick(pipeline: PipelineResource) -> str:
        context = dg.build_sensor_context(instance=backfill.house.instance, resources={"pipeline": pipeline})
        reason = sensor(context)
        assert isinstance(reason, dg.SkipReason)
        return reason.skip_message or ""

    assert tick(PipelineResource()) == "PAYOUT_ALERT_WEBHOOK is not set."
    named = PipelineResource(alert_webhook=webhook.url)
    assert tick(named) == "0 messages sent"
    backfill.subgraph.faults.add("status", status=404, text="gone")
    assert not backfill.run(WORKER_JOB, KEYS[0]).success
    webhook.status = 500
    assert "1 waiting: The alert webhook answered HTTP 500" in tick(named)
    webhook.status = 200
    assert tick(named) == "1 message sent"
    assert len(webhook.taken) == 1
