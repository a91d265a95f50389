"""A backfill over two Celery workers that share no directory, one of which dies in the middle; judged by the oracle.

PostgreSQL keeps Dagster's storage, Redis the tasks, an S3 server the ledger, Redis or PostgreSQL the rate limit and the
locks, ClickHouse is spoken to over HTTP. ``make test-cluster`` installs what this needs.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from payout_pipeline.subgraph.generate import GeneratedData, expected_vectors, generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.clickhouse_front import USERS, Front, running
from payout_pipeline_tests.cluster.machines import Machine, cluster_environment, objects_of, texts_below
from payout_pipeline_tests.cluster.services import missing_parts, postgres_server, redis_server, s3_server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing_parts()), reason=f"not installed: {', '.join(missing_parts())}"),
    pytest.mark.timeout(900),
]

WORKERS = 16
IDS = 16_000
BATCH = 100
BUCKET = "payout-cluster"
PREFIX = "runtime"
LIMIT, WINDOW = 50, 10.0
SLOTS = 2  # runs at a time on each machine
IN_FLIGHT = 4  # requests at a time in each run
STORED = (
    "SELECT condition_id, payout_numerators, payout_denominator, winning_index, source"
    " FROM default.resolutions_external_ingest ORDER BY ALL"
)
PARTITIONS = [f"worker_{number:02d}_of_{WORKERS}" for number in range(1, WORKERS + 1)]


@dataclass
class Cluster:
    """Everything that is running, and what it has to keep to itself."""

    directory: Path
    data: GeneratedData
    subgraph: SubgraphServer
    clickhouse: Front
    s3: dict[str, str]
    control: Machine
    machines: list[Machine]
    postgres_url: str
    secrets: list[str]

    def runs(self) -> list[dict[str, Any]]:
        """The runs of Dagster: id, partition (None for the view), status, oldest first."""
        import psycopg

        with psycopg.connect(self.postgres_url) as connection:
            rows = connection.execute("SELECT run_id, partition, status FROM runs ORDER BY id").fetchall()
        return [{"id": run, "partition": partition, "status": status} for run, partition, status in rows]

    def last_status(self) -> dict[str | None, str]:
        """Of each partition its latest run's status."""
        return {run["partition"]: run["status"] for run in self.runs()}

    def events(self) -> str:
        """Everything in Dagster's event log, as text."""
        import psycopg

        with psycopg.connect(self.postgres_url) as connection:
            rows = connection.execute("SELECT event FROM event_logs").fetchall()
            runs = connection.execute("SELECT run_body FROM runs").fetchall()
        return "\n".join(str(text) for (text,) in [*rows, *runs])

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of ClickHouse as its owner reads them."""
        import clickhouse_connect

        host, port = self.clickhouse.url.removeprefix("http://").split(":")
        user = "default"
        client = clickhouse_connect.get_client(
            host=host, port=int(port), username=user, password=USERS[user]["password"]
        )
        try:
            return [tuple(row) for row in client.query(sql).result_rows]
        finally:
            client.close()


@pytest.fixture(params=["redis", "postgresql"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        data = generate(IDS, 20_261, tmp_path / "data")
        _, redis_url = stack.enter_context(redis_server(tmp_path / "redis"))
        _, urls = stack.enter_context(postgres_server(tmp_path / "postgres", ["dagster", "limiter"]))
        _, s3 = stack.enter_context(s3_server(tmp_path / "s3", BUCKET))
        clickhouse = stack.enter_context(running(tmp_path / "clickhouse"))
        token = secrets.token_hex(16)
        subgraph = stack.enter_context(
            SubgraphServer(
                SubgraphConfig(
                    conditions=data.conditions, rate_limit=f"{LIMIT}/{WINDOW:g}s", latency=0.3, jitter=0.1, token=token
                )
            )
        )
        limiter = {"redis": redis_url.removesuffix("/0") + "/1", "postgresql": urls["limiter"]}[request.param]
        environment = cluster_environment(
            urls["dagster"],
            redis_url,
            {
                **s3,
                "PAYOUT_WORKERS": str(WORKERS),
                "PAYOUT_RUNTIME_DIR": f"s3://{BUCKET}/{PREFIX}",
                "PAYOUT_LIMITER_URL": limiter,
                "PAYOUT_PNL_VIEW": "",
                "GOLDSKY_ENDPOINT": subgraph.url,
                "GOLDSKY_API_TOKEN": token,
                "GOLDSKY_RATE_LIMIT": f"{LIMIT}/{WINDOW:g}s",
                "GOLDSKY_BATCH_SIZE": str(BATCH),
                "GOLDSKY_CONCURRENT_REQUESTS": str(IN_FLIGHT),
                "CLICKHOUSE_HOST": clickhouse.url,
                "CLICKHOUSE_USER": "writer",
                "CLICKHOUSE_PASSWORD": USERS["writer"]["password"],
            },
        )
        names = ("control", "machine-a", "machine-b")
        control, *machines = [Machine.install(tmp_path / name, environment, data.ids) for name in names]
        found = Cluster(
            directory=tmp_path,
            data=data,
            subgraph=subgraph,
            clickhouse=clickhouse,
            s3=s3,
            control=control,
            machines=machines,
            postgres_url=urls["dagster"],
            secrets=[
                token,
                USERS["writer"]["password"],
                s3["AWS_SECRET_ACCESS_KEY"],
                environment["DAGSTER_POSTGRES_PASSWORD"],
                redis_url.partition("//:")[2].partition("@")[0],
            ],
        )
        found.query(
            "CREATE TABLE default.market_resolutions_final (condition_id_norm FixedString(64),"
            " payout_numerators Array(UInt64), payout_denominator UInt64, winning_index Int32, resolved_at DateTime,"
            " version UInt64) ENGINE = ReplacingMergeTree(version) ORDER BY condition_id_norm"
        )
        migrated = control.run("dagster", "instance", "migrate")
        assert migrated.returncode == 0, migrated.stdout + migrated.stderr
        yield found


def wait_until(condition: Any, seconds: float, what: str, cluster: Cluster) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n\n".join(
                f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in cluster.directory.glob("*/*.log")
            )
            pytest.fail(f"not within {seconds:g} s: {what}; {Counter(cluster.last_status().values())}\n{logs}")
        time.sleep(0.5)


def ended(status: str | None) -> bool:
    return status in ("SUCCESS", "FAILURE", "CANCELED")


def test_two_machines_one_of_which_dies_store_exactly_what_one_machine_stores(cluster: Cluster) -> None:
    control, (first, second) = cluster.control, cluster.machines
    with ExitStack() as stack:
        daemon = control.start_daemon()
        stack.callback(daemon.stop)
        celery_a, celery_b = first.start_celery(SLOTS), second.start_celery(SLOTS)
        stack.callback(celery_a.stop)
        stack.callback(celery_b.stop)

        doctor = control.run("payout-pipeline", "doctor")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        control.launch_backfill()
        a_third = IDS // BATCH // 3
        wait_until(lambda: len(cluster.subgraph.log.batches()) >= a_third, 180, "a third of the requests", cluster)
        celery_b.kill()
        answered_before = sum(entry.id_count for entry in cluster.subgraph.log.batches())
        assert answered_before < IDS

        wait_until(
            lambda: len(last := cluster.last_status()) == WORKERS and all(map(ended, last.values())),
            300,
            "every run ended, those of the dead machine by run monitoring",
            cluster,
        )
        failed = [partition for partition, status in cluster.last_status().items() if status != "SUCCESS"]
        assert 1 <= len(failed) <= SLOTS, "the machine that died had runs, and nobody else failed"

        # O4: the view is not rebuilt over what is missing, and the run says so.
        control.launch("truth_view")
        wait_until(lambda: ended(cluster.last_status().get(None)), 120, "the view's run ended", cluster)
        assert cluster.last_status()[None] == "FAILURE"
        assert all(str(partition) in cluster.events() for partition in failed)
        report = control.run("payout-pipeline", "report")
        assert report.returncode == 1, report.stdout + report.stderr

        control.launch_backfill([str(partition) for partition in failed])
        wait_until(
            lambda: all(cluster.last_status()[partition] == "SUCCESS" for partition in PARTITIONS),
            200,
            "the failed workers were run again, on the machine that is left",
            cluster,
        )
        control.launch("truth_view")
        wait_until(
            lambda: [run["status"] for run in cluster.runs() if run["partition"] is None][1:] == ["SUCCESS"],
            120,
            "the view was rebuilt",
            cluster,
        )

        report = control.run("payout-pipeline", "report", "--json")
        assert report.returncode == 0, report.stdout + report.stderr
        status = control.run("payout-pipeline", "status", "--json")
        assert status.returncode == 0, status.stdout + status.stderr
        assert [worker["state"] for worker in json.loads(status.stdout)["workers"]] == ["done"] * WORKERS
        said = "".join(done.stdout + done.stderr for done in (doctor, report, status))
        assert not [secret for secret in cluster.secrets if secret in said]

    truth = {
        identity: (list(numerators), denominator)
        for identity, numerators, denominator in expected_vectors(cluster.data.conditions)
    }
    judge_stored(cluster, truth)
    judge_ledger(cluster, truth)
    judge_requests(cluster, truth)
    judge_secrets(cluster)
    judge_directories(cluster)
    assert one_machine(cluster) == stored(cluster)


def stored(cluster: Cluster) -> list[tuple[Any, ...]]:
    """The rows of the target as they lie there, duplicates included."""
    return [tuple(map(plain, row)) for row in cluster.query(STORED)]


def judge_stored(cluster: Cluster, truth: dict[str, tuple[list[int], int]]) -> None:
    """O1 and O2: exactly the resolved ids, exact vectors, no raw duplicate, one row per condition in the view."""
    rows = stored(cluster)
    assert Counter(row[0] for row in rows) == Counter(list(truth))
    assert {row[0]: (list(row[1]), row[2]) for row in rows} == truth
    assert {row[4] for row in rows} == {"goldsky-api"}
    view = cluster.query(
        "SELECT condition_id, payout_numerators, payout_denominator FROM cascadian_clean.vw_resolutions_truth"
    )
    assert Counter(row[0] for row in view) == Counter(list(truth))
    assert {row[0]: (list(row[1]), row[2]) for row in view} == truth


def judge_ledger(cluster: Cluster, truth: dict[str, tuple[list[int], int]]) -> None:
    """O3: every id of the file is in exactly one row of one worker's ledger, and the statuses add up."""
    import pandas as pd

    objects = objects_of(cluster.s3, BUCKET, f"{PREFIX}/goldsky_payouts/")
    ledgers = {key: body for key, body in objects.items() if key.endswith("/ledger.parquet")}
    assert sorted(key.split("/")[2] for key in ledgers) == PARTITIONS
    assert not [key for key in objects if "/_running/" in key], "nothing half-done is left"
    rows = pd.concat(pd.read_parquet(BytesIO(body)) for body in ledgers.values())
    ids = cluster.data.ids.read_text().split()
    assert Counter(rows["condition_id"]) == Counter(ids)
    assert Counter(rows["status"]) == Counter(
        resolved=cluster.data.resolved, unresolved=cluster.data.unresolved, absent=cluster.data.absent
    )
    assert set(rows.loc[rows["status"] == "resolved", "condition_id"]) == set(truth)


