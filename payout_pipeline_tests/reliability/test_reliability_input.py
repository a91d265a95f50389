"""E1-E5 and F1-F4: whatever stands in the file and in the environment, nothing is skipped and nothing is asked in vain."""

from __future__ import annotations

import codecs
import gzip
import time

import pandas as pd
import pytest

from payout_pipeline.errors import (
    ConfigurationError,
    GoldskyPermanentError,
    IncompleteError,
    InputError,
    WarehousePermanentError,
    WarehouseUnavailableError,
)
from payout_pipeline.truth import rebuild_truth
from payout_pipeline_tests.chaos.fixtures import case, served, variants  # noqa: F401
from payout_pipeline_tests.chaos.inline import inline
from payout_pipeline_tests.oracle import Truth

SPELLINGS = {
    "CRLF and a BOM": lambda ids: codecs.BOM_UTF8 + "\r\n".join(ids).encode(),
    "blanks, tabs, blank lines": lambda ids: "\n\n".join(f" \t{i}  " for i in ids).encode(),
    "no final newline, 0X and upper case": lambda ids: "\n".join("0X" + i.upper() for i in ids).encode(),
    "UTF-16": lambda ids: "\n".join(ids).encode("utf-16"),
    "gzip": lambda ids: gzip.compress(("\n".join(ids) + "\n").encode()),
    "Parquet": lambda ids: pd.DataFrame({"question": "?", "condition_id": ids}).to_parquet(),
    "every id three times": lambda ids: "\n".join([*ids, *("0x" + i for i in ids), *(i.upper() for i in ids)]).encode(),
}


@pytest.mark.parametrize("spelling", ["gzip", *variants(*(name for name in SPELLINGS if name != "gzip"))])
def test_e1_e2_every_spelling_of_the_same_ids_gives_the_same_rows(case, spelling):  # noqa: F811
    case.ids_file.write_bytes(SPELLINGS[spelling](case.ids))
    case.backfill()
    case.assert_right()
    asked = [i for entry in case.server.log.batches() for i in entry.ids]
    assert len(set(asked)) == len(case.ids)
    assert len(asked) < 1.2 * len(case.ids)  # some ends of answers are asked for twice, duplicates of the file never


@pytest.mark.parametrize(
    "line",
    [
        "a" * 63,
        "a" * 65,
        "0x" + "g" * 64,
        "\u0430" * 64,
        "\uff41" * 64,
        "condition_id,payouts",
        '{"id": "' + "a" * 64 + '"}',
        "a" * 32 + "\x00" * 32,
    ],
)
def test_e3_a_line_that_is_no_id_is_listed_with_its_number_and_nothing_is_asked(case, line):  # noqa: F811
    case.ids_file.write_text("\n".join([*case.ids[:4], line, *case.ids[4:]]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"\b5\b"):
        case.fetch()
    assert len(case.server.log) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no condition ids"),
        (b"\n \n\t\n", "has no condition ids"),
        (None, "does not exist"),
        ("directory", "is a directory"),
    ],
)
def test_e4_a_file_without_ids_is_an_error_before_anything_is_asked(case, content, said):  # noqa: F811
    case.ids_file.unlink()
    if content == "directory":
        case.ids_file.mkdir()
    elif content is not None:
        case.ids_file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{case.ids_file} {said}"):
        case.fetch()
    assert len(case.server.log) == 0


def test_e4_one_id_and_four_workers_is_a_whole_backfill(tmp_path):
    with inline(tmp_path, ids=1, workers=4) as place:
        place.backfill()
        place.assert_right()


@pytest.mark.slow
def test_e5_a_file_that_changes_between_interruption_and_resume_is_noticed_and_nothing_is_skipped(tmp_path):
    with inline(tmp_path, ids=400, workers=2, GOLDSKY_BATCH_SIZE="20", GOLDSKY_CONCURRENT_REQUESTS="1") as place:
        everything = list(place.ids)
        place.ids_file.write_text("\n".join(everything[:300]) + "\n")
        place.server.faults.add("errors", requests=range(6, 1000), message="Type `Condition` has no field `payouts`")
        with pytest.raises(GoldskyPermanentError):
            place.fetch()
        place.server.faults.clear()
        place.ids_file.write_text("\n".join(reversed(everything)) + "\n")
        place.backfill()
        place.assert_right()


def test_e5_a_ledger_of_another_file_is_neither_loaded_nor_counted(case):  # noqa: F811
    case.fetch()
    case.ids_file.write_text("\n".join(case.ids[:-1]) + "\n")
    with pytest.raises(IncompleteError):
        case.load()
    with pytest.raises(IncompleteError, match="worker_1_of_1"):
        rebuild_truth(case.settings, log=case.log)


