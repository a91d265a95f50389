"""Loading: what is written, what is not, and what is said about the difference."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from payout_pipeline.errors import IncompleteError, WarehousePermanentError, WarehouseSchemaError
from payout_pipeline.verdict import SHOWN_ROWS
from payout_pipeline.verification.resolutions_external_ingest import compare_stored as compare_rows
from payout_pipeline.warehouse.load import load_rows, slices
from payout_pipeline_tests.clickhouse_front import Faults
from payout_pipeline_tests.warehouse_fixtures import FETCHED_MS, World, condition, ledger, other, resolved

THIRDS = (1, 1, 1)
ROWS = (
    resolved(1, 0, 1),
    resolved(2, 27, 23, at=1_700_000_000),
    resolved(3, *THIRDS),
    resolved(4, 1, 1),
    other(5, "unresolved"),
    other(6, "absent"),
    other(7, "failed"),
    other(8, "invalid"),
    resolved(9, 10**18, 1),
)
STORED = (
    "SELECT toString(condition_id), arrayMap(x -> toInt64(x), payout_numerators), toInt64(payout_denominator), "
    "toInt64(winning_index), "
    "if(toUnixTimestamp(ifNull(resolved_at, toDateTime(0))) = 0, NULL, toInt64(toUnixTimestamp(ifNull(resolved_at, "
    "toDateTime(0))))) AS at, toString(source) FROM {db}.resolutions_external_ingest"
)
EXPECTED = {
    (condition(1), (0, 1), 1, 1, None, "goldsky-api"): 1,
    (condition(2), (27, 23), 50, 0, 1_700_000_000, "goldsky-api"): 1,
    (condition(3), (1, 1, 1), 3, -1, None, "goldsky-api"): 1,
    (condition(4), (1, 1), 2, -1, None, "goldsky-api"): 1,
    (condition(9), (10**18, 1), 10**18 + 1, 0, None, "goldsky-api"): 1,
}

# The shapes in which the table occurs, and one row of them that every shape can hold.
SHAPES = {
    "ours": "condition_id String, payout_numerators Array(UInt64), payout_denominator UInt64, winning_index Int32, "
    "resolved_at Nullable(DateTime('UTC')), source LowCardinality(String), fetched_at DateTime64(3, 'UTC'), "
    "block_number UInt64) ENGINE = ReplacingMergeTree(fetched_at) ORDER BY condition_id",
    "uint32 without fetched_at": "condition_id String, payout_numerators Array(UInt32), payout_denominator UInt32, "
    "winning_index Int32, resolved_at DateTime, source String) ENGINE = ReplacingMergeTree ORDER BY (condition_id)",
    "int64, by source": "condition_id LowCardinality(String), payout_numerators Array(Int64), payout_denominator Int64, "
    "winning_index Int8, resolved_at Nullable(DateTime), source String, fetched_at DateTime, extra UInt8 DEFAULT 7) "
    "ENGINE = ReplacingMergeTree(fetched_at) ORDER BY (condition_id, source)",
    "uint256, source first": "condition_id String, payout_numerators Array(UInt256), payout_denominator UInt256, "
    "winning_index Int64, resolved_at DateTime('America/New_York'), source Enum8('goldsky-api' = 1, 'x' = 2), "
    "fetched_at DateTime64(6)) ENGINE = ReplacingMergeTree(fetched_at) PARTITION BY source "
    "ORDER BY (source, condition_id)",
    "uint8, fixed ids": "condition_id FixedString(64), payout_numerators Array(UInt8), payout_denominator UInt8, "
    "winning_index Int16, resolved_at Nullable(DateTime64(6)), source LowCardinality(String), "
    "fetched_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree(fetched_at) PARTITION BY substring(condition_id, 1, 1) "
    "ORDER BY condition_id",
    "a version of the user's": "condition_id String, payout_numerators Array(Int128), payout_denominator UInt128, "
    "winning_index Int32, resolved_at DateTime, source String, version UInt8 DEFAULT 3) "
    "ENGINE = ReplacingMergeTree(version) ORDER BY condition_id",
    "the time of the insert as version": "condition_id String, payout_numerators Array(UInt64), payout_denominator UInt64, "
    "winning_index Int32, resolved_at DateTime, source String, updated_at DateTime64(3) DEFAULT now64(3)) "
    "ENGINE = ReplacingMergeTree(updated_at) ORDER BY condition_id",
    "the block as version": "condition_id String, payout_numerators Array(UInt64), payout_denominator UInt64, "
    "winning_index Int32, resolved_at DateTime, source String, block_number UInt32) "
    "ENGINE = ReplacingMergeTree(block_number) ORDER BY condition_id",
}


def test_a_load_stores_each_resolved_row_exactly_once_and_nothing_else(world: World) -> None:
    with world.session() as session:
        result = load_rows(session, world.target(session), ledger(*ROWS))
        comparison = compare_rows(session, world.target(session), ledger(*ROWS))
    assert (result.sent, result.inserted_new, result.inserted_changed, result.unchanged) == (5, 5, 0, 0)
    assert (result.verified, result.removed, result.conflicts, result.inserts) == (5, 0, 0, 1)
    assert world.read(STORED) == EXPECTED
    assert comparison.ok
    assert (comparison.ids, comparison.resolved) == (9, 5)


def test_a_second_load_writes_nothing(world: World) -> None:
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(*ROWS))
        again = load_rows(session, target, ledger(*ROWS))
    assert (again.written, again.unchanged, again.inserts, again.removed) == (0, 5, 0, 0)
    assert world.read(STORED) == EXPECTED


@pytest.mark.parametrize("shape", SHAPES)
def test_existing_tables_of_every_known_shape_are_used_as_they_are(world: World, shape: str) -> None:
    world.run(f"CREATE TABLE {{db}}.resolutions_external_ingest ({SHAPES[shape]}")
    rows = (resolved(1, 0, 1), resolved(2, 27, 23, at=1_700_000_000), resolved(3, *THIRDS), other(5, "absent"))
    changed = (resolved(1, 1, 0), rows[1], resolved(3, 1, 1, at=1_700_000_001), other(5, "absent"))
    with world.session() as session:
        target = world.target(session)
        assert load_rows(session, target, ledger(*rows)).inserted_new == 3
        assert load_rows(session, target, ledger(*rows)).written == 0
        assert compare_rows(session, target, ledger(*rows)).ok
        result = load_rows(session, target, ledger(*changed))
        assert (result.inserted_new, result.inserted_changed, result.unchanged) == (0, 2, 1)
        assert compare_rows(session, target, ledger(*changed)).ok
        assert compare_rows(session, target, ledger(*rows)).counts["different"] == 2
    assert world.read(STORED + " FINAL") == {
        (condition(1), (1, 0), 1, 0, None, "goldsky-api"): 1,
        (condition(2), (27, 23), 50, 0, 1_700_000_000, "goldsky-api"): 1,
        (condition(3), (1, 1), 2, -1, 1_700_000_001, "goldsky-api"): 1,
    }


def test_a_changed_row_wins_even_when_the_clock_has_gone_back(world: World) -> None:
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(resolved(1, 1, 0)))
        load_rows(session, target, ledger(resolved(1, 0, 1, fetched_ms=FETCHED_MS - 3_600_000)))
        assert compare_rows(session, target, ledger(resolved(1, 0, 1))).ok
    assert world.read("SELECT payout_numerators FROM {db}.resolutions_external_ingest FINAL") == {((0, 1),): 1}


@pytest.mark.parametrize(
    ("shape", "numerators", "column"),
    [
        ("uint32 without fetched_at", (2**32, 1), "payout_numerators"),
        ("uint8, fixed ids", (255, 1), "payout_denominator"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_before_anything_is_written(
    world: World, shape: str, numerators: tuple[int, int], column: str
) -> None:
    world.run(f"CREATE TABLE {{db}}.resolutions_external_ingest ({SHAPES[shape]}")
    with world.session() as session, pytest.raises(WarehouseSchemaError) as caught:
        load_rows(session, world.target(session), ledger(resolved(1, 0, 1), resolved(2, *numerators)))
    assert condition(2) in str(caught.value)
    assert condition(1) not in str(caught.value)
    assert f"MODIFY COLUMN `{column}`" in str(caught.value)
    assert world.read(STORED) == {}


DEFECTS = {
    "a lost row": (
        "ALTER TABLE {db}.resolutions_external_ingest DELETE WHERE condition_id = '" + condition(1) + "'",
        "missing",
    ),
    "a truncated table": ("TRUNCATE TABLE {db}.resolutions_external_ingest", "missing"),
    "a rounded vector": (
        "ALTER TABLE {db}.resolutions_external_ingest UPDATE payout_numerators = [54, 46], payout_denominator = 100 "
        "WHERE condition_id = '" + condition(2) + "'",
        "different",
    ),
    "a swapped winner": (
        "ALTER TABLE {db}.resolutions_external_ingest UPDATE winning_index = 0 WHERE condition_id = '"
        + condition(4)
        + "'",
        "different",
    ),
    "an invented time": (
        "ALTER TABLE {db}.resolutions_external_ingest UPDATE resolved_at = toDateTime(1700000000, 'UTC') "
        "WHERE condition_id = '" + condition(1) + "'",
        "different",
    ),
    "a vector of an unresolved condition": (
        "INSERT INTO {db}.resolutions_external_ingest VALUES ('" + condition(5) + "', [1, 0], 1, 0, NULL, "
        "'goldsky-api', '2025-01-01 00:00:00', 1)",
        "stale",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_d5_a_table_that_was_edited_by_hand_is_found_and_healed_by_loading_again(world: World, defect: str) -> None:
    statement, state = DEFECTS[defect]
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(*ROWS))
        session.command(statement.replace("{db}", world.database), doing="damaging the table")
        damaged = compare_rows(session, target, ledger(*ROWS))
        assert not damaged.ok
        assert {kind for kind, count in damaged.counts.items() if count} == {state}
        load_rows(session, target, ledger(*ROWS), allow_removals=True)
        assert compare_rows(session, target, ledger(*ROWS)).ok
    assert world.read(STORED + " FINAL") == EXPECTED


@pytest.mark.parametrize("kind", ["DateTime", "Date", "UInt64", "Int8", "UInt256"])
def test_a_changed_row_wins_by_a_version_of_any_type(world: World, kind: str) -> None:
    world.run(
        "CREATE TABLE {db}.resolutions_external_ingest (condition_id String, payout_numerators Array(UInt64), "
        "payout_denominator UInt64, winning_index Int32, resolved_at DateTime, source String, "
        f"v {kind} DEFAULT 3) ENGINE = ReplacingMergeTree(v) ORDER BY condition_id"
    )
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(resolved(1, 1, 0)))
        world.run(
            "INSERT INTO {db}.resolutions_external_ingest SELECT * REPLACE (100 AS v) FROM {db}.resolutions_external_ingest"
        )
        load_rows(session, target, ledger(resolved(1, 0, 1), resolved(2, 0, 1)))
        load_rows(session, target, ledger(resolved(1, 1, 0), resolved(2, 0, 1)))
        assert load_rows(session, target, ledger(resolved(1, 1, 0), resolved(2, 0, 1))).written == 0


@pytest.mark.parametrize("status", ["failed", "invalid"])
def test_an_id_without_a_sound_answer_leaves_what_was_stored_of_it_alone(world: World, status: str) -> None:
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(*(resolved(n, 0, 1) for n in range(3))))
        later = ledger(*(other(n, status) for n in range(3)))
        assert load_rows(session, target, later, allow_removals=True).removed == 0
        assert compare_rows(session, target, later).ok
    assert sum(world.read(STORED).values()) == 3


@pytest.mark.parametrize(
    ("stored", "gone", "removed"), [(99, 1, False), (100, 1, True), (250, 3, False), (250, 2, True), (60, 60, False)]
)
def test_more_than_one_percent_of_the_stored_rows_is_never_removed_unasked(
    world: World, stored: int, gone: int, removed: bool
) -> None:
    later = [other(n, "absent" if n % 2 else "unresolved") for n in range(gone)]
    later += [resolved(n, 0, 1) for n in range(gone, stored)] + [resolved(stored, 1, 0)]
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(*(resolved(n, 0, 1) for n in range(stored))))
        if removed:
            assert load_rows(session, target, ledger(*later)).removed == gone
            return
        with pytest.raises(IncompleteError) as caught:
            load_rows(session, target, ledger(*later))
        message = str(caught.value)
        for part in (f"{gone} of {stored} vectors", condition(0), "allow_removals: true", "backfill --allow-removals"):
            assert part in message
        assert sum(world.read(STORED).values()) == stored + 1  # the sound rows were written
        assert load_rows(session, target, ledger(*later), allow_removals=True).removed == gone
        assert compare_rows(session, target, ledger(*later)).ok
    assert sum(world.read(STORED).values()) == stored - gone + 1


def test_a_changed_row_that_a_constraint_refuses_leaves_the_rows_as_they_were(world: World) -> None:
    rows = [resolved(n, 0, 1) for n in range(50)]
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(*rows))
        session.command(
            f"ALTER TABLE {target.name.sql} ADD CONSTRAINT winners CHECK winning_index = 1", doing="constraining"
        )
        with pytest.raises(WarehousePermanentError, match="469"):
            load_rows(session, target, ledger(*(resolved(n, 1, 0) for n in range(50))))
    assert world.read(STORED + " FINAL") == {(condition(n), (0, 1), 1, 1, None, "goldsky-api"): 1 for n in range(50)}


def other_source(number: int, vector: str, source: str = "chain", spelling: str = "") -> str:
    columns = "condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source, fetched_at"
    name = spelling or condition(number)
    return (
        f"INSERT INTO {{db}}.resolutions_external_ingest ({columns}) VALUES "
        f"('{name}', {vector}, 0, NULL, '{source}', '2039-01-01 00:00:00')"
    )


def test_another_sources_vector_is_compared_in_lowest_terms_and_a_placeholder_is_none(world: World) -> None:
    rows = ledger(resolved(1, 0, 1), resolved(2, 0, 1), resolved(3, 0, 1), resolved(4, 27, 23), resolved(5, 0, 1))
    with world.session() as session:
        target = world.target(session)
        world.run(
            other_source(1, "[0, 100], 100"),
            other_source(2, "[], 0"),
            other_source(3, "[0, 0], 1"),
            other_source(4, "[54, 46], 100"),
            other_source(5, "[0, 1, 0], 1"),
        )
        result = load_rows(session, target, rows)
        assert (result.inserted_new, result.held, result.conflicts) == (2, 2, 1)
        assert load_rows(session, target, rows).written == 0
        assert {k: n for k, n in compare_rows(session, target, rows).counts.items() if n} == {"conflict": 1}
    found = world.read("SELECT condition_id, toString(source) FROM {db}.resolutions_external_ingest FINAL")
    sources = ((1, "chain"), (2, "goldsky-api"), (3, "goldsky-api"), (4, "chain"), (5, "chain"))
    assert found == {(condition(n), source): 1 for n, source in sources}


@pytest.mark.parametrize("shape", ["ours", "int64, by source"])
def test_rows_written_with_0x_or_in_upper_case_neither_hide_nor_stop_ours(world: World, shape: str) -> None:
    world.run(f"CREATE TABLE {{db}}.resolutions_external_ingest ({SHAPES[shape]}")
    upper = [condition(n).upper() for n in range(5)]
    world.run(
        other_source(0, "[1, 0], 1", spelling="0X" + upper[0]),  # another source's
        other_source(1, "[1, 0], 1", "goldsky-api", "0x" + condition(1)),  # ours by its source, with another vector
        other_source(2, "[0, 1], 1", "goldsky-api", "0x" + upper[2]),
    )
    rows = ledger(resolved(0, 0, 1), resolved(1, 0, 1), resolved(2, 0, 1), resolved(4, 1, 0))
    with world.session() as session:
        target = world.target(session)
        result = load_rows(session, target, rows)
        assert (result.inserted_new, result.inserted_changed, result.conflicts) == (4, 0, 0)
        assert load_rows(session, target, rows).written == 0
        assert {k: n for k, n in compare_rows(session, target, rows).counts.items() if n} == {"written otherwise": 2}
        gone = ledger(other(1, "absent"))
        assert compare_rows(session, target, gone).counts["stale"] == 1
        assert load_rows(session, target, gone, allow_removals=True).removed == 1
    ours = world.read(
        "SELECT condition_id, payout_numerators FROM {db}.resolutions_external_ingest WHERE length(condition_id) = 64"
    )
    vectors = {0: (0, 1), 2: (0, 1), 4: (1, 0)}
    assert ours == {(condition(n), vector): 1 for n, vector in vectors.items()}
    assert world.read("SELECT count() FROM {db}.resolutions_external_ingest WHERE length(condition_id) > 64") == {
        (2,): 1
    }


def test_a_row_of_another_source_is_never_overwritten_and_shows_as_a_conflict(world: World) -> None:
    with world.session() as session:
        target = world.target(session)
        for number, numerators in ((1, "[1, 0]"), (2, "[0, 1]")):
            session.command(
                f"INSERT INTO {world.target_name.sql} VALUES ('{condition(number)}', {numerators}, 1, 0, NULL, 'chain', "
                "'2025-01-01 00:00:00', 1)",
                doing="adding a row of the user's",
            )
        rows = ledger(resolved(1, 0, 1), resolved(2, 0, 1), resolved(3, 0, 1))
        result = load_rows(session, target, rows)
        assert (result.inserted_new, result.conflicts, result.held) == (1, 1, 1)
        comparison = compare_rows(session, target, rows)
        assert (comparison.counts["conflict"], comparison.held) == (1, 1)
        assert not comparison.ok
        assert comparison.differences[0][3] == "[1,0]/1"
        session.command(f"OPTIMIZE TABLE {world.target_name.sql} FINAL", doing="merging")
    assert world.read("SELECT condition_id, toString(source) FROM {db}.resolutions_external_ingest") == {
        (condition(1), "chain"): 1,
        (condition(2), "chain"): 1,
        (condition(3), "goldsky-api"): 1,
    }


def test_a_table_keyed_by_source_holds_the_rows_of_both(world: World) -> None:
    world.run(
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({SHAPES['int64, by source']}",
        f"INSERT INTO {{db}}.resolutions_external_ingest VALUES ('{condition(1)}', [1, 0], 1, 0, NULL, 'chain', now(), 1)",
    )
    with world.session() as session:
        target = world.target(session)
        assert load_rows(session, target, ledger(resolved(1, 0, 1))).inserted_new == 1
        assert compare_rows(session, target, ledger(resolved(1, 0, 1))).ok
    assert world.read("SELECT toString(source), payout_numerators FROM {db}.resolutions_external_ingest") == {
        ("chain", (1, 0)): 1,
        ("goldsky-api", (0, 1)): 1,
    }


def test_c2_an_insert_whose_answer_is_lost_is_stored_once(http_world: World) -> None:
    with http_world.session() as session:
        target = http_world.target(session)
        http_world.front.faults(Faults(matching=r"\A\s*INSERT", times=1, lose_answer=True))
        result = load_rows(session, target, ledger(*ROWS))
    assert (result.inserts, result.verified) == (1, 5)
    assert http_world.read(STORED) == EXPECTED


@pytest.mark.parametrize("fault", [{"reset": True}, {"code": 252}, {"code": 999}, {"http_status": 503}, {"code": 202}])
def test_c4_an_insert_that_was_refused_for_now_is_sent_again(http_world: World, fault: dict[str, object]) -> None:
    with http_world.session() as session:
        target = http_world.target(session)
        http_world.front.faults(Faults(matching=r"\A\s*INSERT", times=2, **fault))
        result = load_rows(session, target, ledger(*ROWS))
    assert result.inserts == 3
    assert http_world.read(STORED) == EXPECTED


@pytest.mark.slow
def test_c2_at_random_points_of_a_load_every_row_is_stored_once(http_world: World) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rows = [resolved(n, *chance.choice([(0, 1), (1, 0), (27, 23)])) for n in range(300)]
    with http_world.session() as session:
        target = http_world.target(session)
        for round_number in range(6):
            kinds = ({"lose_answer": True}, {"reset": True}, {"half": True}, {"code": 210}, {"http_status": 502})
            http_world.front.faults(
                *(
                    Faults(matching=chance.choice(["INSERT", "SELECT", ""]), times=1, **chance.choice(kinds))
                    for _ in range(3)
                )
            )
            load_rows(session, target, ledger(*rows[: 50 * (round_number + 1)]))
    assert sum(http_world.read(STORED).values()) == 300
    assert set(http_world.read(STORED).values()) == {1}


def test_rows_that_the_server_confirms_but_does_not_store_are_noticed(http_world: World) -> None:
    with http_world.session() as session:
        target = http_world.target(session)
        http_world.front.faults(Faults(matching=r"\A\s*INSERT", times=1, drop_rows=True))
        with pytest.raises(IncompleteError, match=r"5 rows .* confirmed are not stored"):
            load_rows(session, target, ledger(*ROWS))


def test_a_re_created_row_is_stored_although_the_server_remembers_tokens(world: World) -> None:
    world.run(
        f"CREATE TABLE {{db}}.resolutions_external_ingest ({SHAPES['ours']} "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    with world.session() as session:
        target = world.target(session)
        load_rows(session, target, ledger(resolved(1, 0, 1)))
        session.command(f"ALTER TABLE {target.name.sql} DELETE WHERE 1", doing="emptying the table")
        assert load_rows(session, target, ledger(resolved(1, 0, 1))).inserted_new == 1
        assert compare_rows(session, target, ledger(resolved(1, 0, 1))).ok


def test_an_id_that_the_ledger_has_twice_is_refused(world: World) -> None:
    with world.session() as session, pytest.raises(IncompleteError, match="twice"):
        load_rows(session, world.target(session), ledger(resolved(1, 0, 1), resolved(1, 1, 0)))


def test_an_empty_chunk_is_a_load_of_nothing(world: World) -> None:
    with world.session() as session:
        target = world.target(session)
        assert load_rows(session, target, []).sent == 0
        assert load_rows(session, target, ledger()).sent == 0
        assert compare_rows(session, target, []).ok


def test_a_comparison_counts_exactly_and_shows_a_capped_sample(world: World) -> None:
    with world.session() as session:
        comparison = compare_rows(
            session, world.target(session), ledger(*(resolved(n, 0, 1) for n in range(SHOWN_ROWS + 9)))
        )
    assert comparison.counts["missing"] == SHOWN_ROWS + 9
    assert len(comparison.differences) == SHOWN_ROWS
    assert comparison.differences[0][2] == "[0,1]/1"


@pytest.mark.parametrize("sizes", [[], [1], [5, 5], [3, 4, 5], [23], [10, 1, 10, 1]])
def test_slices_keep_rows_and_order_and_stay_within_their_size(sizes: list[int]) -> None:
    numbers = list(range(sum(sizes)))
    batches, at = [], 0
    for size in sizes:
        batches.append(pa.record_batch({"n": numbers[at : at + size]}, schema=pa.schema([("n", pa.int64())])))
        at += size
    cut = list(slices(batches, 10))
    assert [n for batch in cut for n in batch.column("n").to_pylist()] == numbers
    assert all(0 < batch.num_rows <= 10 for batch in cut)
