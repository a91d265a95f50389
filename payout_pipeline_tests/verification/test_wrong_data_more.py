"""H1 to H5 again, with other members of each class than ``test_wrong_data.py`` has."""

from __future__ import annotations

import pytest

from payout_pipeline_tests.running import Place
from payout_pipeline_tests.verification.test_wrong_data import (
    COLUMNS,
    FROZEN,
    MARKET,
    PNL,
    TABLE,
    VIEW,
    _states,
    _verdict,
    _view,
    assert_named,
    finished,
    place,
)

__all__ = ["finished", "place"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _pnl(select: str) -> list[str]:
    return [
        f"CREATE TABLE default.pnl_frozen ENGINE = MergeTree ORDER BY wallet AS SELECT * FROM {PNL}",
        f"CREATE OR REPLACE VIEW {PNL} AS {select}",
    ]


ONE_WALLET = "(SELECT max(wallet) FROM default.pnl_frozen)"
WRONG: dict[str, tuple[list[str], set[str]]] = {
    "the view is a table": (
        [
            FROZEN,
            f"DROP VIEW {VIEW}",
            f"CREATE TABLE {VIEW} ENGINE = MergeTree ORDER BY condition_id AS SELECT * FROM default.frozen",
        ],
        {"view_equals_sources"},
    ),
    "the view has its columns in another order": (
        _view(
            "SELECT source, condition_id, payout_denominator, payout_numerators, winning_index, resolved_at FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view has a column more": (_view("SELECT *, 1 AS more FROM default.frozen"), {"view_equals_sources"}),
    "the view has nullable vectors": (
        _view(
            "SELECT condition_id, CAST(payout_numerators, 'Array(Nullable(UInt64))') AS payout_numerators, "
            "payout_denominator, winning_index, resolved_at, source FROM default.frozen"
        ),
        {"view_equals_sources"},
    ),
    "the view has a row with the id NULL": (
        _view(
            f"SELECT {COLUMNS} FROM default.frozen UNION ALL SELECT NULL, [1, 0], 1, toInt32(0), NULL, 'goldsky-api'"
        ),
        {"view_equals_sources"},
    ),
    "a vector's sum wraps around to its denominator": (
        [
            f"INSERT INTO {TABLE} (condition_id, payout_numerators, payout_denominator, winning_index, source) VALUES "
            "(repeat('ab', 32), [9223372036854775808, 9223372036854775809], 1, 1, 'other')"
        ],
        {"payout_quality"},
    ),
    "a vector's sum is one of a billion too large": (
        [
            f"INSERT INTO {TABLE} (condition_id, payout_numerators, payout_denominator, winning_index, source) VALUES "
            "(repeat('ab', 32), [1000000000, 1], 1000000000, 0, 'other')"
        ],
        {"payout_quality"},
    ),
    "the P&L view pays a wallet in two spellings": (
        _pnl(
            "SELECT * FROM default.pnl_frozen UNION ALL SELECT * REPLACE (upper(wallet) AS wallet) FROM "
            "(SELECT * FROM default.pnl_frozen ORDER BY wallet LIMIT 1)"
        ),
        {"settled_pnl"},
    ),
    "the P&L view has a NULL in a Decimal": (
        _pnl(
            f"SELECT * REPLACE (if(wallet = {ONE_WALLET}, NULL, toDecimal64(total_pnl, 4)) AS total_pnl) "
            "FROM default.pnl_frozen"
        ),
        {"settled_pnl"},
    ),
    "the P&L view has lost its redemptions": (
        _pnl("SELECT * REPLACE (toFloat64(0) AS redemption_pnl, trading_pnl AS total_pnl) FROM default.pnl_frozen"),
        {"settled_pnl"},
    ),
    "the P&L view is empty": (_pnl("SELECT * FROM default.pnl_frozen WHERE 0"), {"settled_pnl"}),
    "the P&L view has infinity": (
        _pnl(f"SELECT * REPLACE (if(wallet = {ONE_WALLET}, inf, total_pnl) AS total_pnl) FROM default.pnl_frozen"),
        {"settled_pnl"},
    ),
}


@pytest.mark.parametrize(("statements", "named"), WRONG.values(), ids=WRONG.keys())
def test_h1_wrong_data_is_named_by_a_check(place: Place, statements: list[str], named: set[str]) -> None:
    assert_named(place, statements, named)


def test_h4_what_the_sources_gained_since_the_last_accepted_rebuild_must_not_be_lost(place: Place) -> None:
    place.execute(
        f"INSERT INTO {MARKET} (condition_id_norm, payout_numerators, payout_denominator, winning_index, updated_at) "
        "SELECT leftPad(lower(hex(number + 1)), 64, '0'), [1, 0], 1, 0, now() FROM numbers(50)"
    )
    place.materialize(
        "vw_resolutions_truth", PAYOUT_MIN_UNIQUE_CONDITIONS="1000"
    )  # a backfill begins, and is not accepted
    place.execute(f"DELETE FROM {MARKET} WHERE condition_id_norm < leftPad('ff', 64, '0')")
    place.materialize("vw_resolutions_truth")

    code, report = _verdict(place, "report")
    assert code == 1
    assert "coverage_before_after" in _states(report, "failed")


def test_h4_another_view_is_not_measured_by_the_first_ones_baseline(place: Place) -> None:
    place.execute(f"TRUNCATE TABLE {MARKET}")
    other = {"PAYOUT_TRUTH_VIEW": "cascadian_clean.another", "PAYOUT_PNL_VIEW": ""}
    place.materialize("vw_resolutions_truth", **other)
    assert _verdict(place, **other)[0] == 0

    place.materialize("vw_resolutions_truth")
    code, report = _verdict(place)
    assert code == 1
    assert "coverage_before_after" in _states(report, "failed")
