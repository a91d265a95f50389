"""Ids from ``CONDITION_IDS_QUERY``: what the query may be and give, and the list that is kept of it."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

import pytest

from payout_pipeline.doctor.input import look_at_input
from payout_pipeline.errors import ConfigurationError, InputError
from payout_pipeline.ids import take as take_ids
from payout_pipeline.ids import today as condition_ids
from payout_pipeline.ids.chunks import partition_key, read_worklist
from payout_pipeline.ids.take import TakeSummary, take_list
from payout_pipeline.ids.today import todays_ids, todays_list
from payout_pipeline.settings import Settings, load_settings
from payout_pipeline.storage import BACKFILL_RECORD, open_store
from payout_pipeline.warehouse import id_query
from payout_pipeline.warehouse.id_query import query_ids
from payout_pipeline.worker_lock import worker_lock
from payout_pipeline_tests.clickhouse_front import Faults
from payout_pipeline_tests.warehouse_fixtures import World

LOG = logging.getLogger("test")
IDS = sorted(f"{random.Random(number).getrandbits(256):064x}" for number in range(30))
GOOD = {
    "one column": "SELECT condition_id FROM {db}.trades",
    "several columns, the first counts": "SELECT condition_id, condition_id AS other, 1 FROM {db}.trades;",
    "comments and a WITH": "-- traded\nWITH t AS (SELECT * FROM {db}.trades /* all */) SELECT condition_id FROM t -- end",
    "a union": "SELECT condition_id FROM {db}.trades UNION ALL SELECT condition_id FROM {db}.trades",
    "settings of its own": "SELECT condition_id FROM {db}.trades ORDER BY rand() SETTINGS max_threads = 1, readonly = 0",
    "low cardinality": "SELECT toLowCardinality(condition_id) FROM {db}.trades",
    "nullable": "SELECT toNullable(condition_id) FROM {db}.trades",
    "fixed, 64": "SELECT toFixedString(lower(replaceRegexpOne(condition_id, '^0[xX]', '')), 64) FROM {db}.trades",
    "fixed, 66": "SELECT toFixedString(concat('0x', right(condition_id, 64)), 66) FROM {db}.trades",
    "blanks around": "SELECT concat(' ', condition_id, '\\n') FROM {db}.trades",
}
BAD = {
    "an insert": ("INSERT INTO {db}.trades VALUES ('x')", "has to be a SELECT"),
    "a drop": ("DROP TABLE {db}.trades", "has to be a SELECT"),
    "two statements": (
        "SELECT condition_id FROM {db}.trades; DROP TABLE {db}.trades",
        "Multi-statements are not allowed",
    ),
    "no such column": ("SELECT cond FROM {db}.trades", "UNKNOWN_IDENTIFIER"),
    "no such table": ("SELECT condition_id FROM {db}.nope", "UNKNOWN_TABLE"),
    "no SQL": ("SELECT FROM WHERE", "SYNTAX_ERROR"),
    "a file as its result": ("SELECT condition_id FROM {db}.trades INTO OUTFILE '/tmp/x'", "SYNTAX_ERROR"),
    "a number": ("SELECT 1", r"'1', is of type UInt8; ids are 64 hex digits as String"),
    "raw bytes": (
        "SELECT unhex(right(condition_id, 64))::FixedString(32) AS raw FROM {db}.trades",
        r"lower\(hex\(raw\)\)",
    ),
    "a big number": ("SELECT toUInt256(1) AS n", r"lower\(hex\(n\)\)"),
    "an array": ("SELECT [condition_id] FROM {db}.trades", "is of type Array"),
    "NULLs": (
        "SELECT if(number = 1, NULL, repeat('a', 64)) FROM numbers(3)",
        r"1 row is no condition id[\s\S]*row 2: \(NULL\)",
    ),
    "a slug": ("SELECT 'will-it-rain' AS id", r"row 1: 'will-it-rain' \(this is a market slug"),
    "no UTF-8": ("SELECT unhex('ff00') AS id", "1 row is no condition id"),
    "many that are none": ("SELECT toString(number) FROM numbers(25)", r"25 rows are no condition id[\s\S]*and 5 more"),
}


def _settings(world: World, query: str, **more: object) -> Settings:
    return world.with_settings(condition_ids_query=query.replace("{db}", world.database), **more).settings


@pytest.fixture
def trades(world: World) -> World:
    spelled = [f"0x{i.upper()}" if n % 2 else i for n, i in enumerate(IDS)]
    values = ", ".join(f"('{i}')" for i in [*spelled, *IDS[:5]])
    world.run("CREATE TABLE {db}.trades (condition_id String) ENGINE = MergeTree ORDER BY tuple()")
    world.run(f"INSERT INTO {{db}}.trades VALUES {values}")
    return world


@pytest.mark.parametrize("name", GOOD)
def test_the_ids_of_a_query_are_normal_distinct_and_sorted(trades: World, name: str) -> None:
    found = query_ids(_settings(trades, GOOD[name]))

    assert found.ids() == IDS
    assert found.duplicates == (40 if name == "a union" else 5)
    trades.run("INSERT INTO {db}.trades VALUES ('still writable')")


@pytest.mark.parametrize("name", BAD)
def test_a_query_that_cannot_be_used_is_refused_with_its_reason_and_changes_nothing(trades: World, name: str) -> None:
    query, said = BAD[name]
    before = trades.read("SELECT condition_id FROM {db}.trades")

    with pytest.raises(InputError, match=rf"CONDITION_IDS_QUERY[\s\S]*{said}"):
        query_ids(_settings(trades, query))

    assert trades.read("SELECT condition_id FROM {db}.trades") == before


def test_no_rows_are_no_ids(trades: World) -> None:
    assert query_ids(_settings(trades, "SELECT condition_id FROM {db}.trades WHERE 0")).count == 0


def test_a_query_that_takes_too_long_is_ended(trades: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(id_query._LIMITS, "max_execution_time", "1")
    slow = "SELECT toString(sum(number)) FROM numbers(1000000000000)"
    with pytest.raises(InputError, match="takes longer than"):
        query_ids(_settings(trades, slow))


@pytest.mark.parametrize("limited_by", ["the server", "the count"])
def test_too_many_rows_are_refused(trades: World, limited_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_query, "MAX_ROWS", 10)
    if limited_by == "the server":
        monkeypatch.setitem(id_query._LIMITS, "max_result_rows", "10")
    with pytest.raises(InputError, match="more than 10 rows"):
        query_ids(_settings(trades, GOOD["one column"]))


def test_what_the_user_may_not_read_is_said(http_world: World) -> None:
    http_world.front.faults(
        Faults(matching="DESCRIBE", times=1, code=497, message="Not enough privileges. SELECT(a) ON t")
    )  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"Not enough privileges[\s\S]*GRANT"):
        query_ids(_settings(http_world, "SELECT condition_id FROM {db}.trades"))


def test_a_profile_that_does_not_let_a_limit_be_set_is_respected(http_world: World) -> None:
    http_world.run("CREATE TABLE {db}.trades (condition_id String) ENGINE = MergeTree ORDER BY tuple()")
    http_world.run(f"INSERT INTO {{db}}.trades VALUES ('{IDS[0]}')")
    refused = "Setting max_execution_time shouldn't be greater than 60"
    http_world.front.faults(Faults(matching="max_execution_time", times=1, code=452, message=refused))  # type: ignore[union-attr]

    assert query_ids(_settings(http_world, "SELECT condition_id FROM {db}.trades")).ids() == IDS[:1]


@pytest.mark.parametrize("place", ["no database yet", "a server that does not answer"])
def test_the_doctor_neither_waits_for_a_database_nor_makes_one_to_run_the_query(tmp_path: Path, place: str) -> None:
    host = {"clickhouse_host": "http://127.0.0.1:1"} if place != "no database yet" else {}
    settings = load_settings({}, condition_ids_query="SELECT 1", runtime_dir=str(tmp_path / "runtime"), **host)
    started = time.monotonic()

    (finding,) = look_at_input(settings).findings

    assert finding.level == ("problem" if host else "warning")
    assert time.monotonic() - started < 10
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_shows_what_the_query_gives_and_leaves_no_trace(http_world: World) -> None:
    http_world.run("CREATE TABLE {db}.trades (condition_id String) ENGINE = MergeTree ORDER BY tuple()")
    http_world.run(f"INSERT INTO {{db}}.trades VALUES ('{IDS[0]}')")
    before = sorted(Path(http_world.settings.runtime_dir).iterdir())
    settings = _settings(http_world, "SELECT condition_id FROM {db}.trades")

    (finding, *_) = look_at_input(settings).findings

    assert "1 condition id" in finding.text
    assert IDS[0] in finding.text
    assert sorted(Path(http_world.settings.runtime_dir).iterdir()) == before


# ------------------------------------------------------------------------------------------------------------ the list


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the query gives, as a test sets it."""
    ids = list(IDS)

    def give(_settings: Settings) -> condition_ids.IdList:
        from payout_pipeline.ids.id_list import distinct, pack_ids

        return distinct(pack_ids(ids))

    monkeypatch.setattr(id_query, "query_ids", give)
    return ids