def judge_requests(cluster: Cluster, truth: Iterable[str]) -> None:
    """O5 over both machines, by the server's own count; and B1: at most what was in flight was asked again."""
    log = cluster.subgraph.log
    assert log.max_in_window(WINDOW) <= LIMIT
    assert log.statuses()[429] <= 3
    asked = Counter(identity.removeprefix("0x") for entry in log.batches() for identity in entry.ids)
    assert set(asked) == set(cluster.data.ids.read_text().split())
    # Absent ids need a second answer anyway; of the others only those in flight on the machine that died are asked again.
    largest = max(entry.id_count for entry in log.batches())
    assert sum(asked[identity] - 1 for identity in truth) <= SLOTS * IN_FLIGHT * largest


def judge_secrets(cluster: Cluster) -> None:
    """O6: no secret in logs, events, objects or tables."""
    texts = {"events of Dagster": cluster.events(), "rows of ClickHouse": json.dumps(stored(cluster), default=str)}
    texts |= {key: body.decode(errors="replace") for key, body in objects_of(cluster.s3, BUCKET).items()}
    for machine in (cluster.control, *cluster.machines):
        texts |= texts_below(machine.directory)
    for place, text in texts.items():
        for secret in cluster.secrets:
            assert secret not in text, f"a secret is in {place}"


