"""Talking to ClickHouse: addresses, rights, faults that pass and faults that do not, values that try to break out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
import trustme
from clickhouse_connect.driver.exceptions import DatabaseError
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from payout_pipeline.errors import ConfigurationError, StorageError, WarehousePermanentError, WarehouseUnavailableError
from payout_pipeline.settings import load_settings
from payout_pipeline.warehouse.client import Warehouse
from payout_pipeline.warehouse.faults import TRANSIENT_CODES, ClickHouseRefusedError, Kind, classify
from payout_pipeline.warehouse.identifiers import QualifiedName
from payout_pipeline.warehouse.load import load_rows
from payout_pipeline.warehouse.server import Server, server_of
from payout_pipeline.warehouse.transport import clickhouse_type, with_patience
from payout_pipeline.warehouse.view import rebuild_view
from payout_pipeline_tests.clickhouse_front import USERS, Faults, Front, running
from payout_pipeline_tests.warehouse_fixtures import WRITER, World, ledger, resolved

CANARY = "c4nary-pässword/+=&?"


def connect(tmp_path: Path, wait: float = 20, **more: Any) -> Warehouse:
    return Warehouse(
        load_settings({}, runtime_dir=str(tmp_path), clickhouse_wait_seconds=wait, **more), comment="run r1"
    )


@pytest.mark.parametrize(
    ("given_settings", "expected"),
    [
        ({"clickhouse_host": "db"}, Server("db", 8123, False, None, "", None)),
        ({"clickhouse_host": "db:9999"}, Server("db", 9999, False, None, "", None)),
        ({"clickhouse_host": "db", "clickhouse_secure": True}, Server("db", 8443, True, None, "", None)),
        ({"clickhouse_host": "db", "clickhouse_port": 8443}, Server("db", 8443, True, None, "", None)),
        ({"clickhouse_host": "https://db"}, Server("db", 8443, True, None, "", None)),
        ({"clickhouse_host": "https://db:8444/"}, Server("db", 8444, True, None, "", None)),
        ({"clickhouse_host": "http://[::1]:8123"}, Server("::1", 8123, False, None, "", None)),
        ({"clickhouse_host": "http://u:p%40ss@db"}, Server("db", 8123, False, "u", "p@ss", None)),
        (
            {"clickhouse_host": "db", "clickhouse_password": "secret", "clickhouse_database": "d"},
            Server("db", 8123, False, "default", "secret", "d"),
        ),
    ],
)
def test_the_address_of_a_server_is_read_as_users_write_it(given_settings: dict[str, Any], expected: Server) -> None:
    found = server_of(load_settings({}, **given_settings))
    assert found == expected
    assert "secret" not in repr(found)
    assert "p@ss" not in repr(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clickhouse_host": "ftp://db"},
        {"clickhouse_host": "http://db/path"},
        {"clickhouse_host": "http://db:port"},
        {"clickhouse_host": "https://db", "clickhouse_secure": False},
        {"clickhouse_host": "db:1", "clickhouse_port": 2},
        {"clickhouse_host": "db:0"},
    ],
)
def test_an_address_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CLICKHOUSE_HOST"):
        server_of(load_settings({}, **wrong))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"clickhouse_user": "writer", "clickhouse_password": CANARY}, "516 AUTHENTICATION_FAILED"),
        ({"clickhouse_user": "nobody", "clickhouse_password": CANARY}, "516 AUTHENTICATION_FAILED"),
        (
            {"clickhouse_database": "no_such_database", "clickhouse_user": WRITER[0], "clickhouse_password": WRITER[1]},
            "81",
        ),
        ({"clickhouse_port": 1, "clickhouse_password": CANARY}, "has not answered from here before"),
        (
            {"clickhouse_host": "no-such-host.invalid", "clickhouse_password": CANARY},
            "has not answered from here before",
        ),
        ({"clickhouse_secure": True, "clickhouse_password": CANARY}, "does not speak TLS"),
        ({"clickhouse_host": "10.255.255.1", "clickhouse_password": CANARY}, "has not answered from here before"),
    ],
)
def test_f4_a_wrong_server_setting_is_one_clear_error_within_five_seconds(
    clickhouse_front: Front, tmp_path: Path, wrong: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    given_settings = {"clickhouse_host": "127.0.0.1", "clickhouse_port": clickhouse_front.port} | wrong
    started = time.monotonic()
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises((WarehousePermanentError, WarehouseUnavailableError)) as caught,
        connect(tmp_path, 120, **given_settings).session("x") as session,
    ):
        session.scalar("SELECT 1", doing="testing")
    assert time.monotonic() - started < 5
    assert expected in str(caught.value)
    for text in (str(caught.value), caplog.text):
        assert "c4nary" not in text
        assert WRITER[1] not in text


@pytest.mark.slow
def test_f4_a_socket_that_accepts_and_never_answers_is_given_up(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        with (
            pytest.raises(WarehouseUnavailableError, match="has not answered from here before"),
            connect(tmp_path, clickhouse_host=f"127.0.0.1:{mute.getsockname()[1]}").session("x"),
        ):
            pass
        assert time.monotonic() - started < 10


def test_a_server_with_tls_is_used_when_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with running(tmp_path / "db", (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))) as front:
        more = {"clickhouse_user": WRITER[0], "clickhouse_password": WRITER[1]}
        with (
            pytest.raises(WarehousePermanentError, match="certificate is not trusted"),
            connect(tmp_path, clickhouse_host=front.url, **more).session("x"),
        ):
            pass
        with (
            pytest.raises(WarehouseUnavailableError),
            connect(tmp_path, clickhouse_host=f"http://127.0.0.1:{front.port}", **more).session("x"),
        ):
            pass
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with connect(tmp_path, clickhouse_host=front.url, **more).session("x") as session:
            assert session.scalar("SELECT 1", doing="testing") == 1


def test_c1_a_server_that_comes_back_is_waited_for(http_world: World) -> None:
    front = http_world.front
    with http_world.session() as session:
        assert session.scalar("SELECT 1", doing="testing") == 1
        front.stop(kill=True)
        threading.Timer(1.5, front.start).start()
        assert session.scalar("SELECT 2", doing="testing") == 2


@pytest.mark.slow
def test_c1_a_server_that_answered_before_is_waited_for_by_the_next_process(http_world: World) -> None:
    front = http_world.front
    front.stop(kill=True)
    threading.Timer(3, front.start).start()  # longer than a first contact would be waited for
    again = Warehouse(http_world.settings)  # knows of the contact through the runtime directory only
    with again.session("x") as session:
        assert session.scalar("SELECT 2", doing="testing") == 2


def test_c1_a_server_that_never_comes_back_is_given_up_within_the_budget(http_world: World) -> None:
    world = http_world.with_settings(clickhouse_wait_seconds=2)
    with world.session() as session:
        session.scalar("SELECT 1", doing="testing")
        world.front.stop()
        started = time.monotonic()
        with pytest.raises(WarehouseUnavailableError, match=r"testing .*attempts"):
            session.scalar("SELECT 2", doing="testing")
        assert 1 < time.monotonic() - started < 6


@pytest.mark.parametrize("code", sorted(TRANSIENT_CODES))
def test_c4_a_transient_code_is_repeated(http_world: World, code: int) -> None:
    with http_world.session() as session:
        message = "Memory limit (total) exceeded" if code == 241 else "injected"
        http_world.front.faults(Faults(matching="SELECT 42", times=1, code=code, message=message))
        before = http_world.front.counters().requests
        assert session.scalar("SELECT 42 AS n", doing="testing") == 42
        assert http_world.front.counters().requests == before + 2


@pytest.mark.parametrize("code", [16, 26, 27, 47, 53, 60, 62, 72, 81, 117, 130, 497, 516, 164])
def test_c4_a_permanent_code_is_not_repeated_and_named_with_the_table(http_world: World, code: int) -> None:
    with http_world.session() as session:
        http_world.front.faults(Faults(matching="SELECT 43", times=9, code=code))
        before = http_world.front.counters().requests
        with pytest.raises(ClickHouseRefusedError, match=rf"reading db\.t: code {code}") as caught:
            session.scalar("SELECT 43 AS n", doing="reading db.t")
        assert caught.value.code == code
        assert http_world.front.counters().requests == before + 1


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (241, "Memory limit (for query) exceeded", Kind.PERMANENT),
        (241, "(total) memory limit exceeded", Kind.TRANSIENT),
        (252, "Too many partitions for single INSERT block", Kind.PERMANENT),
        (252, "Too many parts (300)", Kind.TRANSIENT),
        (243, "Cannot reserve 1.00 MiB", Kind.NO_SPACE),
        (74, "Cannot write: No space left on device", Kind.NO_SPACE),
    ],
)
def test_a_code_with_two_meanings_is_told_apart_by_its_text(code: int, message: str, kind: Kind) -> None:
    from clickhouse_connect.driver.exceptions import DatabaseError

    fault = classify(DatabaseError(f"Code: {code}. DB::Exception: {message}. (X)", code=code))
    assert fault.kind is kind
    assert isinstance(fault.error("x"), StorageError) == (kind is Kind.NO_SPACE)


@pytest.mark.parametrize("fault", [{"half": True}, {"reset": True}, {"http_status": 502}, {"lose_answer": True}])
def test_c1_an_answer_that_breaks_off_is_asked_again(http_world: World, fault: dict[str, Any]) -> None:
    with http_world.session() as session:
        http_world.front.faults(Faults(matching="SELECT number", times=2, **fault))
        rows = session.rows("SELECT number FROM numbers(1000)", doing="testing")
        assert [row["number"] for row in rows] == list(range(1000))


def test_an_error_that_is_in_the_headers_of_an_answer_of_200_is_one(http_world: World) -> None:
    """As where the server has sent progress before it failed."""
    world, db = http_world, http_world.database
    world.run("CREATE TABLE {db}.t (n UInt64) ENGINE = MergeTree ORDER BY n")
    batch = pa.record_batch({"n": pa.array([1], pa.uint64())})
    with world.session() as session:
        statements: dict[str, Callable[[], object]] = {
            "SELECT 44": lambda: session.scalar("SELECT 44 AS n", doing="testing"),
            "CREATE TABLE": lambda: session.command(f"CREATE TABLE {db}.u (n UInt8) ENGINE = Memory", doing="testing"),
            "INSERT INTO": lambda: session.insert_once(QualifiedName(db, "t"), batch, token="a", doing="testing"),
        }
        for matching, run in statements.items():
            world.front.faults(Faults(matching=matching, times=1, code=497, http_status=200))
            with pytest.raises(ClickHouseRefusedError, match="testing: code 497"):
                run()
    assert world.read("SELECT n FROM {db}.t") == {}


@pytest.mark.parametrize("form", ["tagged", "plain"])
@pytest.mark.parametrize("code", [159, 395])
def test_an_error_in_the_middle_of_an_answer_is_told_by_its_code(http_world: World, form: str, code: int) -> None:
    fault = Faults(matching="SELECT number", times=1, code=code, midstream=form, message="halfway")
    with http_world.session() as session:
        http_world.front.faults(fault)
        sql = "SELECT number FROM numbers(200000)"
        if code in TRANSIENT_CODES:
            before = http_world.front.counters().requests
            assert len(session.rows(sql, doing="testing")) == 200_000
            assert http_world.front.counters().requests == before + 2
        else:
            with pytest.raises(ClickHouseRefusedError, match=r"testing: code 395 .*halfway"):
                session.rows(sql, doing="testing")


def test_an_error_in_the_middle_of_a_text_is_no_part_of_the_text(http_world: World) -> None:
    with http_world.session() as session:
        http_world.front.faults(Faults(matching="SELECT number", times=1, code=395, midstream="tagged"))
        with pytest.raises(ClickHouseRefusedError, match="testing: code 395"):
            session.text("SELECT number FROM numbers(1000)", doing="testing", fmt="TSV")
        # What only looks like one is the user's data.
        text = "Code: 395. DB::Exception: x\r\n__exception__\r\nab"
        assert session.text("SELECT {t:String}", {"t": text}, doing="testing", fmt="RawBLOB") == text


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_takes_no_statement_and_no_row_to_another_host(http_world: World, status: int) -> None:
    got: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_arguments: object) -> None:
            """Silence."""

    world, db = http_world, http_world.database
    world.run("CREATE TABLE {db}.t (n UInt64) ENGINE = MergeTree ORDER BY n")
    batch = pa.record_batch({"n": pa.array([1], pa.uint64())})
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server, world.session() as session:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        location = f"http://localhost:{server.server_address[1]}/"
        statements: dict[str, Callable[[], object]] = {
            "SELECT 45": lambda: session.scalar("SELECT 45 AS n", doing="testing"),
            "INSERT INTO": lambda: session.insert_once(QualifiedName(db, "t"), batch, token="a", doing="testing"),
        }
        for matching, run in statements.items():
            world.front.faults(Faults(matching=matching, times=9, http_status=status, location=location))
            with pytest.raises(WarehousePermanentError, match=f"HTTP status {status}"):
                run()
        server.shutdown()
        thread.join()
    assert got == []


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip"])
def test_the_front_speaks_the_drivers_own_inserts_and_results_in_every_compression(
    http_world: World, encoding: str
) -> None:
    """The pipeline sends Arrow and compresses nothing; the driver's own start of a connection reads Native, compressed."""
    import clickhouse_connect

    world = http_world
    world.run("CREATE TABLE {db}.t (a String, n Array(UInt64), d Nullable(DateTime)) ENGINE = MergeTree ORDER BY a")
    rows = [(f"{number}é", list(range(number % 5)), None) for number in range(2_000)]
    host, port = "127.0.0.1", world.front.port
    with clickhouse_connect.get_client(
        host=host, port=port, username=WRITER[0], password=WRITER[1], compress=encoding, autogenerate_session_id=True
    ) as driver:
        driver.insert(f"{world.database}.t", rows, column_names=["a", "n", "d"])
        found = driver.query(f"SELECT a, n, d FROM {world.database}.t").result_rows
    assert sorted(found) == sorted(rows)


