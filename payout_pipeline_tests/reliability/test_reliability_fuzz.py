"""E3, A5, D3: a second of fuzzing each; ``make fuzz`` takes ten minutes each."""

from __future__ import annotations

import pytest

from payout_pipeline_tests.fuzz.targets import TARGETS, seeds
from tools.fuzz import by_mutation


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_rightly_or_refused(name):
    for data in seeds(name):
        TARGETS[name](data)
    assert by_mutation(name, TARGETS[name], seconds=1.0, seed=7)
