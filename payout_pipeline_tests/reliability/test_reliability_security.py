"""G1-G6: no secret leaves, and nothing from outside becomes a statement, a query, a line of a log or markup."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from payout_pipeline.errors import ConfigurationError, PayoutPipelineError
from payout_pipeline.scrub import excerpt
from payout_pipeline.settings import load_settings
from payout_pipeline_tests.chaos.fixtures import case, nursery, served  # noqa: F401
from payout_pipeline_tests.chaos.inline import inline
from payout_pipeline_tests.chaos.processes import ROOT
from payout_pipeline_tests.chaos.world import PASSWORD, TOKEN, world
from payout_pipeline_tests.clickhouse_front import Faults
from payout_pipeline_tests.oracle import leaks

HOSTILE = (
    "\x1b[31m'); DROP TABLE default.resolutions_external_ingest; -- [x](javascript:alert(1)) <script>alert(1)</script>\n"
    "2026-01-01 INFO forged\u202e"
)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_g1_a_run_through_every_error_path_leaves_no_canary_behind(tmp_path, nursery):  # noqa: F811
    """Real processes with DEBUG on: a gateway that repeats all headers, a database whose error repeats the password."""
    with world(tmp_path, nursery, front=True, workers=1, ids=400, DEBUG="1", GOLDSKY_MAX_RETRIES="1") as place:
        assert place.front is not None
        place.server.faults.add("status", requests=(2,), status=502, echo=True)
        place.server.faults.add("errors", requests=(3,), message="Store error: database unavailable", echo=True)
        first = place.run()
        place.server.faults.add("status", status=401, echo=True)
        refused = place.run()
        assert refused.code == 1
        place.server.faults.clear()
        echo = f"writer:{PASSWORD} token {TOKEN} Basic d3JpdGVyOndyMXRlci1wYXNz"
        place.front.faults(
            Faults(matching="INSERT|SELECT", times=3, code=497, message=f"Not enough privileges for {echo}")
        )
        assert place.run().code == 1
        place.front.faults()
        for command in (("report",), ("status",), ("doctor",)):
            place.run(*command)
        assert place.run().code == 0, place.last_words()
        assert first.code in (0, 1)
        place.assert_right()
        assert not leaks((TOKEN, PASSWORD), place.runtime, [run.out for run in place.runs])
        assert any("***" in run.text() for run in place.runs)  # the echoes did arrive


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("CLICKHOUSE_HOST", "http://writer:canary-in-Url%2B55@127.0.0.1:1"),
        ("PAYOUT_LIMITER_URL", "redis://limiter:canary-in-Url%2B55@127.0.0.1:1/0"),
    ],
)
def test_g1_a_password_in_a_url_that_leads_nowhere_is_not_shown(tmp_path, nursery, variable, url):  # noqa: F811
    with world(tmp_path, nursery, workers=1, ids=5, DEBUG="1", CLICKHOUSE_WAIT_SECONDS="1", **{variable: url}) as place:
        for command in ("backfill", "doctor"):
            place.run(command)
        assert place.runs[0].code in (1, 2)
        assert "127.0.0.1:1" in place.runs[0].text() or variable in place.runs[0].text()
        secrets = ("canary-in-Url%2B55", "canary-in-Url+55")
        assert not leaks(secrets, place.runtime, [run.out for run in place.runs])


@pytest.mark.parametrize("kind", ["status", "errors"])
def test_g1_an_answer_that_repeats_the_token_fails_without_it(tmp_path, kind):
    with inline(tmp_path, DEBUG="1", GOLDSKY_MAX_RETRIES="0", GOLDSKY_OUTAGE_BUDGET_SECONDS="0") as place:
        options = {"status": 403} if kind == "status" else {"message": "Type `C` has no field `x`"}
        place.server.faults.add(kind, echo=True, **options)
        with pytest.raises(PayoutPipelineError) as error:
            place.fetch()
        assert (
            "authorization" in str(error.value).lower() or "request:" in str(error.value) or "403" in str(error.value)
        )
        assert TOKEN not in str(error.value) + place.log_text
        assert not leaks((TOKEN,), place.root)


def test_g2_ids_travel_as_variables_only(case):  # noqa: F811
    """The query's text is the same for every batch: no id stands in it."""
    case.backfill()
    assert {entry.operation for entry in case.server.log.batches()} == {case.server.log.batches()[0].operation}
    assert {i.removeprefix("0x") for entry in case.server.log.batches() for i in entry.ids} == set(case.ids)