def _of(tmp_path: Path, query: str = "SELECT condition_id FROM t") -> Settings:
    return load_settings({}, condition_ids_query=query, runtime_dir=str(tmp_path), workers=2)


def _take(settings: Settings, going_on: tuple[str, ...] = ()) -> TakeSummary:
    return take_list(settings, log=LOG, going_on=going_on)


def test_without_a_list_the_message_says_how_to_take_it(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no list of ids was taken [\s\S]*payout-pipeline backfill[\s\S]*condition_ids"
    ):
        read_worklist(_of(tmp_path))


def test_the_list_is_a_readable_file_and_todays_input(tmp_path: Path, given: list[str]) -> None:
    taken = _take(_of(tmp_path))

    assert (taken.added, taken.gone, taken.kept_for) == (30, 0, "")
    assert Path(taken.path).read_text().split() == IDS
    assert todays_ids(_of(tmp_path)).ids() == IDS
    worklist = read_worklist(_of(tmp_path))
    assert (worklist.ids, worklist.source) == (30, "CONDITION_IDS_QUERY")


def test_another_list_is_another_input_and_says_what_is_new_and_gone(tmp_path: Path, given: list[str]) -> None:
    _take(_of(tmp_path))
    before = read_worklist(_of(tmp_path)).fingerprint
    given[:] = [*IDS[3:], "f" * 64]

    taken = _take(_of(tmp_path))

    assert (taken.added, taken.gone) == (1, 3)
    assert read_worklist(_of(tmp_path)).fingerprint != before
    given[:] = IDS
    _take(_of(tmp_path))
    assert read_worklist(_of(tmp_path)).fingerprint == before


