"""PAYOUT_CLICKHOUSE_CLUSTER and replicated tables, on the two hosts of ``clickhouse_cluster.py``: see there what is real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from payout_pipeline.errors import ConfigurationError, WarehousePermanentError
from payout_pipeline.settings import load_settings
from payout_pipeline.subgraph.generate import expected_vectors, generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.verification.resolutions_external_ingest import compare_stored as compare_rows
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.faults import ClickHouseRefusedError
from payout_pipeline.warehouse.load import load_rows
from payout_pipeline.warehouse.schema import inspect_table
from payout_pipeline.warehouse.target import ensure_target
from payout_pipeline.warehouse.view import rebuild_view
from payout_pipeline_tests.clickhouse_cluster import CLUSTER, cluster
from payout_pipeline_tests.clickhouse_front import Front
from payout_pipeline_tests.running import Place
from payout_pipeline_tests.warehouse.test_warehouse_load import EXPECTED, ROWS, SHAPES, STORED
from payout_pipeline_tests.warehouse_fixtures import WRITER, World, condition, ledger, other, resolved

DATABASES = iter(f"d{number}" for number in range(1_000_000))
MARKET = (
    "CREATE TABLE {db}.market_resolutions_final ON CLUSTER 'pair' (condition_id_norm FixedString(64), payout_numerators "
    "Array(UInt8), payout_denominator UInt8, updated_at DateTime) ENGINE = ReplicatedReplacingMergeTree(updated_at) "
    "ORDER BY condition_id_norm"
)
VIEW = "SELECT condition_id, payout_numerators, payout_denominator, winning_index, source FROM {db}_clean.truth"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, Front]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as both:
        yield both


@pytest.fixture
def pair(hosts: tuple[Front, Front], tmp_path: Path) -> list[World]:
    """A new name of a database, which nobody has made, as each of the two hosts sees it."""
    database = next(DATABASES)
    made = []
    for host in hosts:
        settings = load_settings(
            {},
            clickhouse_host=host.url,
            clickhouse_user=WRITER[0],
            clickhouse_password=WRITER[1],
            clickhouse_wait_seconds=20,
            clickhouse_cluster=CLUSTER,
            runtime_dir=str(tmp_path),
            target_table=f"{database}.resolutions_external_ingest",
            truth_view=f"{database}_clean.truth",
            market_resolutions_table=f"{database}.market_resolutions_final",
            pnl_view="",
        )
        made.append(World("cluster", settings, Warehouse(settings), database, host))
    return made


def sent(world: World, *beginnings: str) -> list[str]:
    """What the pipeline sent about the test's database, without comments, by its first words."""
    assert world.front is not None
    texts = []
    for one in world.front.counters().statements:
        text = " ".join(line for line in one["sql"].splitlines() if not line.startswith("--")).strip()
        if f"`{world.database}" in text and text.startswith(beginnings):
            texts.append(text)
    return texts


def load(world: World, *rows: dict[str, Any], allow_removals: bool = False) -> Any:
    with world.session() as session:
        target = ensure_target(session, world.target_name, world.settings.clickhouse_cluster)
        assert target.table.engine == "ReplicatedReplacingMergeTree"
        result = load_rows(session, target, ledger(*rows), allow_removals=allow_removals)
        assert compare_rows(session, target, ledger(*rows)).ok
    return result


@pytest.mark.parametrize("name", [CLUSTER, "{cluster}"])
@pytest.mark.slow
def test_table_rows_and_view_are_the_same_on_both_hosts_of_a_cluster(pair: list[World], name: str) -> None:
    first, second = (world.with_settings(clickhouse_cluster=name) for world in pair)
    assert load(first, *ROWS).inserted_new == 5
    assert load(first, *ROWS).written == 0
    first.run(MARKET, f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(1)}', [1, 0], 1, now())")
    with first.session() as session:
        rebuild_view(session, first.settings)

    assert second.read(STORED) == first.read(STORED) == EXPECTED
    truth = Counter({(*row[:4], row[5]): 1 for row in EXPECTED if row[0] != condition(1)})
    truth[(condition(1), (1, 0), 1, 0, "market_resolutions_final")] += 1
    assert second.read(VIEW) == first.read(VIEW) == truth
    names = (
        "SELECT engine_full, uuid FROM system.tables WHERE database = '{db}' AND name = 'resolutions_external_ingest'"
    )
    assert second.read(names) == first.read(names)

    changed = (resolved(1, 1, 0), *ROWS[1:3], other(4, "unresolved"), *ROWS[4:])
    result = load(first, *changed, allow_removals=True)
    assert (result.inserted_changed, result.removed) == (1, 1)
    after = {row: 1 for row in EXPECTED if row[0] not in (condition(1), condition(4))}
    after[(condition(1), (1, 0), 1, 0, None, "goldsky-api")] = 1
    assert second.read(f"{STORED} FINAL") == first.read(f"{STORED} FINAL") == after

    definitions = sent(first, "CREATE", "DELETE")
    assert {text.split("(")[0].split("`")[0].strip() for text in definitions} == {
        "CREATE DATABASE IF NOT EXISTS",
        "CREATE TABLE IF NOT EXISTS",
        "CREATE OR REPLACE VIEW",
        "DELETE FROM",
    }
    assert all(f"ON CLUSTER '{name}'" in text for text in definitions)
    assert not any("ON CLUSTER" in text for text in sent(first, "INSERT"))


