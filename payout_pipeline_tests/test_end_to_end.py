"""The main job, as users run it: every way in gives the same stored rows, and nothing is lost, doubled or rounded."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from payout_pipeline.ids.chunks import partition_key
from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.running import Place, as_counter, truth_of

pytestmark = pytest.mark.slow

# 37 % of the real ids have a known outcome.
REAL_BAR = {"PAYOUT_MIN_UNIQUE_CONDITIONS": "0.3"}


def split_unknown(real_data: Path, directory: Path) -> tuple[Path, int]:
    """Of the ids without a known outcome every second one is served as unresolved, the others not at all."""
    known = set(truth_of(real_data / "resolutions.csv"))
    unknown = [i for i in (real_data / "condition_ids.txt").read_text().split() if i not in known]
    file = directory / "unresolved.txt"
    file.write_text("\n".join(unknown[::2]) + "\n")
    return file, len(unknown[::2])


@pytest.mark.parametrize("schema", ["payouts", pytest.param("numerators", marks=pytest.mark.slow)])
def test_the_backfill_command_stores_all_real_vectors_and_a_second_run_changes_nothing(tmp_path, real_data, schema):
    unresolved, unresolved_count = split_unknown(real_data, tmp_path)
    truth = truth_of(real_data / "resolutions.csv")
    config = SubgraphConfig(conditions=real_data / "resolutions.csv", unresolved=unresolved, schema=schema)
    with SubgraphServer(config) as server:
        place = Place(tmp_path, server.url, real_data / "condition_ids.txt", REAL_BAR)
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
        assert place.stored() == as_counter(truth)
        assert place.ledger_counts() == Counter(
            resolved=len(truth), unresolved=unresolved_count, absent=32_314 - len(truth) - unresolved_count
        )
        assert place.query(
            "SELECT count() AS n, uniqExact(condition_id) AS u FROM cascadian_clean.vw_resolutions_truth"
        ) == [{"n": len(truth), "u": len(truth)}]
        before = place.query("SELECT condition_id, fetched_at FROM default.resolutions_external_ingest ORDER BY ALL")

        again = place.run("backfill")
        assert again.returncode == 0, again.stdout
        after = place.query("SELECT condition_id, fetched_at FROM default.resolutions_external_ingest ORDER BY ALL")
    assert after == before


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("schema", ["payouts", "numerators"])
def test_dagster_asset_materialize_stores_all_real_vectors(tmp_path, real_data, schema):
    unresolved, unresolved_count = split_unknown(real_data, tmp_path)
    truth = truth_of(real_data / "resolutions.csv")
    config = SubgraphConfig(conditions=real_data / "resolutions.csv", unresolved=unresolved, schema=schema)
    with SubgraphServer(config) as server:
        place = Place(tmp_path, server.url, real_data / "condition_ids.txt", REAL_BAR)
        for worker in range(1, 5):
            done = place.materialize("goldsky_payouts,resolutions_external_ingest", partition_key(worker, 4))
            assert done.returncode == 0, done.stdout
        view = place.materialize("vw_resolutions_truth")
        assert view.returncode == 0, view.stdout
    assert place.stored() == as_counter(truth)
    assert place.ledger_counts() == Counter(
        resolved=len(truth), unresolved=unresolved_count, absent=32_314 - len(truth) - unresolved_count
    )
    assert place.run("report").returncode == 0


def _generated(tmp_path: Path, count: int, **config: object) -> tuple[SubgraphServer, Place, Counter]:
    data = generate(count, 7, tmp_path / "data")
    server = SubgraphServer(SubgraphConfig(conditions=data.conditions, **config))
    place = Place(tmp_path, "", data.ids)
    from payout_pipeline.subgraph.generate import expected_vectors

    truth = Counter(expected_vectors(data.conditions))
    return server, place, truth


def test_dagster_asset_materialize_gives_the_same_rows_and_the_view_refuses_while_a_worker_is_missing(tmp_path):
    server, place, truth = _generated(tmp_path, 4_000)
    place.extra["PAYOUT_WORKERS"] = "2"
    with server:
        place.endpoint = server.url
        first = place.materialize("goldsky_payouts,resolutions_external_ingest", partition_key(1, 2))
        assert first.returncode == 0, first.stdout
        refused = place.materialize("vw_resolutions_truth")
        assert refused.returncode == 1
        assert "1 of 2 workers are missing" in refused.stdout
        assert "worker_2_of_2 has no finished ledger" in refused.stdout
        second = place.materialize("goldsky_payouts,resolutions_external_ingest", partition_key(2, 2))
        assert second.returncode == 0, second.stdout
        view = place.materialize("vw_resolutions_truth")
        assert view.returncode == 0, view.stdout
    assert place.stored() == truth
    assert place.run("report").returncode == 0


def test_a_scan_of_the_subgraph_stores_every_resolved_condition_and_the_same_rows_as_a_list(tmp_path):
    server, place, truth = _generated(tmp_path, 3_000)
    place.extra.update(PAYOUT_WORKERS="2", GOLDSKY_MODE="scan", PAYOUT_MIN_UNIQUE_CONDITIONS="0")
    with server:
        place.endpoint = server.url
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
        assert place.stored() == truth
        assert place.ledger_counts() == Counter(resolved=len(truth))
        before = place.query("SELECT condition_id, fetched_at FROM default.resolutions_external_ingest ORDER BY ALL")
        listed = place.run("backfill", GOLDSKY_MODE="list", PAYOUT_MIN_UNIQUE_CONDITIONS="0.7")
        assert listed.returncode == 0, listed.stdout
        after = place.query("SELECT condition_id, fetched_at FROM default.resolutions_external_ingest ORDER BY ALL")
    assert after == before


@pytest.mark.slow
def test_b1_killed_in_the_middle_twice_then_finished_without_asking_a_finished_batch_again(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server, place, truth = _generated(tmp_path, 6_000, latency=0.25)
    place.extra.update(GOLDSKY_BATCH_SIZE="100", GOLDSKY_CONCURRENT_REQUESTS="2", PAYOUT_WORKERS="2")
    place.extra["GOLDSKY_BATCHES_PER_REQUEST"] = "1"
    with server:
        place.endpoint = server.url
        for _ in range(2):
            already = len(server.log.batches())
            process = place.start("backfill")
            deadline = time.monotonic() + 60
            while len(server.log.batches()) < already + chance.randrange(8, 16) and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
            _until_idle(server)
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
    assert place.stored() == truth
    asked = server.log.asked_ids(status=200)
    again = sum(count - 1 for count in asked.values())
    # Two kills, two workers, two requests in flight each, 100 ids a batch; and an absence needs two answers.
    assert again <= 2 * 2 * 2 * 100 + place.ledger_counts()["absent"], f"{again} ids were asked again"
    assert len(asked) == 6_000


def _until_idle(server: SubgraphServer, seconds: float = 1.0) -> None:
    """Orphaned workers stop when their parent dies: wait until nothing is asked any more."""
    count, since = len(server.log), time.monotonic()
    deadline = since + 30
    while time.monotonic() - since < seconds and time.monotonic() < deadline:
        time.sleep(0.05)
        if len(server.log) != count:
            count, since = len(server.log), time.monotonic()


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_b2_a_signal_ends_the_backfill_in_order_and_it_is_continued(tmp_path, number, code):
    server, place, truth = _generated(tmp_path, 3_000, latency=0.2)
    place.extra.update(GOLDSKY_BATCH_SIZE="100", GOLDSKY_CONCURRENT_REQUESTS="2", PAYOUT_WORKERS="2")
    place.extra["GOLDSKY_BATCHES_PER_REQUEST"] = "1"
    with server:
        place.endpoint = server.url
        process = place.start("backfill")
        deadline = time.monotonic() + 60
        while len(server.log.batches()) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == code, output
        assert "Interrupted" in output
        # Dagster repeats an interrupted step by its retry policy, unless it is told not to.
        assert len(server.log.batches()) < 30, "the worker went on after the signal"
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
    assert place.stored() == truth
    again = sum(count - 1 for count in server.log.asked_ids(status=200).values())
    assert again <= 2 * 2 * 100 + place.ledger_counts()["absent"], "more than the requests in flight was asked again"


BAD = {
    "no input file": ({"CONDITION_IDS_FILE": "/nonexistent/ids.txt"}, 2, "/nonexistent/ids.txt"),
    "unknown variable": ({"PAYOUT_WORKRES": "4"}, 2, "did you mean PAYOUT_WORKERS"),
    "a runtime directory that is a file": ({"PAYOUT_RUNTIME_DIR": __file__}, 1, "test_end_to_end.py"),
    "clickhouse not reachable": ({"CLICKHOUSE_HOST": "127.0.0.1", "CLICKHOUSE_PORT": "9"}, 1, "127.0.0.1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration_is_said_clearly_before_anything_is_asked(tmp_path, name):
    extra, code, said = BAD[name]
    server, place, _ = _generated(tmp_path, 100)
    with server:
        place.endpoint = server.url
        done = place.run("backfill", **{"PAYOUT_WORKERS": "1", **extra})
        assert done.returncode == code, done.stdout
        assert said in done.stdout
        assert "Traceback" not in done.stdout
        assert len(server.log) == 0


def test_a_bad_line_is_refused_with_its_number_before_anything_is_asked(tmp_path):
    server, place, _ = _generated(tmp_path, 100)
    lines = place.ids_file.read_text().splitlines()
    lines[41] = lines[41][:-1] + "g"
    place.ids_file.write_text("\n".join(lines))
    with server:
        place.endpoint = server.url
        done = place.run("backfill")
        assert done.returncode == 2, done.stdout
        assert "line 42" in done.stdout
        assert len(server.log) == 0


def test_a_worker_number_out_of_range_is_refused(tmp_path):
    _, place, _ = _generated(tmp_path, 100)
    done = place.run("backfill", "--workers", "5", GOLDSKY_ENDPOINT="http://127.0.0.1:9/gn")
    assert done.returncode == 2
    assert "use 1 to 4" in done.stdout


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere", "404"),
        pytest.param("/subgraphs/name/nope", "does not exist", marks=pytest.mark.slow),
        pytest.param("/", "Not found", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_endpoint_is_said_after_one_probe(tmp_path, path, said):
    server, place, _ = _generated(tmp_path, 100)
    with server:
        place.endpoint = server.base_url + path
        done = place.run("backfill", PAYOUT_WORKERS="1")
    assert done.returncode == 1, done.stdout
    assert said in done.stdout or "GOLDSKY_ENDPOINT" in done.stdout
    assert len(server.log) <= 1


def test_a_target_table_that_cannot_hold_the_vectors_is_refused_with_the_ddl_before_the_first_request(tmp_path):
    server, place, _ = _generated(tmp_path, 100)
    with server:
        place.endpoint = server.url
        place.run(
            "sql",
            "CREATE TABLE default.resolutions_external_ingest (condition_id String, payout_numerators String, "
            "payout_denominator String, winning_index Int32, resolved_at DateTime, source String) "
            "ENGINE = MergeTree ORDER BY condition_id",
        )
        done = place.run("backfill", PAYOUT_WORKERS="1")
        assert done.returncode == 1, done.stdout
        assert "payout_numerators" in done.stdout
        assert "CREATE TABLE" in done.stdout or "ALTER TABLE" in done.stdout
        assert len(server.log) == 0


@pytest.mark.slow
def test_a7_ids_that_answers_leave_out_without_a_word_are_found_by_a_second_answer(tmp_path):
    server, place, truth = _generated(tmp_path, 6_000)
    place.extra.update(GOLDSKY_BATCH_SIZE="300", PAYOUT_WORKERS="1")
    with server:
        place.endpoint = server.url
        fault = server.faults.add("omit_id", times=9)
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
        assert fault.struck == 9
    assert place.stored() == truth


@pytest.mark.slow
def test_a9_a_deployment_that_moved_between_interruption_and_continuation_means_a_new_snapshot(tmp_path):
    server, place, truth = _generated(tmp_path, 2_000, latency=0.5)
    place.extra.update(GOLDSKY_BATCH_SIZE="50", GOLDSKY_CONCURRENT_REQUESTS="2", PAYOUT_WORKERS="1")
    with server:
        place.endpoint = server.url
        process = place.start("backfill")
        deadline = time.monotonic() + 60
        while len(server.log.batches()) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
        assert len(server.log.batches()) < 40, "it was over before it could be interrupted"
        server.faults.add("deployment", deployment="QmTheOtherOne")
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout
    assert place.stored() == truth
    from payout_pipeline.ledger import Ledger

    info = Ledger(place.runtime, partition_key(1, 1)).finished()
    assert info is not None
    assert info.pin.deployment == "QmTheOtherOne"