def test_no_ids_are_a_list_too(tmp_path: Path, given: list[str]) -> None:
    given.clear()
    _take(_of(tmp_path))

    worklist = read_worklist(_of(tmp_path))
    assert (worklist.ids, [worker.ids for worker in worklist.workers]) == (0, [0, 0])


@pytest.mark.parametrize("why", ["a run", "a lock", "a record"])
def test_a_backfill_in_progress_keeps_its_list(tmp_path: Path, given: list[str], why: str) -> None:
    settings = _of(tmp_path)
    _take(settings)
    given[:] = IDS[:3]
    if why == "a lock":
        with worker_lock(settings, partition_key(2, 2), purpose="goldsky_payouts", run_id="abc", log=LOG):
            taken = _take(settings)
        assert "worker_2_of_2 is held by" in taken.kept_for
    elif why == "a record":
        open_store(tmp_path).write(BACKFILL_RECORD, b"{}")
        taken = _take(settings)
        assert "whose view is not built" in taken.kept_for
        open_store(tmp_path).delete(BACKFILL_RECORD)
    else:
        taken = _take(settings, ("run 1234 of worker_1_of_2",))
        assert "run 1234 of worker_1_of_2" in taken.kept_for
    assert todays_ids(settings).ids() == IDS

    assert _take(settings).kept_for == ""
    assert todays_ids(settings).ids() == IDS[:3]


def test_another_query_needs_another_list(tmp_path: Path, given: list[str]) -> None:
    _take(_of(tmp_path))
    other = _of(tmp_path, "SELECT condition_id FROM u")
    with pytest.raises(InputError, match="by another CONDITION_IDS_QUERY"):
        read_worklist(other)
    open_store(tmp_path).write(BACKFILL_RECORD, b"{}")  # a list of another query is kept for nobody

    _take(other)

    assert todays_list(other).ids == 30


def test_a_refused_query_leaves_the_list_as_it_is(
    tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _of(tmp_path)
    _take(settings)

    def refuse(_settings: Settings) -> condition_ids.IdList:
        raise InputError("no")

    monkeypatch.setattr(id_query, "query_ids", refuse)
    with pytest.raises(InputError):
        _take(settings)
    assert todays_ids(settings).ids() == IDS


@pytest.mark.parametrize("damage", ["the list", "the facts"])
def test_damage_is_noticed_and_taking_the_list_again_mends_it(tmp_path: Path, given: list[str], damage: str) -> None:
    settings = _of(tmp_path)
    path = Path(_take(settings).path)
    condition_ids.read_list.cache_clear()
    if damage == "the list":
        path.write_text(path.read_text()[:-65])
        with pytest.raises(InputError, match="missing or damaged"):
            read_worklist(settings)
    else:
        (tmp_path / condition_ids.CURRENT).write_text("{")
        with pytest.raises(InputError, match="no list of ids was taken"):
            read_worklist(settings)

    _take(settings)

    assert todays_ids(settings).ids() == IDS


def test_older_lists_are_removed(tmp_path: Path, given: list[str]) -> None:
    for number in range(take_ids._KEPT + 5):
        given[:] = IDS[: number + 1]
        _take(_of(tmp_path))

    assert len(list((tmp_path / "condition_ids").glob("*.txt"))) == take_ids._KEPT + 1


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_query_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "ids.sql").write_text("SELECT a FROM b\n")
    assert load_settings({"CONDITION_IDS_QUERY": str(tmp_path / "ids.sql")}).condition_ids_query == "SELECT a FROM b"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CONDITION_IDS_QUERY": "SELECT 1", "CONDITION_IDS_FILE": "a.txt"}, "both set; unset one of them"),
        ({"CONDITION_IDS_QUERY": "SELECT 1", "GOLDSKY_MODE": "scan"}, "asks for no ids"),
        ({"CONDITION_IDS_QUERY": "/nowhere/ids.sql"}, "/nowhere/ids.sql: No such file"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_settings(environment)


def test_an_empty_query_is_none() -> None:
    assert load_settings({"CONDITION_IDS_QUERY": " "}).condition_ids_query is None
