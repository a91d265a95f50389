"""B1 and everything together: seeded rounds of chaos. ``make chaos`` plays more; a seed repeats its plan."""

from __future__ import annotations

import pytest

from payout_pipeline_tests.chaos.fixtures import nursery  # noqa: F401
from payout_pipeline_tests.chaos.rounds import plan_of, run_round

pytestmark = [pytest.mark.timeout(600)]

#: Embedded and server; both kill every process at once and damage something in between.
SEEDS = (3, pytest.param(1002, marks=pytest.mark.slow))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.slow
def test_b1_killed_at_random_points_and_started_again_nothing_is_lost(tmp_path, nursery, seed):  # noqa: F811
    result = run_round(seed, tmp_path, nursery)
    assert not result.violations, result.describe()


def test_a_seed_is_a_plan():
    assert plan_of(7) == plan_of(7)
    plans = [plan_of(seed) for seed in range(200)]
    assert {stroke.blow for plan in plans for stroke in plan.strokes} >= {
        "kill all",
        "kill parent",
        "SIGTERM",
        "SIGINT",
    }
    assert {plan.front for plan in plans} == {True, False}
