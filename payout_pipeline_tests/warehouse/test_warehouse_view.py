"""The truth view: one row per condition by a documented precedence, whatever the tables' types."""

from __future__ import annotations

import random
import time

import pytest

from payout_pipeline.errors import ConfigurationError, WarehousePermanentError, WarehouseSchemaError
from payout_pipeline.warehouse.load import load_rows
from payout_pipeline.warehouse.target import ensure_sources
from payout_pipeline.warehouse.view import rebuild_view
from payout_pipeline_tests.warehouse_fixtures import World, condition, ledger, resolved

MARKET = (
    "condition_id_norm FixedString(64), payout_numerators Array(UInt8), payout_denominator UInt8, "
    "winning_index UInt16 DEFAULT 0, resolved_at Nullable(DateTime), updated_at DateTime, source LowCardinality(String)) "
    "ENGINE = ReplacingMergeTree(updated_at) ORDER BY condition_id_norm"
)
GUIDE_MARKET = (
    "condition_id String, payout_numerators Array(Float64), payout_denominator Float64, winning_index Int32, "
    "resolved_at DateTime, source String) ENGINE = MergeTree ORDER BY condition_id"
)
EXTERNAL = (
    "condition_id String, payout_numerators Array(Int64), payout_denominator Int64, winning_index Int32, "
    "resolved_at DateTime, source LowCardinality(String), fetched_at DateTime) "
    "ENGINE = ReplacingMergeTree(fetched_at) ORDER BY (condition_id, source)"
)
VIEW = "SELECT * FROM {db}_clean.vw_resolutions_truth"
TYPES = {
    ("condition_id", "String"): 1,
    ("payout_numerators", "Array(UInt64)"): 1,
    ("payout_denominator", "UInt64"): 1,
    ("winning_index", "Int32"): 1,
    ("resolved_at", "Nullable(DateTime('UTC'))"): 1,
    ("source", "String"): 1,
}


def rebuild(world: World) -> str:
    with world.session() as session:
        return rebuild_view(session, world.settings)


def vectors(world: World) -> dict[tuple[str, tuple[int, ...], int, str], int]:
    return world.read(
        "SELECT condition_id, payout_numerators, payout_denominator, source FROM {db}_clean.vw_resolutions_truth"
    )


def test_the_view_has_the_guides_columns_in_its_order(world: World) -> None:
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}")
    rebuild(world)
    types = "SELECT name, type FROM system.columns WHERE database = '{db}_clean' AND table = 'vw_resolutions_truth'"
    assert world.read(types) == TYPES
    with world.session() as session:
        names = session.text(VIEW.replace("{db}", world.database), doing="reading", fmt="TSVWithNames").split()
    assert names[:6] == [name for name, _ in TYPES]


def test_the_users_resolutions_come_first_and_goldskys_fill_what_they_lack(world: World) -> None:
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}",
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(1)}', [1, 0], 1, 0, '2025-01-01 00:00:00', now(), 'x')",
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(9)}', [], 0, 0, NULL, now(), 'x')",
    )
    with world.session() as session:
        load_rows(session, world.target(session), ledger(resolved(1, 0, 1), resolved(2, 27, 23), resolved(9, 1, 1, 1)))
    rebuild(world)
    assert vectors(world) == {
        (condition(1), (1, 0), 1, "market_resolutions_final"): 1,
        (condition(2), (27, 23), 50, "goldsky-api"): 1,
        (condition(9), (1, 1, 1), 3, "goldsky-api"): 1,
    }