def test_reads_that_prove_a_load_of_a_replicated_table_are_consistent(pair: list[World]) -> None:
    first, _ = pair
    load(first, resolved(1, 0, 1))
    assert first.front is not None
    statements = first.front.counters().statements
    proofs = [
        one["sql"]
        for one in statements
        if f"`{first.database}" in one["sql"] and "{" in one["sql"] and "FINAL" in one["sql"]
    ]
    proofs = [sql for sql in proofs if "AS state" in sql or "AS written" in sql]
    assert len(proofs) == 3  # before the insert, after it, and by the comparison
    assert all("SETTINGS select_sequential_consistency = 1" in sql for sql in proofs)


def test_a_cluster_that_the_server_does_not_know_is_refused_by_its_name(pair: list[World]) -> None:
    world = pair[0].with_settings(clickhouse_cluster="elsewhere")
    with world.session() as session, pytest.raises(WarehousePermanentError, match=r"code 701.*'elsewhere'") as caught:
        ensure_target(session, world.target_name, "elsewhere")
    assert "To repair it: check PAYOUT_CLICKHOUSE_CLUSTER" in str(caught.value)
    assert f"CREATE DATABASE IF NOT EXISTS `{world.database}` ON CLUSTER 'elsewhere'" in str(caught.value)


def test_what_another_host_refuses_is_said_with_its_name(pair: list[World]) -> None:
    first, _ = pair
    first.run("CREATE DATABASE {db} ON CLUSTER 'pair'", MARKET)
    load(first)
    first.run("CREATE DATABASE {db}_clean")  # on one host only
    with (
        first.session() as session,
        pytest.raises(ClickHouseRefusedError, match=r"rebuilding the view .*code 81 .*r2\.test:9000"),
    ):
        rebuild_view(session, first.settings)


@pytest.mark.parametrize("shape", ["ours", "uint32 without fetched_at", "int64, by source", "a version of the user's"])
def test_a_replicated_table_that_exists_is_used_as_it_is(pair: list[World], shape: str) -> None:
    """With a path of its own, and without the cluster being named in a setting."""
    first, second = (world.with_settings(clickhouse_cluster=None) for world in pair)
    head, _, engine = SHAPES[shape].partition("ENGINE = ")
    family, _, rest = engine.partition(" ")
    name, _, version = family.rstrip(")").partition("(")
    where = ", ".join(filter(None, [f"'/clickhouse/own/{first.database}/{{shard}}'", "'{replica}'", version]))
    for world in (first, second):
        world.run(
            "CREATE DATABASE {db}",
            f"CREATE TABLE {{db}}.resolutions_external_ingest ({head} ENGINE = Replicated{name}({where}) {rest}",
        )
    with first.session() as session:
        before = inspect_table(session, first.target_name)
        target = first.target(session)
        assert target.table == before
        assert target.table.engine == f"Replicated{name}"
        assert target.version_column == (version or None)
        rows = (resolved(1, 0, 1), resolved(2, 27, 23, at=1_700_000_000), other(5, "absent"))
        changed = (resolved(1, 1, 0), *rows[1:])
        assert load_rows(session, target, ledger(*rows)).inserted_new == 2
        assert load_rows(session, target, ledger(*rows)).written == 0
        assert load_rows(session, target, ledger(*changed)).inserted_changed == 1
        assert compare_rows(session, target, ledger(*changed)).ok
    final = f"{STORED} {target.table.final}"
    assert (
        first.read(final)
        == second.read(final)
        == {
            (condition(1), (1, 0), 1, 0, None, "goldsky-api"): 1,
            (condition(2), (27, 23), 50, 0, 1_700_000_000, "goldsky-api"): 1,
        }
    )


def test_a_cluster_without_a_server_is_refused(tmp_path: Path) -> None:
    settings = load_settings({}, clickhouse_cluster=CLUSTER, runtime_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"PAYOUT_CLICKHOUSE_CLUSTER.*CLICKHOUSE_HOST"):
        Warehouse(settings)


@pytest.mark.slow
def test_the_whole_backfill_on_a_cluster_leaves_the_same_rows_and_view_on_both_hosts(
    hosts: tuple[Front, Front], pair: list[World], tmp_path: Path
) -> None:
    data = generate(3_000, 7, tmp_path / "data")
    first, second = pair
    first.run("CREATE DATABASE {db} ON CLUSTER 'pair'", MARKET)
    names = {
        "CLICKHOUSE_HOST": hosts[0].url,
        "CLICKHOUSE_USER": WRITER[0],
        "CLICKHOUSE_PASSWORD": WRITER[1],
        "PAYOUT_CLICKHOUSE_CLUSTER": CLUSTER,
        "PAYOUT_TARGET_TABLE": first.settings.target_table,
        "PAYOUT_TRUTH_VIEW": first.settings.truth_view,
        "PAYOUT_MARKET_RESOLUTIONS_TABLE": first.settings.market_resolutions_table,
        "PAYOUT_PNL_VIEW": "",
        "PAYOUT_WORKERS": "2",
    }
    with SubgraphServer(SubgraphConfig(conditions=data.conditions)) as server:
        place = Place(tmp_path, server.url, data.ids, names)
        done = place.run("backfill")
        assert done.returncode == 0, done.stdout[-6000:]
    truth = Counter(expected_vectors(data.conditions))
    for world in pair:
        rows = "SELECT condition_id, payout_numerators, payout_denominator FROM {db}"
        assert world.read(f"{rows}.resolutions_external_ingest") == truth
        assert world.read(f"{rows}_clean.truth") == truth
    assert not second.read("SELECT name FROM system.tables WHERE database = '{db}' AND engine = 'ReplacingMergeTree'")