def test_g2_hostile_text_in_answers_is_kept_as_text_and_reaches_no_statement_log_line_or_markup(case):  # noqa: F811
    first, second = list(case.truth.resolved)[:2]
    fields = {"0x" + first: {"payouts": [HOSTILE, "1"]}, "0x" + second: {"payouts": HOSTILE}}
    case.server.faults.add("raw", fields=fields)
    case.env["PAYOUT_MAX_ERROR_RATE"] = "0.5"
    case.backfill()
    left = {i: v for i, v in case.truth.resolved.items() if i not in (first, second)}
    from dataclasses import replace

    case.assert_right(truth=replace(case.truth, resolved=left, invalid=frozenset({first, second})))
    from payout_pipeline_tests.oracle import ledger_rows

    rows = {row["condition_id"]: row for row in ledger_rows(case.runtime, 1)}
    for identity in (first, second):
        assert not re.search(r"[\x00-\x1f\u202e]", rows[identity]["error"])
    assert not any(re.search(r"[\x1b\u202e]|\nforged", line) for line in case.said.lines)


def test_g2_a_hostile_error_message_is_one_escaped_line(case):  # noqa: F811
    case.server.faults.add("errors", message="Type `Condition` has no field `payouts` " + HOSTILE)
    with pytest.raises(PayoutPipelineError) as error:
        case.fetch()
    assert "\x1b" not in str(error.value)
    assert "\n2026-01-01" not in str(error.value)
    assert "\u202e" not in str(error.value)


@pytest.mark.parametrize(
    "character", ["\ufeff", "\u200b", "\u200f", "\u2066", "\u2028", "\xad", "\ud800", "\x9b", "\x00"]
)
def test_g2_invisible_characters_of_an_answer_are_shown_as_escapes(character):
    shown = excerpt(f"a{character}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    shown.encode()


@pytest.mark.parametrize(
    "variable",
    [
        "PAYOUT_TARGET_TABLE",
        "PAYOUT_TRUTH_VIEW",
        "PAYOUT_MARKET_RESOLUTIONS_TABLE",
        "PAYOUT_PNL_VIEW",
        "PAYOUT_CLICKHOUSE_CLUSTER",
        "CLICKHOUSE_DATABASE",
    ],
)
@pytest.mark.parametrize("name", ["x; DROP TABLE y", "a.b`; --", "a.b.c'", "default.t\nUNION", "default." + "\u0430bc"])
def test_g4_a_name_that_is_no_identifier_is_refused_before_anything_happens(case, variable, name):  # noqa: F811
    case.env[variable] = name
    with pytest.raises(ConfigurationError, match=variable):
        load_settings(case.env)


def test_g6_the_local_servers_listen_on_loopback_only_and_the_readme_says_that_there_is_no_login(tmp_path):
    csv = tmp_path / "conditions.csv"
    csv.write_text("condition_id,payouts,resolved_at\n" + "a" * 64 + ',"[""1"",""0""]",\n')
    command = [sys.executable, "-m", "payout_pipeline.cli", "subgraph", "--conditions", str(csv), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2].split("/")[0])
            assert _listens(port) == {"127.0.0.1"}
        finally:
            process.terminate()
    readme = (ROOT / "README.md").read_text()
    assert "no login" in readme
    assert re.search(r"dagster dev[^\n]*--host 127\.0\.0\.1", (ROOT / "Makefile").read_text())


def _listens(port: int) -> set[str]:
    """The addresses on which somebody listens at ``port``."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        address, _, number = local.partition(":")
        if state == "0A" and int(number, 16) == port:
            found.add(socket.inet_ntoa(bytes.fromhex(address)[::-1]))
    return found
