"""The local subgraph's faults, rate limit and log do what they say; each is seen as a client sees it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.subgraph.engine import DEPLOYMENT
from payout_pipeline.subgraph.faults import KINDS, Faults
from payout_pipeline.subgraph.log import LoggedRequest, max_in_window
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline.subgraph.store import ConditionRow, ConditionStore
from payout_pipeline_tests.subgraph_conformance import chain, cid, ids

STORE = ConditionStore.from_rows([ConditionRow(cid(n), ("1", "0")) for n in range(1, 301)])
QUERY = "query Batch($ids:[ID!]!){conditions(first:1000,where:{id_in:$ids},block:{number:10}){id}}"
WANTED = [cid(n) for n in range(1, 5)]
TRUTH = {"data": {"conditions": ids(*WANTED)}}


class Client:
    """One request after the other; headers and status are kept for the test to look at."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self.parts = urlsplit(url)
        self.timeout = timeout
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""

    def ask(self, wanted: list[str] | None = None, query: str = QUERY, **headers: str) -> Any:
        """The JSON body, or the text where it is no JSON."""
        variables = {"ids": WANTED if wanted is None else wanted}
        return self.post(self.parts.path, {"query": query, "variables": variables}, **headers)

    def post(self, path: str, payload: Any, **headers: str) -> Any:
        return self._send("POST", path, json.dumps(payload), headers)

    def log(self, method: str = "GET") -> Any:
        return self._send(method, "/_control/log", None, {})

    def _send(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Any:
        connection = http.client.HTTPConnection(self.parts.hostname or "", self.parts.port, timeout=self.timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            self.status, self.headers = response.status, {k.lower(): v for k, v in response.headers.items()}
            self.text = response.read().decode()
        finally:
            connection.close()
        try:
            return json.loads(self.text)
        except json.JSONDecodeError:
            return self.text


@pytest.fixture(scope="module")
def running() -> Iterator[SubgraphServer]:
    with SubgraphServer(SubgraphConfig(STORE, chain=chain())) as server:
        yield server


@pytest.fixture
def server(running: SubgraphServer) -> SubgraphServer:
    running.faults.clear()
    running.log.clear()
    running.configure(
        rate_limit=None,
        retry_after="seconds",
        latency=0.0,
        jitter=0.0,
        token=None,
        max_complexity=None,
        max_aliases=None,
        alias_timeout=None,
        max_body_bytes=None,
    )
    return running


@pytest.fixture
def client(server: SubgraphServer) -> Client:
    return Client(server.url)


# -- the rate limit ---------------------------------------------------------------------------------------------------


def test_requests_over_the_limit_are_answered_429_until_the_window_has_passed(server: SubgraphServer) -> None:
    client = Client(server.url)
    server.configure(rate_limit="3/0.5s")
    seen = [client.ask() and client.status for _ in range(5)]
    assert seen == [200, 200, 200, 429, 429]
    assert client.headers["retry-after"] == "1"
    assert client.text == "Too Many Requests"
    time.sleep(0.55)
    assert client.ask() == TRUTH
    assert server.log.statuses() == Counter({200: 4, 429: 2})


def test_refused_requests_are_logged_with_what_they_asked_for(server: SubgraphServer, client: Client) -> None:
    server.configure(rate_limit="1/60s")
    client.ask(WANTED[:1])
    client.ask(WANTED)
    assert server.log.asked_ids(429) == Counter(WANTED)
    assert server.log.asked_ids(200) == Counter(WANTED[:1])


@pytest.mark.parametrize(("form", "header"), [("7", "7"), ("soon", "soon"), ("1e99", "1e99"), (None, None)])
def test_retry_after_is_sent_as_configured(server: SubgraphServer, client: Client, form: str, header: str) -> None:
    server.configure(rate_limit="1/60s", retry_after=form)
    client.ask()
    client.ask()
    assert client.status == 429
    assert client.headers.get("retry-after") == header


def test_a_malformed_rate_limit_is_refused(server: SubgraphServer) -> None:
    with pytest.raises(ConfigurationError, match="got '0/10s'"):
        server.configure(rate_limit="0/10s")


@given(st.lists(st.floats(0, 100), max_size=60), st.floats(0.1, 20))
def test_the_fullest_window_is_the_one_that_a_slow_count_finds(arrivals: list[float], seconds: float) -> None:
    slow = max((sum(1 for other in arrivals if 0 <= start - other < seconds) for start in arrivals), default=0)
    assert max_in_window(arrivals, seconds) == slow


def test_latency_and_jitter_delay_an_answer(server: SubgraphServer, client: Client) -> None:
    server.configure(latency=0.15, jitter=0.05)
    started = time.monotonic()
    assert client.ask() == TRUTH
    assert 0.1 <= time.monotonic() - started < 1.0
    assert 0.1 <= (server.log.entries[0].seconds or 0) < 1.0


def test_the_log_tells_what_was_asked(server: SubgraphServer, client: Client) -> None:
    client.ask()
    client.ask(query="{_meta{deployment}}")
    first, second = server.log.entries
    assert (first.number, first.status, first.operation, first.aliases) == (1, 200, "Batch", 1)
    assert (first.ids, first.block, first.rows) == (tuple(WANTED), {"number": 10}, 4)
    assert (second.number, second.aliases, second.ids) == (2, 0, ())
    assert [entry.number for entry in server.log.batches()] == [1]
    assert first.arrived < second.arrived


# -- faults that take the place of an answer --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_a_status_fault_sends_that_status(server: SubgraphServer, client: Client, status: int) -> None:
    server.faults.add("status", status=status, times=1)
    client.ask()
    assert client.status == status
    assert client.ask() == TRUTH


def test_a_status_fault_can_look_like_any_other_429(server: SubgraphServer, client: Client) -> None:
    server.faults.add("status", status=429, retry_after="9999999999", text="", times=1)
    assert client.ask() == ""
    assert (client.status, client.headers["retry-after"]) == (429, "9999999999")


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("empty", ""),
        ("object", {}),
        ("message", {"message": "Not found"}),
        ("null_data", {"data": None}),
    ],
)
def test_a_body_fault_answers_200_with_that_body(server: SubgraphServer, client: Client, form: str, body: Any) -> None:
    server.faults.add("body", form=form)
    assert client.ask() == body
    assert client.status == 200