@pytest.mark.slow
def test_a_server_that_stops_answering_in_the_middle_is_given_up_at_the_deadline(http_world: World) -> None:
    world = http_world.with_settings(clickhouse_wait_seconds=1)
    with world.session() as session:
        session.scalar("SELECT 1", doing="testing")
        world.front.faults(Faults(matching="SELECT 7", times=9, hang=True))
        started = time.monotonic()
        with pytest.raises(WarehouseUnavailableError):
            session.scalar("SELECT 7", doing="testing")
        assert time.monotonic() - started < 12


@pytest.mark.parametrize("statement", ["SELECT 7", "CREATE OR REPLACE VIEW {db}.v AS SELECT 1"])
@pytest.mark.slow
def test_c1_one_connection_that_dies_silently_costs_a_part_of_the_budget(http_world: World, statement: str) -> None:
    world = http_world.with_settings(clickhouse_wait_seconds=40)
    with world.session() as session:
        session.scalar("SELECT 1", doing="testing")
        world.front.faults(Faults(matching="SELECT 7|REPLACE VIEW", times=1, hang=True))
        started = time.monotonic()
        session.command(statement.replace("{db}", world.database), doing="testing")
        assert time.monotonic() - started < 30


def test_settings_that_the_users_profile_limits_are_not_sent(
    http_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    limited = http_world.with_settings(
        clickhouse_user="limited", clickhouse_password=type(http_world.settings.clickhouse_password)("limited-pass")
    )
    http_world.run(
        "CREATE TABLE {db}.market_resolutions_final (condition_id String, payout_numerators Array(UInt8), "
        "payout_denominator UInt8) ENGINE = MergeTree ORDER BY condition_id"
    )
    rows = ledger(*(resolved(n, 0, 1) for n in range(3)))
    with limited.session() as session:
        assert load_rows(session, limited.target(session), rows).inserted_new == 3
        rebuild_view(session, limited.settings)
    assert http_world.read("SELECT count() FROM {db}_clean.vw_resolutions_truth") == {(3,): 1}
    assert "does not let this user set mutations_sync" in caplog.text
    assert "async_insert" not in caplog.text


def test_a_setting_that_a_profile_limits_comes_with_a_hint() -> None:
    error = DatabaseError(
        "Code: 452. DB::Exception: Setting x shouldn't be greater than 60. (SETTING_CONSTRAINT_VIOLATION)"
    )
    fault = classify(error)
    assert fault.kind is Kind.PERMANENT
    assert "profile limits this setting" in str(fault.error("testing"))


def test_an_html_page_of_a_proxy_is_no_clickhouse(http_world: World) -> None:
    with http_world.session() as session:
        http_world.front.faults(Faults(matching="SELECT 8", times=1, http_status=404))
        with pytest.raises(WarehousePermanentError, match="HTTP port"):
            session.scalar("SELECT 8", doing="testing")


def test_a_defect_of_ours_is_not_repeated() -> None:
    calls = []

    def broken() -> None:
        calls.append(1)
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        with_patience(broken, 30, "testing")
    assert calls == [1]


def test_the_last_attempt_begins_when_the_budget_ends_and_not_a_whole_pause_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)  # pauses of 0.1, 0.2, 0.4 and 0.8 s
    started = time.monotonic()
    begun = []

    def refused() -> None:
        begun.append(time.monotonic() - started)
        raise ConnectionRefusedError("nobody listens")

    with pytest.raises(WarehouseUnavailableError):
        with_patience(refused, 0.9, "testing")
    assert begun[-2:] == [pytest.approx(0.7, abs=0.2), pytest.approx(0.9, abs=0.2)]


