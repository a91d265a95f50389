"""What Dagster sees can be loaded as a whole, as its web server does it."""

from __future__ import annotations

import dagster as dg
import pytest

from payout_pipeline.definitions import build_defs
from payout_pipeline.settings import load_settings


@pytest.mark.parametrize(
    "env", [{}, {"CONDITION_IDS_QUERY": "SELECT 1"}, {"GOLDSKY_MODE": "scan"}, {"PAYOUT_PNL_VIEW": ""}], ids=str
)
def test_the_definitions_can_be_loaded(env: dict[str, str]) -> None:
    dg.Definitions.validate_loadable(build_defs(load_settings(env)))