def test_unmerged_rows_upper_case_and_0x_never_make_a_second_row(world: World) -> None:
    one, two = condition(1), condition(2)
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}",
        "SYSTEM STOP MERGES {db}.market_resolutions_final" if world.kind != "http" else "SELECT 1",
    )
    for moment in ("2025-01-01", "2025-03-01", "2025-02-01"):
        vector = "[0, 1]" if moment == "2025-03-01" else "[1, 0]"
        world.run(
            f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{one}', {vector}, 1, 0, NULL, '{moment} 00:00:00', 'x')"
        )
    world.run(
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{two.upper()}', [1, 0], 1, 0, NULL, now(), 'x')",
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({EXTERNAL}",
    )
    for spelling in (one, "0x" + one, "0X" + two.upper(), two):
        world.run(
            "INSERT INTO {db}.resolutions_external_ingest VALUES "
            f"('{spelling}', [0, 1], 1, 1, toDateTime(0), 'other', now()), "
            f"('{spelling.replace(condition(1)[:4], 'abcd')}', [0, 1], 1, 1, toDateTime(0), 'other', now())"
        )
    rebuild(world)
    found = vectors(world)
    assert set(found.values()) == {1}
    assert len({key[0] for key in found}) == sum(found.values())
    assert (one, (0, 1), 1, "market_resolutions_final") in found
    assert (two, (1, 0), 1, "market_resolutions_final") in found


def test_an_id_in_normal_form_counts_before_a_newer_one_that_is_written_otherwise(world: World) -> None:
    one, two = condition(1), condition(2)
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET.replace('FixedString(64)', 'String')}",
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({EXTERNAL}",
        "INSERT INTO {db}.market_resolutions_final VALUES "
        f"('{one}', [1, 0], 1, 0, NULL, '2025-01-01 00:00:00', 'x'), "
        f"('0x{one}', [0, 1], 1, 1, NULL, '2025-02-01 00:00:00', 'x')",
        "INSERT INTO {db}.resolutions_external_ingest VALUES "
        f"('{two}', [1, 0], 1, 0, toDateTime(0), 'chain', '2025-01-01 00:00:00'), "
        f"('0X{two.upper()}', [0, 1], 1, 1, toDateTime(0), 'goldsky-api', '2025-02-01 00:00:00')",
    )
    rebuild(world)
    assert vectors(world) == {(one, (1, 0), 1, "market_resolutions_final"): 1, (two, (1, 0), 1, "chain"): 1}


def test_a_market_row_counts_by_its_denominator_and_an_external_one_by_its_vector_too(world: World) -> None:
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}",
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({EXTERNAL}",
        "INSERT INTO {db}.market_resolutions_final VALUES "
        f"('{condition(1)}', [0, 0], 1, 0, NULL, now(), 'x'), ('{condition(2)}', [1, 0], 0, 0, NULL, now(), 'x')",
        "INSERT INTO {db}.resolutions_external_ingest VALUES "
        f"('{condition(1)}', [0, 1], 1, 1, toDateTime(0), 'goldsky-api', now()), "
        f"('{condition(2)}', [0, 0], 1, 1, toDateTime(0), 'goldsky-api', now()), "
        f"('{condition(3)}', [], 0, 1, toDateTime(0), 'goldsky-api', now()), "
        f"('{condition(3)}', [0, 1], 1, 1, toDateTime(0), 'chain', now())",
    )
    rebuild(world)
    assert vectors(world) == {
        (condition(1), (0, 0), 1, "market_resolutions_final"): 1,
        (condition(3), (0, 1), 1, "chain"): 1,
    }


OLD_VIEWS = {
    "with another id column": "CREATE VIEW {db}_clean.vw_resolutions_truth AS SELECT 'a' AS condition_id_norm",
    "over a table that is gone": "CREATE VIEW {db}_clean.vw_resolutions_truth AS SELECT * FROM {db}.gone",
    "missing": "SELECT 1",
}


@pytest.mark.parametrize("old", OLD_VIEWS)
def test_a_rebuild_needs_neither_the_old_view_nor_the_pnl_view(world: World, old: str) -> None:
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}",
        "CREATE TABLE {db}.gone (condition_id String) ENGINE = MergeTree ORDER BY tuple()",
        OLD_VIEWS[old],
        "CREATE VIEW {db}_clean.vw_wallet_pnl_settled AS SELECT condition_id AS wallet FROM {db}.gone",
        "DROP TABLE {db}.gone SYNC",
    )
    with world.session() as session:
        load_rows(session, world.target(session), ledger(resolved(1, 0, 1)))
    rebuild(world)
    assert vectors(world) == {(condition(1), (0, 1), 1, "goldsky-api"): 1}


def test_two_hundred_thousand_conditions_are_read_within_a_second(world: World) -> None:
    if world.kind != "embedded":
        pytest.skip("measured where nothing is sent")
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}")
    with world.session() as session:
        world.target(session)
    world.run(
        "INSERT INTO {db}.market_resolutions_final (condition_id_norm, payout_numerators, payout_denominator, updated_at) "
        "SELECT lower(hex(SHA256(toString(number)))), [0, 1], 1, now() FROM numbers(60000)",
        "INSERT INTO {db}.resolutions_external_ingest SELECT lower(hex(SHA256(toString(number)))), [0, 1], 1, 1, NULL, "
        "'goldsky-api', now64(3), 1 FROM numbers(200000)",
    )
    rebuild(world)
    with world.session() as session:
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            table = session.arrow(VIEW.replace("{db}", world.database), doing="reading")
            seconds.append(time.monotonic() - started)
    assert table.num_rows == 200_000
    assert min(seconds) < 1


