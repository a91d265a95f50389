"""The target table: made where it is missing, used where it can hold the vectors, refused with the DDL where not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import ConfigurationError, WarehousePermanentError, WarehouseSchemaError
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.schema import Table, inspect_table
from payout_pipeline.warehouse.target import (
    TARGET_COLUMNS,
    check_target,
    create_target_sql,
    ensure_sources,
    ensure_target,
)
from payout_pipeline.warehouse.types import integers, unwrap
from payout_pipeline_tests.warehouse.test_warehouse_load import SHAPES
from payout_pipeline_tests.warehouse_fixtures import World

GOOD = {
    "condition_id": "String",
    "payout_numerators": "Array(UInt64)",
    "payout_denominator": "UInt64",
    "winning_index": "Int32",
    "resolved_at": "Nullable(DateTime)",
    "source": "String",
}


def make(world: World, engine: str = "ReplacingMergeTree ORDER BY condition_id", **changes: str | None) -> None:
    columns = {name: kind for name, kind in {**GOOD, **changes}.items() if kind}
    listed = ", ".join(f"`{name}` {kind}" for name, kind in columns.items())
    world.run(f"CREATE TABLE {{db}}.resolutions_external_ingest ({listed}) ENGINE = {engine}")


def test_a_missing_target_is_created_with_the_documented_columns(world: World) -> None:
    with world.session() as session:
        target = world.target(session)
        assert world.target(session) == target  # and used from then on
    assert target.columns == TARGET_COLUMNS
    assert target.table.engine == "ReplacingMergeTree"
    assert target.version_column == "fetched_at"
    assert target.table.sorting_key == ("condition_id",)
    assert target.exclusive


def test_a_missing_database_of_the_target_is_created(world: World) -> None:
    name = QualifiedName(f"{world.database}_new", "t")
    with world.session() as session:
        assert ensure_target(session, name).name == name
        session.command(f"DROP DATABASE {name.database}", doing="cleaning up")


@pytest.mark.parametrize("shape", SHAPES)
def test_an_existing_table_of_a_known_shape_is_left_as_it_is(world: World, shape: str) -> None:
    world.run(f"CREATE TABLE {{db}}.resolutions_external_ingest ({SHAPES[shape]}")
    with world.session() as session:
        before = inspect_table(session, world.target_name)
        assert world.target(session).table == before


@pytest.mark.parametrize(
    ("key", "exclusive"),
    [
        ("condition_id", True),
        ("(condition_id)", True),
        ("(condition_id, source)", False),
        ("(source, condition_id)", False),
    ],
)
def test_the_sorting_key_says_whether_a_condition_has_one_row_for_all_sources(
    world: World, key: str, exclusive: bool
) -> None:
    make(world, f"ReplacingMergeTree ORDER BY {key}")
    with world.session() as session:
        assert world.target(session).exclusive == exclusive


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ("MergeTree ORDER BY condition_id", "its engine is MergeTree"),
        ("ReplacingMergeTree ORDER BY tuple()", "sorted by nothing"),
        ("ReplacingMergeTree ORDER BY source", "sorted by source"),
        ("ReplacingMergeTree ORDER BY lower(condition_id)", r"sorted by lower\(condition_id\)"),
        ("ReplacingMergeTree ORDER BY (condition_id, winning_index)", "sorted by condition_id, winning_index"),
        ("ReplacingMergeTree PARTITION BY winning_index ORDER BY condition_id", "partitioned by winning_index"),
        ("ReplacingMergeTree(payout_denominator) ORDER BY condition_id", "version column is payout_denominator"),
        ("ReplacingMergeTree(block_number, gone) ORDER BY condition_id", "marks deleted rows by gone"),
    ],
)
def test_c5_a_table_that_does_not_replace_changed_rows_is_refused(world: World, engine: str, complaint: str) -> None:
    make(world, engine, block_number="UInt64", gone="UInt8 DEFAULT 0")
    with world.session() as session, pytest.raises(WarehouseSchemaError, match=complaint) as caught:
        world.target(session)
    assert "set PAYOUT_TARGET_TABLE" in str(caught.value)


def test_c5_a_further_column_needs_a_default_and_the_statement_gives_it_one(world: World) -> None:
    make(world, note="String", kind="Enum8('a' = 1)", remark="Nullable(String)", extra="UInt8 DEFAULT 1")
    with world.session() as session:
        with pytest.raises(WarehouseSchemaError) as caught:
            world.target(session)
        statements = [line for line in str(caught.value).splitlines() if line.startswith("ALTER TABLE")]
        assert statements
        for statement in statements:
            session.command(statement, doing="repairing")
        assert world.target(session).name == world.target_name


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("condition_id", None),
        ("condition_id", "FixedString(32)"),
        ("condition_id", "UInt256"),
        ("payout_numerators", "Array(String)"),
        ("condition_id", "Nullable(String)"),
        ("payout_numerators", "Array(Decimal(3, 2))"),
        ("payout_numerators", "Array(Float64)"),
        ("payout_numerators", "Array(Nullable(UInt64))"),
        ("payout_numerators", "String"),
        ("payout_numerators", "UInt64"),
        ("payout_denominator", "Decimal(18, 2)"),
        ("payout_denominator", None),
        ("payout_denominator", "Float32"),
        ("payout_denominator", "Nullable(UInt64)"),
        ("winning_index", "Nullable(Int32)"),
        ("winning_index", "UInt16"),
        ("winning_index", "String"),
        ("resolved_at", "Date"),
        ("resolved_at", "String"),
        ("source", "UInt8"),
        ("source", "Enum8('chain' = 1)"),
        ("fetched_at", "String"),
        ("fetched_at", "Nullable(DateTime)"),
        ("block_number", "Float64"),
        ("winning_index", "Int32 MATERIALIZED 0"),
    ],
)
def test_c5_a_table_that_cannot_hold_the_vectors_is_refused_with_the_ddl(
    world: World, column: str, kind: str | None
) -> None:
    make(world, "ReplacingMergeTree ORDER BY tuple()", **{column: kind})
    with world.session() as session, pytest.raises(WarehouseSchemaError) as caught:
        world.target(session)
    message = str(caught.value)
    verb = "ADD" if kind is None else "MODIFY"
    assert f"{verb} COLUMN `{column}` {TARGET_COLUMNS[column]}" in message
    assert "CREATE TABLE" in message
    assert caught.value.exit_code == 1


def test_c5_a_target_with_the_ids_of_the_users_table_is_refused_with_the_ddl(world: World) -> None:
    make(world, "MergeTree ORDER BY condition_id_norm", condition_id=None, condition_id_norm="FixedString(64)")
    with world.session() as session, pytest.raises(WarehouseSchemaError, match="ADD COLUMN `condition_id` String"):
        world.target(session)


@pytest.mark.parametrize("engine", ["Memory", "Log", "SummingMergeTree ORDER BY condition_id", "Null", "TinyLog"])
def test_c5_a_table_of_another_engine_is_refused(world: World, engine: str) -> None:
    make(world, engine)
    with world.session() as session, pytest.raises(WarehouseSchemaError, match=engine.split()[0]):
        world.target(session)


def test_c5_all_that_is_wrong_is_said_at_once(world: World) -> None:
    make(world, "Memory", payout_denominator="String", winning_index=None, source=None)
    with world.session() as session, pytest.raises(WarehouseSchemaError) as caught:
        world.target(session)
    for word in ("Memory", "payout_denominator", "winning_index", "source"):
        assert word in str(caught.value)


def test_a_view_in_the_targets_place_is_refused(world: World) -> None:
    world.run("CREATE VIEW {db}.resolutions_external_ingest AS SELECT 1 AS condition_id")
    with world.session() as session, pytest.raises(WarehouseSchemaError, match="View"):
        world.target(session)


def test_on_a_cluster_the_table_is_replicated_and_made_on_all_hosts(world: World) -> None:
    ddl = create_target_sql(QualifiedName("d", "t"), "main-cluster")
    assert "ON CLUSTER 'main-cluster'" in ddl
    assert "ReplicatedReplacingMergeTree(fetched_at)" in ddl
    with world.session() as session:  # it parses; a cluster to run it on is not here
        session.text(f"EXPLAIN AST {ddl}", doing="parsing", fmt="TSV")
    with pytest.raises(ConfigurationError, match="CLUSTER"):
        create_target_sql(QualifiedName("d", "t"), "x' ; DROP TABLE t; --")


@pytest.mark.parametrize("family", ["Replicated", "Shared"])
def test_a_replicated_table_is_recognised_by_its_version_column(family: str) -> None:
    full = f"{family}ReplacingMergeTree('/clickhouse/tables/{{uuid}}/{{shard}}', '{{replica}}', fetched_at) ORDER BY condition_id"
    table = Table(
        name=QualifiedName("d", "t"),
        engine=f"{family}ReplacingMergeTree",
        engine_full=full,
        sorting_key=("condition_id",),
        partition_key="",
        columns=TARGET_COLUMNS,
        defaults={},
    )
    target = check_target(table)
    assert (target.version_column, table.final, table.replicated) == ("fetched_at", "FINAL", True)


def test_a_target_that_is_the_users_own_table_is_refused_before_anything_is_made(world: World) -> None:
    named = world.with_settings(target_table=world.settings.market_resolutions_table)
    with named.session() as session:
        with pytest.raises(
            ConfigurationError, match="PAYOUT_TARGET_TABLE and PAYOUT_MARKET_RESOLUTIONS_TABLE are both"
        ):
            ensure_sources(session, named.settings)
        assert inspect_table(session, named.target_name) is None


def test_a_missing_user_table_is_made_embedded_and_an_error_on_a_server(world: World) -> None:
    with world.session() as session:
        if session.embedded:
            tables = ensure_sources(session, world.settings)
            assert tables.market.id_column == "condition_id_norm"
            assert tables.market.columns["payout_numerators"] == "Array(UInt8)"
        else:
            with pytest.raises(ConfigurationError, match="PAYOUT_MARKET_RESOLUTIONS_TABLE"):
                ensure_sources(session, world.settings)


@pytest.mark.parametrize(
    ("ddl", "complaint"),
    [
        ("payout_numerators Array(UInt8), payout_denominator UInt8", "condition_id or condition_id_norm"),
        ("condition_id String, payout_denominator UInt8", "payout_numerators"),
        ("condition_id String, payout_numerators String, payout_denominator UInt8", "payout_numerators"),
    ],
)
def test_a_user_table_without_the_needed_columns_is_refused(world: World, ddl: str, complaint: str) -> None:
    world.run(f"CREATE TABLE {{db}}.market_resolutions_final ({ddl}) ENGINE = MergeTree ORDER BY tuple()")
    with world.session() as session, pytest.raises(WarehouseSchemaError, match=complaint):
        ensure_sources(session, world.settings)


def test_a_user_who_may_not_create_the_table_gets_the_statement(http_world: World) -> None:
    password = type(http_world.settings.clickhouse_password)("reader-pass")
    reader = http_world.with_settings(clickhouse_user="reader", clickhouse_password=password)
    with reader.session() as session, pytest.raises(WarehouseSchemaError) as caught:
        reader.target(session)
    assert create_target_sql(reader.target_name).strip() in str(caught.value)
    assert isinstance(caught.value.__cause__, WarehousePermanentError)


@given(bits=st.sampled_from([8, 16, 32, 64, 128, 256]), unsigned=st.booleans(), wrap=st.booleans())
def test_the_capacity_of_an_integer_type_is_that_of_its_bits(bits: int, unsigned: bool, wrap: bool) -> None:
    name = f"{'U' if unsigned else ''}Int{bits}"
    found = integers(f"Nullable({name})" if wrap else name)
    assert found is not None
    assert (found.low, found.high) == ((0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def test_wrapped_types_are_unwrapped() -> None:
    assert unwrap("LowCardinality(Nullable(String))") == "String"
    assert unwrap("Nullable(DateTime64(3, 'UTC'))") == "DateTime64(3, 'UTC')"
    assert integers("Decimal(3, 2)") is None
    assert integers("Bool") is None
