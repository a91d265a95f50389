"""The environment: every wrong variable is named in one message, before anything is fetched (RELIABILITY F1, G4)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.settings import GUIDE_SHARE, VARIABLES, RateLimit, load_settings


def test_defaults_are_those_of_the_contract():
    settings = load_settings({})
    assert (settings.workers, settings.goldsky_batch_size, settings.goldsky_concurrent_requests) == (4, 1000, 8)
    assert settings.goldsky_rate_limit == RateLimit(requests=50, seconds=10)
    assert settings.goldsky_block_margin == 250
    assert settings.min_unique_conditions == GUIDE_SHARE
    assert settings.success_bar(170_448) == 120_000
    assert settings.target_table == "default.resolutions_external_ingest"
    assert settings.embedded


def test_f1_all_wrong_variables_are_named_in_one_message():
    env = {
        "PAYOUT_WORKERS": "0",
        "PAYOUT_WORKRES": "4",
        "GOLDSKY_BATCH_SIZE": "1001",
        "GOLDSKY_CONCURRENT_REQUESTS": "-1",
        "GOLDSKY_RATE_LIMIT": "fifty",
        "GOLDSKY_TIMEOUT_SECONDS": "nan",
        "GOLDSKY_MAX_RETRIES": "3.0",
        "GOLDSKY_ENDPOINT": "ftp://example.org",
        "PAYOUT_MAX_ERROR_RATE": "inf",
        "PAYOUT_MIN_UNIQUE_CONDITIONS": "-3",
        "PAYOUT_TARGET_TABLE": "default.t; DROP TABLE x",
        "PAYOUT_CHECKPOINT_INTERVAL": "",
        "GOLDSKY_MODE": "both",
        "DEBUG": "perhaps",
        "CLICKHOUSE_PORT": "70000",
    }
    with pytest.raises(ConfigurationError) as caught:
        load_settings(env)
    message = str(caught.value)
    missing = [name for name in env if name not in message]
    assert not missing
    assert "did you mean PAYOUT_WORKERS?" in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", sorted(v for v in VARIABLES.values() if v.startswith(("PAYOUT_", "GOLDSKY_"))))
def test_f1_a_variable_in_lower_case_is_an_unknown_one(name):
    with pytest.raises(ConfigurationError, match=f"{name.lower()}: not a variable.*did you mean {name}"):
        load_settings({name.lower(): "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50/10s", (50, 10.0)),
        ("5/s", (5, 1.0)),
        (" 300 / 1m ", (300, 60.0)),
        ("20/500ms", (20, 0.5)),
        ("7/2", (7, 2.0)),
    ],
)
def test_rate_limits_are_read(text, expected):
    limit = RateLimit.parse(text)
    assert (limit.requests, limit.seconds) == expected


@pytest.mark.parametrize(
    "text", ["", "50", "0/10s", "50/0s", "-5/10s", "50/10x", "5e1/10s", "50/", "５０/10s", "1/100h"]
)
def test_f1_rate_limits_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError):
        RateLimit.parse(text)


@given(st.integers(min_value=1, max_value=10_000_000))
def test_the_success_bar_is_the_guides_share_rounded_up(ids):
    bar = load_settings({}).success_bar(ids)
    assert bar - 1 < Fraction(120_000, 170_448) * ids <= bar


@pytest.mark.parametrize(
    ("text", "ids", "bar"), [("0.37", 100, 37), ("1/3", 10, 4), ("120000", 5, 120_000), ("0", 9, 0), ("1", 9, 1)]
)
def test_the_success_bar_is_a_share_below_one_and_a_count_from_one_on(text, ids, bar):
    assert load_settings({"PAYOUT_MIN_UNIQUE_CONDITIONS": text}).success_bar(ids) == bar


def test_g1_a_wrong_secret_is_named_but_never_shown():
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"PAYOUT_LIMITER_URL": "mysql://user:canary-9f3a@host/db", "PAYOUT_WORKERS": "x"})
    assert "PAYOUT_LIMITER_URL" in str(caught.value)
    assert "canary-9f3a" not in str(caught.value)


def test_g1_credentials_in_the_endpoint_are_refused():
    with pytest.raises(ConfigurationError, match="GOLDSKY_API_TOKEN") as caught:
        load_settings({"GOLDSKY_ENDPOINT": "https://user:canary-77@example.org/gn"})
    assert "canary-77" not in str(caught.value)


def test_the_real_environment_wins_over_dotenv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PAYOUT_WORKERS=7\nGOLDSKY_BATCH_SIZE=10\n")
    monkeypatch.setenv("GOLDSKY_BATCH_SIZE", "20")
    settings = load_settings()
    assert (settings.workers, settings.goldsky_batch_size) == (7, 20)