def test_inserts_are_synchronous_and_name_run_and_asset(http_world: World) -> None:
    world = http_world
    with world.session("load worker_1") as session:
        session.command(f"CREATE TABLE {world.database}.t (n UInt64) ENGINE = MergeTree ORDER BY n", doing="creating")
        batch = pa.record_batch({"n": pa.array([1, 2], pa.uint64())})
        assert session.insert_once(QualifiedName(world.database, "t"), batch, token="a", doing="testing") is None
    sent = [s for s in world.front.counters().statements if s["sql"].startswith("INSERT INTO `" + world.database)]
    assert len(sent) == 1
    assert sent[0]["settings"]["async_insert"] == "0"
    assert sent[0]["settings"]["insert_deduplication_token"] == "a"
    assert sent[0]["log_comment"] == "run r1 asset a1 load worker_1"
    assert sent[0]["session_id"] == ""  # sessions take turns, and are forgotten by a balancer
    assert world.read("SELECT n FROM {db}.t") == {(1,): 1, (2,): 1}


def test_a_read_only_user_can_read(http_world: World) -> None:
    http_world.run("CREATE TABLE {db}.t (n UInt64) ENGINE = MergeTree ORDER BY n")
    reader = http_world.with_settings(
        clickhouse_user="reader", clickhouse_password=type(http_world.settings.clickhouse_password)("reader-pass")
    )
    with reader.session() as session:
        assert session.scalar(f"SELECT count() FROM {http_world.database}.t", doing="reading") == 0
        with pytest.raises(ClickHouseRefusedError, match="code 164"):
            session.command(f"INSERT INTO {http_world.database}.t VALUES (1)", doing="writing")