def judge_directories(cluster: Cluster) -> None:
    """The machines kept nothing of the ledger to themselves, and nothing of the runtime is outside the bucket."""
    for machine in cluster.machines:
        kept = [str(path.relative_to(machine.directory)) for path in machine.directory.rglob("*.parquet")]
        assert kept == []
        assert not [path for path in machine.directory.iterdir() if path.name.startswith("s3:")]


def one_machine(cluster: Cluster) -> list[tuple[Any, ...]]:
    """The same backfill by `payout-pipeline backfill` alone on one machine with the embedded database, no cluster."""
    with SubgraphServer(SubgraphConfig(conditions=cluster.data.conditions)) as subgraph:
        keep = ("PATH", "LANG")
        environment = {name: cluster.control.env[name] for name in keep} | {
            "PAYOUT_WORKERS": "4",
            "PAYOUT_PNL_VIEW": "",
            "PAYOUT_MIN_UNIQUE_CONDITIONS": "0.7",
            "GOLDSKY_ENDPOINT": subgraph.url,
            "GOLDSKY_RATE_LIMIT": "10000/1s",
        }
        machine = Machine.install(cluster.directory / "single", environment, cluster.data.ids)
        for name in ("DAGSTER_HOME", "PYTHONPATH"):
            del machine.env[name]
        (machine.directory / "home").rename(machine.directory / "unused")
        done = machine.run("payout-pipeline", "backfill", timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        answer = machine.run("payout-pipeline", "sql", "--format", "JSONCompactEachRow", STORED)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return [tuple(map(plain, json.loads(line))) for line in answer.stdout.splitlines() if line.strip()]


def plain(value: Any) -> Any:
    """A value of a row alike whether it came as a Python object or as JSON, which may quote 64-bit numbers."""
    if isinstance(value, list | tuple):
        return [int(number) for number in value]
    return int(value) if isinstance(value, str) and len(value) < 20 and value.lstrip("-").isdecimal() else value