def test_c9_of_several_sources_goldsky_counts_then_the_latest_then_the_name(world: World) -> None:
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}",
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({EXTERNAL}",
        "INSERT INTO {db}.resolutions_external_ingest VALUES "
        f"('{condition(1)}', [1, 0], 1, 0, toDateTime(0), 'a', '2025-05-01 00:00:00'), "
        f"('{condition(1)}', [0, 1], 1, 1, toDateTime(0), 'goldsky-api', '2025-01-01 00:00:00'), "
        f"('{condition(2)}', [1, 0], 1, 0, toDateTime(0), 'b', '2025-05-01 00:00:00'), "
        f"('{condition(2)}', [0, 1], 1, 1, toDateTime(0), 'a', '2025-01-01 00:00:00'), "
        f"('{condition(3)}', [1, 0], 1, 0, toDateTime(0), 'b', '2025-05-01 00:00:00'), "
        f"('{condition(3)}', [0, 1], 1, 1, toDateTime(0), 'a', '2025-05-01 00:00:00')",
    )
    rebuild(world)
    assert vectors(world) == {
        (condition(1), (0, 1), 1, "goldsky-api"): 1,
        (condition(2), (1, 0), 1, "b"): 1,
        (condition(3), (0, 1), 1, "a"): 1,
    }


def test_fractions_of_a_float_column_are_scaled_and_never_cut_to_zero(world: World) -> None:
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({GUIDE_MARKET}",
        "INSERT INTO {db}.market_resolutions_final VALUES "
        f"('{condition(1)}', [0.54, 0.46], 1, 0, toDateTime(1700000000), 'x'), "
        f"('{condition(2)}', [1, 0], 1, 0, toDateTime(0), 'x'), "
        f"('{condition(3)}', [{1 / 3!r}, {1 / 3!r}, {1 / 3!r}], 1, -1, toDateTime(0), 'x'), "
        f"('{condition(4)}', [-1, 2], 1, 1, toDateTime(0), 'x'), "
        f"('{condition(5)}', [nan, 1], 1, 1, toDateTime(0), 'x'), "
        f"('{condition(6)}', [inf, 1], 1, 1, toDateTime(0), 'x'), "
        f"('{condition(7)}', [1e30, 1], 1, 1, toDateTime(0), 'x'), "
        f"('{condition(8)}', [1, 0], 0, 0, toDateTime(0), 'x')",
    )
    rebuild(world)
    assert vectors(world) == {
        (condition(1), (540_000_000, 460_000_000), 10**9, "market_resolutions_final"): 1,
        (condition(2), (1, 0), 1, "market_resolutions_final"): 1,
        (condition(3), (333_333_333,) * 3, 999_999_999, "market_resolutions_final"): 1,
    }


@pytest.mark.parametrize("market", [MARKET, GUIDE_MARKET])
def test_an_unknown_time_is_null_and_a_known_one_is_kept(world: World, market: str) -> None:
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({market}")
    name = "condition_id_norm" if market is MARKET else "condition_id"
    for number, moment in ((1, "toDateTime(0, 'UTC')"), (2, "toDateTime(1700000000, 'UTC')")):
        world.run(
            f"INSERT INTO {{db}}.market_resolutions_final ({name}, payout_numerators, payout_denominator, resolved_at) "
            f"VALUES ('{condition(number)}', [1, 0], 1, {moment})"
        )
    with world.session() as session:
        load_rows(session, world.target(session), ledger(resolved(3, 0, 1), resolved(4, 0, 1, at=1_600_000_000)))
    rebuild(world)
    assert world.read(
        "SELECT condition_id, toInt64(toUnixTimestamp(resolved_at)) FROM {db}_clean.vw_resolutions_truth"
    ) == {
        (condition(1), None): 1,
        (condition(2), 1_700_000_000): 1,
        (condition(3), None): 1,
        (condition(4), 1_600_000_000): 1,
    }


def test_a_users_table_without_index_and_time_is_enough(world: World) -> None:
    world.run(
        "CREATE TABLE {db}.market_resolutions_final (condition_id LowCardinality(String), "
        "payout_numerators Array(Nullable(Int32)), payout_denominator Nullable(Int32)) ENGINE = MergeTree ORDER BY tuple()",
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('0x{condition(1).upper()}', [0, 1, NULL], 1), "
        f"('{condition(2)}', [1, 1], 2), ('{condition(3)}', [1, 0], NULL), ('{condition(4)}', [-1, 2], 1)",
    )
    rebuild(world)
    assert world.read(VIEW) == {
        (condition(1), (0, 1, 0), 1, 1, None, "market_resolutions_final"): 1,
        (condition(2), (1, 1), 2, -1, None, "market_resolutions_final"): 1,
    }


def test_a_rebuild_changes_nothing_when_nothing_changed_and_readers_never_see_a_gap(world: World) -> None:
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}")
    with world.session() as session:
        load_rows(session, world.target(session), ledger(*(resolved(n, 0, 1) for n in range(20))))
    assert rebuild(world) == rebuild(world)
    assert sum(world.read(VIEW).values()) == 20