def test_html_and_half_an_answer_are_no_json(server: SubgraphServer, client: Client) -> None:
    server.faults.add("body", form="html", times=1)
    assert client.ask().startswith("<!DOCTYPE html>")
    assert client.headers["content-type"].startswith("text/html")
    server.faults.add("body", form="truncated", times=1)
    whole = json.dumps(TRUTH, separators=(",", ":"))
    assert client.ask() == whole[: len(whole) // 2]


def test_errors_come_with_or_without_the_data(server: SubgraphServer, client: Client) -> None:
    reorg = "the chain was reorganized while executing the query"
    server.faults.add("errors", message=reorg, times=1)
    assert client.ask() == {"errors": [{"message": reorg}]}
    server.faults.add("errors", message=reorg, with_data=True, times=1)
    assert client.ask() == {**TRUTH, "errors": [{"message": reorg}]}


def test_a_statement_times_out_for_more_ids_than_the_limit_and_echoes_them(
    server: SubgraphServer, client: Client
) -> None:
    server.faults.add("statement_timeout", max_ids=2)
    message = client.ask()["errors"][0]["message"]
    assert message.startswith("Failed to get entities from store: canceling statement due to statement timeout")
    assert all(identity in message for identity in WANTED)
    assert client.ask(WANTED[:2]) == {"data": {"conditions": ids(*WANTED[:2])}}


def test_a_poisoned_id_fails_every_batch_that_names_it(server: SubgraphServer, client: Client) -> None:
    server.faults.add("poison", ids=[WANTED[2]], status=500)
    client.ask()
    assert client.status == 500
    assert client.ask(WANTED[:2])["data"]
    server.faults.clear()
    server.faults.add("poison", ids=[WANTED[2]], message="Query timed out")
    assert client.ask() == {"errors": [{"message": "Query timed out"}]}


def test_a_hanging_server_accepts_and_never_answers(server: SubgraphServer) -> None:
    server.faults.add("hang", times=1)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        Client(server.url, timeout=0.5).ask()
    assert time.monotonic() - started >= 0.5
    assert Client(server.url).ask() == TRUTH


def test_a_dropped_connection_ends_without_an_answer(server: SubgraphServer, client: Client) -> None:
    server.faults.add("drop", times=1)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        client.ask()
    assert server.log.entries[0].status == 0


def test_a_reset_cuts_the_body(server: SubgraphServer, client: Client) -> None:
    server.faults.add("reset", times=1)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        client.ask()
    assert server.log.entries[0].status == 0
    assert client.ask() == TRUTH


def test_a_slow_answer_is_the_truth_all_the_same(server: SubgraphServer, client: Client) -> None:
    server.faults.add("slow", seconds=0.3)
    started = time.monotonic()
    assert client.ask() == TRUTH
    assert time.monotonic() - started >= 0.3


def test_an_outage_lasts_its_time_from_the_request_that_it_strikes(server: SubgraphServer, client: Client) -> None:
    server.faults.add("outage", requests=[2], seconds=0.4)
    seen = [client.ask() and client.status for _ in range(4)]
    assert seen == [200, 503, 503, 503]
    time.sleep(0.45)
    assert client.ask() == TRUTH


def test_an_outage_can_drop_connections(server: SubgraphServer, client: Client) -> None:
    fault = server.faults.add("outage", mode="drop", seconds=60)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        client.ask()
    server.faults.remove(fault)
    assert client.ask() == TRUTH


# -- faults that spoil an answer --------------------------------------------------------------------------------------


def answered(client: Client, **headers: str) -> list[str]:
    return [row["id"] for row in client.ask(**headers)["data"]["conditions"]]


def test_a_page_is_capped_without_a_hint(server: SubgraphServer, client: Client) -> None:
    many = [cid(n) for n in range(1, 201)]
    server.faults.add("page_cap", rows=100)
    assert [row["id"] for row in client.ask(many)["data"]["conditions"]] == many[:100]


def test_a_foreign_id_takes_the_place_of_a_row(server: SubgraphServer, client: Client) -> None:
    server.faults.add("foreign_id")
    assert answered(client) == [*WANTED[:-1], cid(0)]


def test_an_extra_id_comes_on_top(server: SubgraphServer, client: Client) -> None:
    server.faults.add("extra_id")
    assert answered(client) == [*WANTED, cid(0)]


def test_a_row_comes_twice(server: SubgraphServer, client: Client) -> None:
    server.faults.add("duplicate_id")
    assert answered(client) == [WANTED[0], *WANTED]


def test_an_id_is_in_upper_case_or_none_at_all(server: SubgraphServer, client: Client) -> None:
    wanted = ["0x" + "ab" * 32]
    store = ConditionStore.from_rows([ConditionRow(wanted[0], ("1", "0"))])
    with SubgraphServer(SubgraphConfig(store, chain=chain())) as other:
        upper = Client(other.url)
        other.faults.add("upper_case_id", times=1)
        assert upper.ask(wanted)["data"]["conditions"] == ids("0x" + "AB" * 32)
    server.faults.add("malformed_id")
    assert answered(client) == ["0xnot-an-id", *WANTED[1:]]


def test_an_existing_id_is_left_out(server: SubgraphServer, client: Client) -> None:
    server.faults.add("omit_id")
    assert answered(client) == WANTED[1:]


@pytest.mark.parametrize(
    "raw", [["1", "1"], ["-1", "2"], ["NaN"], ["1e400", "0"], ["", "1"], [None, "1"], [], None, 7, "x", {}]
)
def test_any_json_is_served_as_a_vector(server: SubgraphServer, client: Client, raw: Any) -> None:
    server.faults.add("raw", fields={WANTED[0]: {"payouts": raw}})
    rows = client.ask(query=QUERY.replace("{id}}", "{id payouts}}"))["data"]["conditions"]
    assert rows == [{"id": WANTED[0], "payouts": raw}, *({"id": i, "payouts": ["1", "0"]} for i in WANTED[1:])]


def test_the_head_looks_old_while_the_data_stays(server: SubgraphServer, client: Client) -> None:
    server.faults.add("stale_head", seconds=86_400)
    meta = client.ask(query="{_meta{block{number timestamp}}}")["data"]["_meta"]["block"]
    assert meta == {"number": 12, "timestamp": chain().timestamp(12) - 86_400}
    assert client.ask() == TRUTH


def test_indexing_errors_are_told_although_data_is_served(server: SubgraphServer, client: Client) -> None:
    server.faults.add("indexing_errors")
    query = "{conditions(first:1){id} _meta{hasIndexingErrors}}"
    assert client.ask(query=query) == {"data": {"conditions": ids(cid(1)), "_meta": {"hasIndexingErrors": True}}}


def test_the_deployment_changes_at_a_request(server: SubgraphServer, client: Client) -> None:
    server.faults.add("deployment", deployment="QmOther", requests=range(3, 100))
    seen = [client.ask(query="{_meta{deployment}}")["data"]["_meta"]["deployment"] for _ in range(4)]
    assert seen == [DEPLOYMENT] * 2 + ["QmOther"] * 2


# -- several lists in one query ---------------------------------------------------------------------------------------

LISTS = [[cid(n) for n in range(low, low + 3)] for low in (1, 11, 21)]


def several(client: Client, first: int = 1000) -> Any:
    """The answer to one query with three lists, ``b0`` to ``b2``, and ``_meta``."""
    declared = ",".join(f"$b{n}:[ID!]!" for n in range(3))
    lists = " ".join(f"b{n}:conditions(first:{first},where:{{id_in:$b{n}}}){{id}}" for n in range(3))
    variables = {f"b{n}": listed for n, listed in enumerate(LISTS)}
    query = f"query({declared}){{{lists} _meta{{block{{number}}}}}}"
    return client.post(client.parts.path, {"query": query, "variables": variables})


WHOLE = {**{f"b{n}": ids(*listed) for n, listed in enumerate(LISTS)}, "_meta": {"block": {"number": 12}}}


def test_several_lists_are_answered_and_logged(server: SubgraphServer, client: Client) -> None:
    assert several(client) == {"data": WHOLE}
    (entry,) = server.log.entries
    assert (entry.aliases, entry.id_count, entry.rows) == (3, 9, 9)
    assert entry.ids == tuple(identity for listed in LISTS for identity in listed)


@pytest.mark.parametrize(
    ("kind", "options", "spoilt"),
    [
        ("omit_id", {}, LISTS[1][1:]),
        ("foreign_id", {}, [*LISTS[1][:-1], cid(0)]),
        ("extra_id", {}, [*LISTS[1], cid(0)]),
        ("duplicate_id", {}, [LISTS[1][0], *LISTS[1]]),
        ("page_cap", {"rows": 2}, LISTS[1][:2]),
    ],
)
def test_a_fault_spoils_one_list_of_several(
    server: SubgraphServer, client: Client, kind: Any, options: dict[str, Any], spoilt: list[str]
) -> None:
    server.faults.add(kind, alias=1, **options)
    assert several(client) == {"data": {**WHOLE, "b1": ids(*spoilt)}}
    assert client.ask() == TRUTH  # a query with one list has no such alias


def test_a_list_is_missing_from_the_answer(server: SubgraphServer, client: Client) -> None:
    server.faults.add("missing_alias", alias=2)
    assert several(client) == {"data": {key: value for key, value in WHOLE.items() if key != "b2"}}


def test_errors_have_the_path_of_one_list(server: SubgraphServer, client: Client) -> None:
    server.faults.add("errors", alias=1, message="boom", times=1)
    assert several(client) == {"errors": [{"message": "boom", "path": ["b1"]}]}
    server.faults.add("errors", alias=1, message="boom", with_data=True)
    assert several(client) == {"data": {**WHOLE, "b1": None}, "errors": [{"message": "boom", "path": ["b1"]}]}


def test_an_answer_is_cut_off_after_a_list(server: SubgraphServer, client: Client) -> None:
    server.faults.add("body", form="truncated", alias=1)
    kept = json.dumps({"data": {"b0": ids(*LISTS[0]), "b1": ids(*LISTS[1])}}, separators=(",", ":"))
    assert several(client) == kept[:-2]


# -- limits -----------------------------------------------------------------------------------------------------------


def test_the_literal_first_of_all_lists_counts_as_complexity(server: SubgraphServer, client: Client) -> None:
    server.configure(max_complexity=2500)
    refused = several(client)["errors"][0]["message"]
    assert refused.startswith(
        "query potentially returns `3000` entities or more and thereby exceeds the limit of `2500`"
    )
    assert several(client, first=800) == {"data": WHOLE}
    assert "data" in client.ask(
        query="query($f:Int){" + "".join(f"a{n}:conditions(first:$f){{id}}" for n in range(25)) + "}"
    )


def test_a_large_request_is_answered_413(server: SubgraphServer, client: Client) -> None:
    server.configure(max_body_bytes=700)
    assert "<h1>413</h1>" in several(client)
    assert (client.status, client.headers["content-type"]) == (413, "text/html; charset=utf-8")
    assert client.ask() == TRUTH


def test_too_many_lists_close_the_connection_or_time_out(server: SubgraphServer, client: Client) -> None:
    server.configure(alias_timeout=2)
    assert several(client) == {"errors": [{"message": "Query timed out"}]}
    server.configure(max_aliases=2)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        several(client)
    assert server.log.entries[-1].status == 0
    assert client.ask() == TRUTH


# -- when a fault strikes ---------------------------------------------------------------------------------------------


def test_a_fault_strikes_only_the_requests_and_fields_that_it_is_for(server: SubgraphServer, client: Client) -> None:
    server.faults.add("status", requests=[2, 3], operation="conditions")
    seen = [client.ask(query=query) and client.status for query in (QUERY, "{_meta{deployment}}", QUERY, QUERY)]
    assert seen == [200, 200, 503, 200]
    assert [entry.faults for entry in server.log.entries] == [(), (), ("status",), ()]


def test_faults_with_a_probability_repeat_with_their_seed() -> None:
    def struck(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.add("status", probability=0.2)
        request = LoggedRequest(1)
        return [bool(faults.striking(request, [])) for _ in range(1000)]

    assert struck(7) == struck(7) != struck(8)
    assert 140 < sum(struck(7)) < 260


def test_changes_of_an_answer_add_up_and_of_what_replaces_it_the_first_is_sent(
    server: SubgraphServer, client: Client
) -> None:
    server.faults.add("duplicate_id")
    server.faults.add("extra_id")
    assert answered(client) == [WANTED[0], *WANTED, cid(0)]
    server.faults.add("status", status=500)
    server.faults.add("status", status=502)
    client.ask()
    assert client.status == 500


def test_an_unknown_kind_of_fault_is_refused(server: SubgraphServer) -> None:
    with pytest.raises(ConfigurationError, match="the kinds are status, body"):
        server.faults.add("typo")  # type: ignore[arg-type]


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_a_token_is_required_where_one_is_set(server: SubgraphServer, client: Client) -> None:
    server.configure(token="s3cret")
    client.ask()
    assert client.status == 401
    client.ask(Authorization="Bearer wrong")
    assert client.status == 401
    assert client.ask(Authorization="Bearer s3cret") == TRUTH


def test_a_careless_gateway_repeats_the_secrets(server: SubgraphServer, client: Client) -> None:
    server.faults.add("status", status=500, echo=True, times=1)
    assert "Bearer s3cret" in client.ask(Authorization="Bearer s3cret")
    server.faults.add("errors", message="boom", echo=True, times=1)
    assert "Bearer s3cret" in client.ask(Authorization="Bearer s3cret")["errors"][0]["message"]


# -- the log from another process, and what cannot be served -----------------------------------------------------------


def test_the_log_is_read_and_cleared_over_http(server: SubgraphServer, client: Client) -> None:
    server.faults.add("status", status=500, requests=[1])
    client.ask()
    client.ask()
    log = client.log()
    assert [(entry["number"], entry["status"]) for entry in log["requests"]] == [(1, 500), (2, 200)]
    assert (log["max_in_window"], log["window_seconds"]) == (2, 10.0)
    client.log("DELETE")
    assert client.log()["requests"] == []


def test_every_kind_of_fault_is_described() -> None:
    from payout_pipeline.subgraph import faults

    assert all(f"``{kind}``" in (faults.__doc__ or "") for kind in KINDS)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = SubgraphConfig(STORE, port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1"):
            SubgraphServer(config).__enter__()


# -- the command ------------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    code = "from payout_pipeline.subgraph.command import subgraph_command as command; command()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    conditions, unresolved = tmp_path / "conditions.csv", tmp_path / "unresolved.txt"
    conditions.write_text(f'condition_id,payouts,resolved_at\n{WANTED[0][2:]},"[""0"",""1""]",2024-11-01T16:11:08Z\n')
    unresolved.write_text(f"{WANTED[1][2:]}\n")
    limits = ["--max-complexity=5000", "--max-body-bytes=10000", "--max-aliases=2", "--alias-timeout=1"]
    options = ["--rate-limit", "4/60s", "--latency", "0.01", *limits]
    with start("--conditions", str(conditions), "--unresolved", str(unresolved), *options) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        client = Client(line.split()[-1])
        query = "query($ids:[ID!]!){conditions(where:{id_in:$ids}){id payouts}}"
        rows = client.ask(query=query)["data"]["conditions"]
        assert rows == [{"id": WANTED[0], "payouts": ["0", "1"]}, {"id": WANTED[1], "payouts": None}]
        page = "conditions(first:1000){id}"
        assert client.ask(query=f"{{{page} b:{page}}}")["errors"] == [{"message": "Query timed out"}]
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            client.ask(query=f"{{{page} b:{page} c:{page}}}")
        assert "413" in client.ask([cid(n) for n in range(200)])
        client.ask()
        logged = [(entry["status"], entry["id_count"], entry["ids"]) for entry in client.log()["requests"]]
        assert logged == [(200, 4, []), (200, 0, []), (0, 0, []), (413, 200, []), (429, 4, [])]
        process.send_signal(number)
        _out, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,payouts\n", ":1: the header is"),
        ("condition_id,payouts,resolved_at\nxyz,,\n", ":2: not a condition id"),
        (f'condition_id,payouts,resolved_at\n{"a" * 64},"[1]",\n', ":2: payouts are not a list of decimal strings"),
        (f'condition_id,payouts,resolved_at\n{"a" * 64},"[""x""]",\n', ":2: payouts ['x'] are not all decimal"),
        (f"condition_id,payouts,resolved_at\n{'a' * 64},,yesterday\n", "resolved_at is not an ISO 8601 time"),
        (f"condition_id,payouts,resolved_at\n{'a' * 64},,\n0x{'A' * 64},,\n", "is listed more than once"),
    ],
)
def test_the_command_refuses_data_that_it_cannot_serve(tmp_path: Path, text: str, complaint: str) -> None:
    conditions = tmp_path / "conditions.csv"
    conditions.write_text(text)
    with start("--conditions", str(conditions)) as process:
        _out, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert complaint in " ".join(errors.split())