@pytest.mark.parametrize("in_the_url", [False, True])
def test_user_and_password_may_have_any_characters(clickhouse_front: Front, tmp_path: Path, in_the_url: bool) -> None:
    user, password = "o'dd üser", USERS["o'dd üser"]["password"]
    more = {"clickhouse_host": clickhouse_front.url, "clickhouse_user": user, "clickhouse_password": password}
    if in_the_url:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        more = {"clickhouse_host": clickhouse_front.url.replace("//", f"//{login}@")}
    with connect(tmp_path, **more).session("x") as session:
        session.scalar("SELECT 46 AS n", doing="testing")
    assert clickhouse_front.counters().statements[-1]["user"] == user


NASTY = ["'", "\\", "'; DROP TABLE t; --", "{x:String}", "a\tb\nc", "%27", "\\'", "\x00", "é€😀", "{{", "')"]


@pytest.mark.parametrize("value", NASTY)
def test_g2_a_bound_value_comes_back_as_it_was(world: World, value: str) -> None:
    with world.session() as session:
        assert session.scalar("SELECT {v:String} AS v", {"v": value}, doing="testing") == value
        listed = session.rows("SELECT {v:Array(String)} AS v", {"v": [value, "x"]}, doing="testing")
        assert listed == [{"v": [value, "x"]}]
        batch = pa.record_batch({"v": [value]})
        found = session.rows("SELECT v FROM {t:Identifier}", doing="testing", external={"t": batch})
        assert found == [{"v": value}]


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.tuples(st.text(max_size=20), st.lists(st.integers(0, 2**64 - 1), max_size=4)), min_size=1))
def test_an_external_table_carries_any_text_and_any_number(
    http_world: World, values: list[tuple[str, list[int]]]
) -> None:
    batch = pa.record_batch(
        {
            "text": pa.array([v[0] for v in values], pa.string()),
            "numbers": pa.array([v[1] for v in values], pa.list_(pa.uint64())),
        }
    )
    with http_world.session() as session:
        found = session.rows("SELECT * FROM {t:Identifier}", doing="testing", external={"t": batch})
    assert [(row["text"], row["numbers"]) for row in found] == values