def test_the_database_of_the_view_is_made_where_it_is_missing(world: World) -> None:
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}")
    elsewhere = world.with_settings(truth_view=f"{world.database}_other.truth")
    rebuild(elsewhere)
    assert world.read("SELECT count() FROM {db}_other.truth") == {(0,): 1}
    world.run("DROP DATABASE {db}_other")


def test_c7_a_user_who_may_not_create_views_keeps_what_was_ingested_and_gets_the_statement(http_world: World) -> None:
    http_world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}")
    password = type(http_world.settings.clickhouse_password)("ingest-pass")
    ingester = http_world.with_settings(clickhouse_user="ingester", clickhouse_password=password)
    with ingester.session() as session:
        load_rows(session, ingester.target(session), ledger(resolved(1, 0, 1)))
        with pytest.raises(WarehousePermanentError) as caught:
            rebuild_view(session, ingester.settings)
        assert ensure_sources(session, ingester.settings).target.name == ingester.target_name
    message = str(caught.value)
    assert "may not create views" in message
    assert "497" in message
    assert "GRANT CREATE VIEW" in message
    assert "CREATE OR REPLACE VIEW" in message
    assert ingester.read("SELECT condition_id FROM {db}.resolutions_external_ingest") == {(condition(1),): 1}


def test_a_random_mix_of_sources_always_gives_one_row_per_condition(world: World) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({GUIDE_MARKET}",
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({EXTERNAL}",
    )

    def spelled() -> str:
        name = condition(chance.randrange(15))
        return chance.choice([name, name.upper(), "0x" + name, "0X" + name.upper()])

    vector = ("[1, 0], 1", "[0, 1], 1", "[1, 1], 2", "[], 0", "[0, 0], 1", "[3, 4], 7")
    market = ", ".join(f"('{spelled()}', {chance.choice(vector)}, 0, now(), 'x')" for _ in range(40))
    external = ", ".join(
        f"('{spelled()}', {chance.choice(vector)}, 0, now(), '{chance.choice(['goldsky-api', 'a', 'b'])}', now())"
        for _ in range(80)
    )
    world.run(
        f"INSERT INTO {{db}}.market_resolutions_final VALUES {market}",
        f"INSERT INTO {{db}}.resolutions_external_ingest VALUES {external}",
    )
    rebuild(world)
    rows = world.read("SELECT condition_id, count() FROM {db}_clean.vw_resolutions_truth GROUP BY condition_id")
    assert rows
    assert {count for _, count in rows} == {1}
    assert all(len(name) == 64 and name == name.lower() for name, _ in rows)


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE {db}_clean.vw_resolutions_truth (n UInt8) ENGINE = MergeTree ORDER BY n",
        "CREATE MATERIALIZED VIEW {db}_clean.vw_resolutions_truth ENGINE = MergeTree ORDER BY n POPULATE AS SELECT 1 AS n",
    ],
)
def test_a_table_in_the_views_place_is_never_replaced(world: World, ddl: str) -> None:
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}")
    world.run(ddl, "INSERT INTO {db}_clean.vw_resolutions_truth VALUES (7)")
    before = world.read("SELECT n FROM {db}_clean.vw_resolutions_truth")
    with world.session() as session, pytest.raises(WarehouseSchemaError, match="no view but a table of engine"):
        rebuild_view(session, world.settings)
    assert world.read("SELECT n FROM {db}_clean.vw_resolutions_truth") == before
    assert (7,) in before


@pytest.mark.parametrize("field", ["target_table", "market_resolutions_table", "pnl_view"])
def test_a_view_with_the_name_of_another_table_of_ours_is_refused(world: World, field: str) -> None:
    named = world.with_settings(truth_view=getattr(world.settings, field))
    with (
        named.session() as session,
        pytest.raises(ConfigurationError, match=f"PAYOUT_{field.upper()}.* are both|are both .*"),
    ):
        rebuild_view(session, named.settings)
