"""Fixtures for everybody. What belongs to one room stands beside its tests; heavy ones are plugins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from payout_pipeline import settings
from payout_pipeline.settings import VARIABLES

pytest_plugins = ["payout_pipeline_tests.warehouse_fixtures"]

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's own environment, and no .env of theirs, decides a test."""
    for name in (*VARIABLES.values(), "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    read = settings.environment
    monkeypatch.setattr(
        settings, "environment", lambda dotenv=None: dict(os.environ) if Path.cwd() == REPOSITORY else read(dotenv)
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real condition ids and outcomes, which are not part of the repository."""
    directory = REPOSITORY.parent / "shared" / "data"
    if not (directory / "condition_ids.txt").is_file():
        pytest.skip("the real ids are not on this machine")
    return directory