def test_an_external_table_takes_only_the_types_that_are_ours() -> None:
    with pytest.raises(TypeError):
        clickhouse_type(pa.float64())


@pytest.mark.parametrize(
    "text",
    ["", "a.b.c", "a b", "a;b", "db.`t`", "db.t'", "1a.b", "db.t--", "db.ü", "a.", ".a", "db.t\n", "x" * 300, 5, None],
)
def test_g4_a_name_that_is_no_plain_identifier_is_refused(text: object) -> None:
    if text == "db.t\n":
        assert QualifiedName.parse(text).sql == "`db`.`t`"  # surrounding white space is not part of it
        return
    with pytest.raises(ValueError, match=r"identifier|expected"):
        QualifiedName.parse(text)


def test_g4_a_name_is_quoted_in_statements() -> None:
    assert QualifiedName.parse(" db.table ").sql == "`db`.`table`"
    assert str(QualifiedName.parse("t")) == "default.t"


def test_a_result_can_be_had_as_text(world: World) -> None:
    with world.session() as session:
        assert session.text("SELECT 1 AS a, 'x' AS b", doing="testing", fmt="CSV") == '1,"x"\n'
        assert session.text("SELECT 1 FORMAT TSV", doing="testing", fmt=None) == "1\n"
        with pytest.raises(ValueError, match="identifier"):
            session.text("SELECT 1", doing="testing", fmt="CSV; DROP")


def test_debug_shows_each_statement(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="payout_pipeline.warehouse"), world.session() as session:
        session.scalar("SELECT 12345 AS n", doing="testing")
    assert "testing: SELECT 12345 AS n" in caplog.text