@pytest.mark.parametrize(
    "change",
    [
        {"PAYOUT_WORKERS": "3"},
        {"GOLDSKY_BATCH_SIZE": "33"},
        {"GOLDSKY_CONCURRENT_REQUESTS": "1"},
        {"PAYOUT_TARGET_TABLE": "default.another_table"},
    ],
)
@pytest.mark.slow
def test_f2_a_setting_that_changes_in_the_middle_skips_no_id(tmp_path, change):
    with inline(tmp_path, ids=400, workers=2, GOLDSKY_BATCH_SIZE="20", GOLDSKY_CONCURRENT_REQUESTS="2") as place:
        place.fetch(1)
        place.load(1)
        place.server.faults.add(
            "errors", requests=range(len(place.server.log) + 5, 1000), message="Type `C` has no field `x`"
        )
        with pytest.raises(GoldskyPermanentError):
            place.fetch(2)
        place.server.faults.clear()
        place.env.update(change)
        if "PAYOUT_WORKERS" in change:
            with pytest.raises(IncompleteError, match="worker_1_of_3"):
                rebuild_truth(place.settings, log=place.log)
        place.backfill()
        place.assert_right()


@pytest.mark.slow
def test_f2_another_endpoint_in_the_middle_begins_anew_instead_of_mixing(tmp_path):
    with inline(tmp_path, ids=400, GOLDSKY_BATCH_SIZE="20", GOLDSKY_CONCURRENT_REQUESTS="1") as place:
        place.server.faults.add("errors", requests=range(6, 1000), message="Type `Condition` has no field `payouts`")
        with pytest.raises(GoldskyPermanentError):
            place.fetch()
        place.server.faults.clear()
        place.server.log.clear()
        place.env["GOLDSKY_ENDPOINT"] = place.server.goldsky_url
        place.backfill()
        place.assert_right()
        assert {i.removeprefix("0x") for entry in place.server.log.entries for i in entry.ids} == set(place.ids)


@pytest.mark.parametrize(
    "path", ["/api/public/project_local/subgraphs/nothing/1/gn", "/nowhere", "/subgraphs/name/unknown"]
)
def test_f3_an_endpoint_that_is_no_such_subgraph_costs_one_request_and_says_so(case, path):  # noqa: F811
    case.env["GOLDSKY_ENDPOINT"] = case.server.base_url + path
    began = time.monotonic()
    with pytest.raises(GoldskyPermanentError) as error:
        case.fetch()
    assert time.monotonic() - began < 10
    assert len(case.server.log) <= 1
    assert "GOLDSKY_ENDPOINT" in str(error.value) or path.rpartition("/")[2] in str(error.value)


def test_f3_a_web_page_is_said_to_be_one(case):  # noqa: F811
    case.server.faults.add("body", form="html")
    with pytest.raises(GoldskyPermanentError, match="web page"):
        case.fetch()
    assert len(case.server.log) == 1


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"CLICKHOUSE_PASSWORD": "not-the-pass-99"}, WarehousePermanentError),
        ({"CLICKHOUSE_USER": "nobody"}, WarehousePermanentError),
        ({"CLICKHOUSE_DATABASE": "no_such_db"}, WarehousePermanentError),
        ({"CLICKHOUSE_SECURE": "1"}, WarehousePermanentError),
        ({"CLICKHOUSE_PORT": "1"}, WarehouseUnavailableError),
    ],
)
def test_f4_a_wrong_server_setting_is_one_clear_error_before_the_first_request(tmp_path, served, wrong, kind):  # noqa: F811
    with inline(tmp_path, **{**served.env, **wrong}) as place:
        began = time.monotonic()
        with pytest.raises(kind) as error:
            place.fetch()
        assert time.monotonic() - began < 10  # 5 s on a machine that has nothing else to do
        assert len(place.server.log) == 0
        assert "CLICKHOUSE_" in str(error.value)
        assert place.env["CLICKHOUSE_PASSWORD"] not in str(error.value) + place.log_text


def test_f4_a_bearer_token_that_is_wrong_is_said_without_it(case):  # noqa: F811
    case.env["GOLDSKY_API_TOKEN"] = "wrong-canary-5531"
    with pytest.raises(GoldskyPermanentError, match=r"401|Unauthorized") as error:
        case.fetch()
    assert "wrong-canary" not in str(error.value)
    assert len(case.server.log) == 1


def test_the_view_is_refused_while_a_worker_is_missing(tmp_path):
    with inline(tmp_path, workers=2) as place:
        place.fetch(1)
        place.load(1)
        with pytest.raises(IncompleteError, match="worker_2_of_2"):
            rebuild_truth(place.settings, log=place.log)
        place.backfill()
        place.assert_right(truth=Truth(place.truth.resolved, place.truth.unresolved, place.truth.absent))
