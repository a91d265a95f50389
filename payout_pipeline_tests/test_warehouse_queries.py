"""The numbers behind the checks: right on sound data, and different for each deliberate defect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from payout_pipeline.errors import ConfigurationError, WarehouseUnavailableError
from payout_pipeline.settings import load_settings
from payout_pipeline.warehouse import queries
from payout_pipeline.warehouse.client import Session, Warehouse
from payout_pipeline.warehouse.console import run_statement
from payout_pipeline.warehouse.demo import create_demo_pnl
from payout_pipeline.warehouse.load import load_rows
from payout_pipeline.warehouse.view import rebuild_view
from payout_pipeline_tests.clickhouse_front import Faults
from payout_pipeline_tests.test_warehouse_view import MARKET
from payout_pipeline_tests.warehouse_fixtures import World, condition, ledger, other, resolved

ROWS = (
    resolved(1, 0, 1),
    resolved(2, 27, 23),
    resolved(3, 1, 1, 1),
    resolved(4, 1, 1),
    resolved(5, 1, 0),
    other(6, "unresolved"),
)


@pytest.fixture
def filled(world: World) -> Iterator[tuple[World, Session]]:
    """Two conditions of the user's (one shared), five of Goldsky's, the view."""
    world.run(
        f"CREATE TABLE {{db}}.market_resolutions_final ({MARKET}",
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(5)}', [100, 0], 100, 0, NULL, now(), 'x')",
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(7)}', [1, 0], 1, 0, NULL, now(), 'x')",
    )
    with world.session() as session:
        load_rows(session, world.target(session), ledger(*ROWS))
        rebuild_view(session, world.settings)
        yield world, session


def place(filled: tuple[World, Session]) -> queries.Place:
    return queries.survey(filled[1], filled[0].settings)


def damage(filled: tuple[World, Session], *statements: str) -> queries.Place:
    for text in statements:
        filled[1].command(text.replace("{db}", filled[0].database), doing="damaging")
    return place(filled)


def test_unique_conditions_are_counted_by_source(filled: tuple[World, Session]) -> None:
    found = queries.unique_conditions(filled[1], place(filled))
    assert (found.conditions, found.rows) == (5, 5)
    assert found.by_source == (queries.SourceTotal("goldsky-api", 5, 5),)
    assert "uniqExact" in found.sql
    spelled = damage(
        filled,
        "INSERT INTO {db}.resolutions_external_ingest SELECT concat('0x', upper(condition_id)), payout_numerators, "
        "payout_denominator, winning_index, resolved_at, 'chain', fetched_at, block_number "
        "FROM {db}.resolutions_external_ingest LIMIT 2",
    )
    again = queries.unique_conditions(filled[1], spelled)
    assert again.by_source == (queries.SourceTotal("goldsky-api", 5, 5), queries.SourceTotal("chain", 2, 2))


def test_unmerged_versions_of_a_row_count_once(filled: tuple[World, Session]) -> None:
    doubled = damage(
        filled,
        "INSERT INTO {db}.resolutions_external_ingest SELECT * FROM {db}.resolutions_external_ingest",
    )
    assert queries.unique_conditions(filled[1], doubled).rows == 5


def test_payout_quality_is_the_guides_distribution(filled: tuple[World, Session]) -> None:
    found = queries.payout_quality(filled[1], place(filled))
    assert (found.rows, found.unsound) == (5, 0)
    assert {(s.rows, s.denominator, s.total) for s in found.shapes} == {
        (2, "1", "1"),
        (1, "2", "2"),
        (1, "3", "3"),
        (1, "50", "50"),
    }


def test_payout_quality_finds_a_vector_that_does_not_sum_up(filled: tuple[World, Session]) -> None:
    broken = damage(
        filled,
        "ALTER TABLE {db}.resolutions_external_ingest UPDATE payout_numerators = [27, 22] "
        f"WHERE condition_id = '{condition(2)}'",
    )
    found = queries.payout_quality(filled[1], broken)
    assert found.unsound == 1
    assert (found.shapes[0].sound, found.shapes[0].total, found.shapes[0].examples) == (False, "49", (condition(2),))


def test_the_sample_is_well_formed_until_a_row_is_broken(filled: tuple[World, Session]) -> None:
    assert [row.defect for row in queries.payout_sample(filled[1], place(filled)).rows] == [""] * 5
    broken = damage(
        filled,
        f"ALTER TABLE {{db}}.resolutions_external_ingest UPDATE winning_index = 0 WHERE condition_id = '{condition(4)}'",
        f"ALTER TABLE {{db}}.resolutions_external_ingest UPDATE payout_numerators = [1] WHERE condition_id = '{condition(1)}'",
    )
    defects = {row.condition_id: row.defect for row in queries.payout_sample(filled[1], broken).rows}
    assert "winning index" in defects[condition(4)]
    assert "fewer than two" in defects[condition(1)]


def test_no_resolved_id_is_without_a_vector_until_one_is_lost(filled: tuple[World, Session]) -> None:
    found = queries.no_null_payouts(filled[1], place(filled), ledger(*ROWS))
    assert (found.view_rows, found.without_vector, found.resolved, found.missing) == (6, 0, 5, 0)
    lost = damage(
        filled, f"ALTER TABLE {{db}}.resolutions_external_ingest DELETE WHERE condition_id = '{condition(3)}'"
    )
    found = queries.no_null_payouts(filled[1], lost, ledger(*ROWS))
    assert (found.missing, found.examples) == (1, (condition(3),))
    emptied = damage(
        filled,
        "CREATE OR REPLACE VIEW {db}_clean.vw_resolutions_truth AS SELECT condition_id, "
        "CAST([], 'Array(UInt64)') AS payout_numerators, payout_denominator, winning_index, resolved_at, source "
        "FROM {db}.resolutions_external_ingest",
    )
    found = queries.no_null_payouts(filled[1], emptied)
    assert (found.view_rows, found.without_vector) == (4, 4)


def test_one_row_per_condition_finds_the_guides_own_view_at_fault(filled: tuple[World, Session]) -> None:
    found = queries.one_row_per_condition(filled[1], place(filled))
    assert (found.rows, found.conditions, found.doubled) == (6, 6, 0)
    guide = damage(
        filled,
        "CREATE OR REPLACE VIEW {db}_clean.vw_resolutions_truth AS "
        "SELECT toString(condition_id_norm) AS condition_id, payout_numerators, toUInt64(payout_denominator) AS "
        "payout_denominator, toInt32(winning_index) AS winning_index, resolved_at, 'market_resolutions_final' AS source "
        "FROM {db}.market_resolutions_final WHERE payout_denominator > 0 UNION ALL SELECT condition_id, "
        "payout_numerators, payout_denominator, winning_index, resolved_at, source FROM {db}.resolutions_external_ingest",
    )
    found = queries.one_row_per_condition(filled[1], guide)
    assert (found.rows, found.conditions, found.doubled, found.examples) == (7, 6, 1, (condition(5),))


def test_each_external_row_is_included_until_the_view_leaves_one_out(filled: tuple[World, Session]) -> None:
    found = queries.goldsky_rows_included(filled[1], place(filled))
    assert (found.eligible, found.from_external, found.from_market, found.missing) == (5, 4, 1, 0)
    partial = damage(
        filled,
        "CREATE OR REPLACE VIEW {db}_clean.vw_resolutions_truth AS SELECT condition_id, payout_numerators, "
        "payout_denominator, winning_index, resolved_at, toString(source) AS source "
        f"FROM {{db}}.resolutions_external_ingest WHERE condition_id != '{condition(2)}'",
    )
    found = queries.goldsky_rows_included(filled[1], partial)
    assert (found.missing, found.examples) == (1, (condition(2),))


def test_sources_agree_in_lowest_terms_and_a_conflict_is_listed_with_both_vectors(
    filled: tuple[World, Session],
) -> None:
    found = queries.sources_agree(filled[1], place(filled))
    assert (found.overlap, found.differing) == (1, 0)  # [100, 0]/100 is [1, 0]/1
    conflicting = damage(
        filled,
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(1)}', [1, 0], 1, 0, NULL, now(), 'x')",
        f"INSERT INTO {{db}}.market_resolutions_final VALUES ('{condition(4)}', [1, 1, 0], 2, 0, NULL, now(), 'x')",
    )
    found = queries.sources_agree(filled[1], conflicting)
    assert (found.overlap, found.differing) == (3, 2)
    assert set(found.examples) == {
        queries.Disagreement(condition(1), "[1,0]/1", "[0,1]/1"),
        queries.Disagreement(condition(4), "[1,1,0]/2", "[1,1]/2"),
    }


def test_coverage_is_the_guides_before_and_after(filled: tuple[World, Session]) -> None:
    found = queries.coverage(filled[1], place(filled))
    assert (found.market_rows, found.market_conditions, found.external_conditions) == (2, 2, 5)
    assert (found.either_conditions, found.view_conditions, found.view_rows, found.view_exists) == (6, 6, 6, True)
    gone = damage(filled, "DROP VIEW {db}_clean.vw_resolutions_truth")
    found = queries.coverage(filled[1], gone)
    assert (found.either_conditions, found.view_conditions, found.view_rows, found.view_exists) == (6, 0, 0, False)
    with pytest.raises(ConfigurationError, match="materialize vw_resolutions_truth"):
        queries.one_row_per_condition(filled[1], gone)


TRADES = (
    "CREATE TABLE {db}.trades (wallet String, condition_id String, outcome UInt8, shares Float64, cash Float64) "
    "ENGINE = MergeTree ORDER BY wallet",
    f"INSERT INTO {{db}}.trades VALUES ('0xa', '{condition(1)}', 1, 10, -4), ('0xb', '{condition(2)}', 0, 100, -50), "
    f"('0xc', '{condition(99)}', 0, 1, -1)",
)
PNL = {
    "the live view": "wallet, sum(cash) AS trading_pnl, sum(paid) AS redemption_pnl, trading_pnl + redemption_pnl AS "
    "total_pnl, count() AS positions_settled, sum(paid) AS settled_value",
    "the guide's": "wallet AS wallet_address, sum(cash) + sum(paid) AS settled_pnl_usd",
}


def pnl_view(columns: str) -> str:
    return (
        f"CREATE OR REPLACE VIEW {{db}}_clean.vw_wallet_pnl_settled AS SELECT {columns} FROM (SELECT t.wallet AS wallet, "
        "t.cash AS cash, t.shares * r.payout_numerators[t.outcome + 1] / r.payout_denominator AS paid FROM {db}.trades AS t "
        "INNER JOIN {db}_clean.vw_resolutions_truth AS r ON r.condition_id = t.condition_id) GROUP BY wallet"
    )


@pytest.mark.parametrize("kind", PNL)
def test_settled_pnl_is_read_by_the_names_that_the_view_has(filled: tuple[World, Session], kind: str) -> None:
    found = queries.settled_pnl(filled[1], damage(filled, *TRADES, pnl_view(PNL[kind])))
    assert found is not None
    assert (found.rows, found.wallets, found.wallets_with_pnl, found.doubled_wallets) == (2, 2, 2, 0)
    assert found.total == pytest.approx(6 + 4)
    assert (found.not_added_up, found.doubled_conditions, found.examples) == (0, 0, ())
    if kind == "the live view":
        assert (found.wallet_column, found.pnl_column, found.positions) == ("wallet", "total_pnl", 2)
        assert found.redemption_total == pytest.approx(64)
    else:
        assert (found.wallet_column, found.pnl_column) == ("wallet_address", "settled_pnl_usd")
        assert (found.redemption_total, found.positions) == (None, None)


def test_a_wallet_paid_twice_is_told_from_a_wallet_newly_covered(filled: tuple[World, Session]) -> None:
    view = pnl_view(PNL["the live view"])
    before = queries.settled_pnl(filled[1], damage(filled, *TRADES, view))
    load_rows(filled[1], filled[0].target(filled[1]), ledger(*ROWS, resolved(99, 1, 0)))
    covered = queries.settled_pnl(filled[1], place(filled))
    assert before is not None
    assert covered is not None
    assert (before.wallets, covered.wallets) == (2, 3)
    assert (covered.doubled_wallets, covered.doubled_conditions) == (0, 0)
    twice = damage(
        filled,
        "RENAME TABLE {db}_clean.vw_resolutions_truth TO {db}_clean.once",
        "CREATE VIEW {db}_clean.vw_resolutions_truth AS SELECT * FROM {db}_clean.once UNION ALL "
        f"SELECT * FROM {{db}}_clean.once WHERE condition_id = '{condition(1)}'",
    )
    paid = queries.settled_pnl(filled[1], twice)
    assert paid is not None
    assert paid.doubled_conditions == 1
    assert paid.total == pytest.approx(covered.total + 6)
    doubled = damage(filled, view.replace("GROUP BY wallet", "GROUP BY wallet, cash"), TRADES[1].replace("-4)", "-5)"))
    found = queries.settled_pnl(filled[1], doubled)
    assert found is not None
    assert found.doubled_wallets == 1
    assert found.examples == (("0xa", 2),)


def test_redemptions_that_are_not_part_of_the_total_are_counted(filled: tuple[World, Session]) -> None:
    columns = PNL["the live view"].replace("trading_pnl + redemption_pnl AS", "trading_pnl AS")
    found = queries.settled_pnl(filled[1], damage(filled, *TRADES, pnl_view(columns)))
    assert found is not None
    assert found.not_added_up == 2


def test_a_pnl_view_without_the_needed_columns_is_an_error_and_none_at_all_is_none(
    filled: tuple[World, Session],
) -> None:
    assert queries.settled_pnl(filled[1], place(filled)) is None
    odd = damage(filled, "CREATE VIEW {db}_clean.vw_wallet_pnl_settled AS SELECT 1 AS pnl")
    with pytest.raises(ConfigurationError, match="PAYOUT_PNL_VIEW"):
        queries.settled_pnl(filled[1], odd)


def test_what_is_stored_of_an_id_can_be_looked_at(filled: tuple[World, Session]) -> None:
    found = queries.stored_vectors(filled[1], place(filled), [condition(2), condition(5), condition(6)])
    target, view = str(filled[0].target_name), filled[0].settings.truth_view
    assert {(v.table, v.condition_id, v.vector, v.winning_index, v.source) for v in found} == {
        (target, condition(2), "[27,23]/50", 0, "goldsky-api"),
        (target, condition(5), "[1,0]/1", 0, "goldsky-api"),
        (view, condition(2), "[27,23]/50", 0, "goldsky-api"),
        (view, condition(5), "[100,0]/100", 0, "market_resolutions_final"),
    }
    assert queries.stored_rows(filled[1], place(filled)) == 5


def test_a_survey_before_the_first_load_says_so(world: World) -> None:
    with world.session() as session, pytest.raises(ConfigurationError, match="nothing was loaded yet"):
        queries.survey(session, world.settings)


@pytest.fixture
def demo_settings(tmp_path: Path) -> Iterator[dict[str, object]]:
    from payout_pipeline.warehouse import embedded

    with (tmp_path / "conditions.csv").open("w") as file:
        file.write("condition_id,payouts,resolved_at\n")
        for number in range(3000):
            payouts = ["0", "1"] if number % 4 else ["0.5", "0.5"]
            file.write(f'0x{condition(number)},"{json.dumps(payouts).replace(chr(34), chr(34) * 2)}",\n')
    yield {"runtime_dir": str(tmp_path / "runtime")}
    embedded.close_engine()


def test_the_demo_tables_let_settled_pnl_grow_and_sources_agree(
    demo_settings: dict[str, object], tmp_path: Path
) -> None:
    settings = load_settings({}, **demo_settings)
    rows = ledger(*(resolved(n, 0, 1) if n % 4 else resolved(n, 1, 1) for n in range(3000)))
    with Warehouse.from_settings(settings).session("demo") as session:
        create_demo_pnl(session, settings, tmp_path / "conditions.csv")
        create_demo_pnl(session, settings, tmp_path / "conditions.csv")
        before = queries.settled_pnl(session, queries.survey(session, settings))
        from payout_pipeline.warehouse.target import ensure_sources

        load_rows(session, ensure_sources(session, settings).target, rows)
        rebuild_view(session, settings)
        here = queries.survey(session, settings)
        after = queries.settled_pnl(session, here)
        agree = queries.sources_agree(session, here)
        assert queries.one_row_per_condition(session, here).doubled == 0
    assert before is not None
    assert after is not None
    assert 0 < before.wallets_with_pnl < after.wallets_with_pnl
    assert (before.not_added_up, after.not_added_up, after.doubled_wallets) == (0, 0, 0)
    assert agree.overlap > 0
    assert agree.differing == 0


def test_demo_data_never_goes_to_a_server(http_world: World, tmp_path: Path) -> None:
    with http_world.session() as session, pytest.raises(ConfigurationError, match="embedded"):
        create_demo_pnl(session, http_world.settings, tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("statement", "fmt", "expected"),
    [
        ("SELECT 1 AS n", "CSV", "1\n"),
        ("select 1;", "TSVWithNames", "1\n1\n"),
        ("-- a comment\n/* and one */ WITH 2 AS n SELECT n", "CSV", "2\n"),
        ("SELECT 1 FORMAT JSONEachRow", "Pretty", '{"1":1}\n'),
        ("(SELECT 3)", "CSV", "3\n"),
        ("SHOW DATABASES LIKE 'system'", "CSV", '"system"\n'),
        ("CREATE TABLE {db}.t (n UInt8) ENGINE = Memory", "Pretty", ""),
    ],
)
def test_the_console_prints_what_clickhouse_answers(world: World, statement: str, fmt: str, expected: str) -> None:
    assert run_statement(world.settings, statement.replace("{db}", world.database), fmt) == expected


def test_the_console_refuses_nothing_and_a_format_that_is_none(world: World) -> None:
    for statement, fmt in (("  ;", "CSV"), ("-- nothing\n", "CSV"), ("SELECT 1", "CSV; DROP TABLE x")):
        with pytest.raises(ConfigurationError):
            run_statement(world.settings, statement, fmt)


def test_the_console_never_runs_a_statement_twice_after_a_lost_answer(http_world: World) -> None:
    http_world.run("CREATE TABLE {db}.t (n UInt8) ENGINE = MergeTree ORDER BY n")
    assert http_world.front is not None
    http_world.front.faults(Faults(matching=r"INSERT INTO \S+\.t ", times=1, lose_answer=True))
    with pytest.raises(WarehouseUnavailableError):
        run_statement(http_world.settings, f"INSERT INTO {http_world.database}.t SELECT 1")
    assert http_world.read("SELECT n FROM {db}.t") == {(1,): 1}
