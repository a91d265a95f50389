"""The forms of the id file: text, CSV, JSON, Parquet. Each gives the same ids, and an entry that is none is found in each."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payout_pipeline.errors import InputError
from payout_pipeline.ids.file import characters, parquet
from payout_pipeline.ids.id_list import read_ids
from payout_pipeline.ids.text import ID_COLUMNS

IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]


def write(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "ids"
    path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return path


def read(tmp_path: Path, content: bytes | str) -> list[str]:
    return read_ids(write(tmp_path, content)).ids()


def refusal(tmp_path: Path, content: bytes | str) -> str:
    with pytest.raises(InputError) as caught:
        read_ids(write(tmp_path, content))
    message = str(caught.value)
    assert message.replace("\n", "").isprintable()
    return message


def parquet_of(columns: dict[str, pa.Array | list[object]], **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


# ------------------------------------------------------------------------------------------------ writers, for each form


class Written(NamedTuple):
    """A file, and where each of its texts stands: ``line 3``, ``element 2 (line 1)``, ``row 2``."""

    content: bytes
    places: list[str]


Cell = tuple[str, str]  # of other columns: before and behind the id


def quoted(texts: list[str], _cells: list[Cell]) -> Written:
    lines = [f'  "{text}",' for text in texts]
    return Written("\n".join(lines).encode(), [f"line {n}" for n in range(1, len(texts) + 1)])


def table(separator: str, name: str, comment: str = "") -> Callable[[list[str], list[Cell]], Written]:
    def write_table(texts: list[str], cells: list[Cell]) -> Written:
        sink, places = io.StringIO(comment), []
        sink.seek(0, io.SEEK_END)
        rows = csv.writer(sink, delimiter=separator, lineterminator="\n")
        rows.writerow(["", name, "question"])
        for text, (before, behind) in zip(texts, cells, strict=True):
            places.append(f"line {sink.getvalue().count(chr(10)) + 1}")
            rows.writerow([before, text, behind])
        return Written(sink.getvalue().encode(), places)

    return write_table


def column(texts: list[str], _cells: list[Cell]) -> Written:
    return Written(
        "\n".join(['"condition_id"', *(f'"{text}"' for text in texts)]).encode(),
        [f"line {n}" for n in range(2, len(texts) + 2)],
    )


def array(indent: int | None, key: str = "") -> Callable[[list[str], list[Cell]], Written]:
    def write_array(texts: list[str], cells: list[Cell]) -> Written:
        values = [{"question": c, key: t, "id": 7} if key else t for t, (c, _) in zip(texts, cells, strict=True)]
        size = 5 if key else 1
        lines = [1 if indent is None else 2 + n * size for n in range(len(texts))]
        return Written(
            json.dumps(values, indent=indent).encode(),
            [f"element {n} (line {line})" for n, line in enumerate(lines, 1)],
        )

    return write_array


def json_lines(texts: list[str], cells: list[Cell]) -> Written:
    lines = [json.dumps({"conditionId": t, "question": c}) for t, (c, _) in zip(texts, cells, strict=True)]
    return Written("\n\n".join(lines).encode(), [f"line {1 + 2 * n}" for n in range(len(texts))])


def parquet_texts(kind: pa.DataType) -> Callable[[list[str], list[Cell]], Written]:
    def write_parquet(texts: list[str], cells: list[Cell]) -> Written:
        columns = {
            "question": [before for before, _ in cells],
            "condition_id_norm": pa.array([t.encode() if pa.types.is_binary(kind) else t for t in texts], kind),
        }
        return Written(parquet_of(columns, row_group_size=7), [f"row {n}" for n in range(1, len(texts) + 1)])

    return write_parquet


FORMS = {
    "quoted": quoted,
    "comma": table(",", "condition_id"),
    "semicolon, comments first": table(";", "conditionId", "# of today\n\n"),
    "tab": table("\t", "market_id"),
    "one column": column,
    "array": array(None),
    "array, indented": array(1),
    "array of objects": array(None, "condition_id"),
    "array of objects, indented": array(2, "conditionId"),
    "JSON lines": json_lines,
    "Parquet, text": parquet_texts(pa.string()),
    "Parquet, large text": parquet_texts(pa.large_string()),
    "Parquet, categories": parquet_texts(pa.dictionary(pa.int32(), pa.string())),
    "Parquet, text as bytes": parquet_texts(pa.binary()),
}
an_id = st.binary(min_size=32, max_size=32).map(bytes.hex)
spelled = st.tuples(an_id, st.sampled_from(["", "0x", "0X"]), st.booleans()).map(
    lambda parts: parts[1] + (parts[0].upper() if parts[2] else parts[0])
)
note = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
spoilt = st.sampled_from(
    [
        "",
        "0x",
        IDS[0][1:],
        IDS[0] + "0",
        "g" * 64,
        "9" * 77,
        "will-it-rain",
        f"{IDS[0]}\u200b",
        f"\\x{IDS[0]}",
        "2.18E+76",
    ]
)
check = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[64, 1 << 20], ids=["small parts", "large parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "READ_CHARACTERS", request.param)
    monkeypatch.setattr(parquet, "BLOCK", request.param)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@check
@given(texts=st.lists(spelled, min_size=1, max_size=20), data=st.data())
def test_what_is_written_in_a_form_is_read_back(tmp_path: Path, form: Callable, texts: list[str], data) -> None:
    cells = data.draw(st.lists(st.tuples(note, note), min_size=len(texts), max_size=len(texts)))
    wanted = list(dict.fromkeys(text[-64:].lower() for text in texts))
    content = form(texts, cells).content

    assert read(tmp_path, content) == wanted
    if not content.startswith(b"PAR1"):
        assert read(tmp_path, gzip.compress(content)) == wanted
        assert read(tmp_path, content.decode().encode("utf-16")) == wanted


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@check
@given(texts=st.lists(spelled, min_size=1, max_size=20), bad=spoilt, data=st.data())
def test_a_single_spoilt_entry_is_refused_with_its_place(
    tmp_path: Path, form: Callable, texts: list[str], bad: str, data
) -> None:
    cells = data.draw(st.lists(st.tuples(note, note), min_size=len(texts), max_size=len(texts)))
    at = data.draw(st.integers(0, len(texts) - 1))
    written = form([*texts[:at], bad, *texts[at + 1 :]], cells)

    message = refusal(tmp_path, written.content)

    assert re.search(r": 1 (line|row|element) is no condition id", message)
    assert f"\n  {written.places[at]}: " in message


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", ID_COLUMNS)
@pytest.mark.parametrize("header", ["{}", '"{}"', "slug,{}", '"slug";"{}"', "slug\t{}", "{},slug", "\t{}"])
def test_a_header_that_names_one_column_of_ids_is_recognised(tmp_path: Path, name: str, header: str) -> None:
    row = header.replace("slug", "will-it-rain").replace("{}", f"0x{IDS[0]}")

    assert read(tmp_path, f"{header.format(name)}\r\n{row}\r\n") == [IDS[0]]


@pytest.mark.parametrize("header", ["Condition_ID,slug", "id,slug", "condition_id,slug;conditionId", "slug;id"])
def test_a_header_that_names_none_is_a_line_like_others(tmp_path: Path, header: str) -> None:
    message = refusal(tmp_path, f"{header}\n{IDS[0]},x\n{IDS[1]},y\n")

    assert "line 1: " in message
    assert "header" in message
    assert "condition_id" in message


def test_two_columns_of_ids_are_refused_by_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"# today\ncondition_id;slug;market_id\n{IDS[0]};x;{IDS[1]}\n")

    assert "the header in line 2 names 2 columns of ids (condition_id, market_id)" in message


ROWS = {
    "an empty cell": (f"x,{IDS[0]}\ny,\n", "line 3: '' (is empty)"),
    "a cell too few": (f"x,{IDS[0]}\n{IDS[1]}\n", "(1 cell, where the header has 2 columns)"),
    "a cell too many": (f"x,{IDS[0]}\na,b,{IDS[1]}\n", "(3 cells, where the header has 2 columns)"),
    "a comment": (f"x,{IDS[0]}\n# the end\n", "line 3: '# the end' (1 cell, where"),
    "a quote not closed": (
        f'x,{IDS[0]}\n"y,{IDS[1]}\n',
        "line 3: (no row of a table: unexpected end of data; is a quote",
    ),
    "text behind a quote": (f'"x"y,{IDS[0]}\nz,{IDS[1]}\n', "line 2: (no row of a table: ',' expected after '\"'"),
    "ids within a cell": (f'"x,{IDS[0]}\ny,{IDS[1]}\nz",{IDS[2]}\n', "line 2: "),
    "a token id": (f"x,{IDS[0]}\ny,{'7' * 77}\n", "(this is a token id"),
}


@pytest.mark.parametrize(("rows", "said"), ROWS.values(), ids=ROWS.keys())
def test_a_row_without_a_clear_id_is_refused_and_swallows_no_other(tmp_path: Path, rows: str, said: str) -> None:
    message = refusal(tmp_path, f"slug,condition_id\n{rows}")

    assert said in message
    assert "1 line is no condition id" in message


def test_a_quoted_cell_may_have_line_ends_separators_and_any_bytes(tmp_path: Path) -> None:
    content = f'question,condition_id\n"Will ""it"",\nrain?",{IDS[0]}\n\n\udcff, 0x{IDS[1]} \n'

    assert read(tmp_path, content) == IDS[:2]


def test_a_row_of_a_quote_that_hides_others_says_where_it_ends(tmp_path: Path) -> None:
    message = refusal(tmp_path, f'slug,condition_id\n"x,{IDS[0]}\ny,{IDS[1]}\nz",{IDS[2]}\n')

    assert "a quoted cell that goes on to line 4 has ids in it; is a quote not closed?" in message


# ----------------------------------------------------------------------------------------------------------------- JSON

BROKEN = {
    "cut off in a string": (
        f'["{IDS[0]}",\n"{IDS[1][:9]}',
        "element 2 (line 2): ",
        "is not closed: is the file cut off?",
    ),
    "cut off behind a comma": (f'["{IDS[0]}",\n', "element 2 (line 2): ", "is not closed: is the file cut off?"),
    "cut off behind an id": (f'["{IDS[0]}"', "element 1 (line 1): ", "is not closed: is the file cut off?"),
    "cut off in an object": ('[{"condition_id"', "element 1 (line 1): ", "is not closed: is the file cut off?"),
    "a comma at the end": (f'["{IDS[0]}",\n]', "element 2 (line 2): ", "a comma before the closing bracket"),
    "no comma": (f'["{IDS[0]}"\n"{IDS[1]}"]', "element 1 (line 1): ", "a comma or the closing bracket is missing"),
    "a quote not closed": (f'["{IDS[0]},\n"{IDS[1]}"]', "element 1 (line 1): ", "no JSON: Invalid control character"),
    "single quotes": (f"['{IDS[0]}']", "element 1 (line 1): ", "JSON has double quotes"),
    "two arrays": (f'["{IDS[0]}"]\n["{IDS[1]}"]', "line 2: ", "behind the end of the JSON array"),
    "a number of 64 digits": (f"[{'1' * 64}]", "element 1 (line 1): ", "a number, where a string is expected"),
    "a token id as a number": (f"[{'1' * 77}]", "element 1 (line 1): ", "this is a token id"),
    "a rounded number": ("[2.18e+76]", "element 1 (line 1): ", "a spreadsheet has rounded"),
    "null": ("[null]", "element 1 (line 1): 'null'", "null, where an id is expected"),
    "a list in a list": (f'[["{IDS[0]}"]]', "element 1 (line 1): ", "a list, where an id is expected"),
    "another object": ('[{"id": "1"}]', "element 1 (line 1): ", "an object that has none of the keys condition_id,"),
    "two ids in an object": (
        f'{{"condition_id": "{IDS[0]}", "market_id": "{IDS[1]}"}}',
        "line 1: ",
        "an object that has 2 of the keys condition_id, conditionId, condition_id_norm, market_id; exactly one",
    ),
    "a key twice": (f'{{"condition_id": "{IDS[0]}", "condition_id": "{IDS[1]}"}}', "line 1: ", "has 2 of the keys"),
    "JSON lines, one cut off": (f'{{"market_id":"{IDS[0]}"}}\n{{"market_id":"x', "line 2: ", "no whole JSON value"),
    "an object over lines": (f'{{\n"market_id": "{IDS[0]}"}}', "line 1: ", "no whole JSON value"),
    "brackets without end": ("[" * 100_000, "element 1 (line 1): ", "too many brackets"),
    "braces without end": ('{"a":' * 100_000, "line 1: ", "too many brackets"),
}


@pytest.mark.parametrize(("content", "place", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_json_that_is_no_list_of_ids_is_refused_with_the_place(
    tmp_path: Path, content: str, place: str, why: str
) -> None:
    message = refusal(tmp_path, content)

    assert f"\n  {place}" in message
    assert why in message


def test_an_array_without_elements_has_no_ids(tmp_path: Path) -> None:
    assert "has no condition ids" in refusal(tmp_path, " [ ] \n")


def test_refused_elements_are_counted_and_the_first_twenty_listed(tmp_path: Path) -> None:
    message = refusal(tmp_path, json.dumps([*IDS, *(["will-it-rain"] * 30)], indent=0))

    assert "30 elements are no condition id" in message
    assert re.findall(r"element (\d+) \(line (\d+)\)", message) == [(str(n), str(n + 1)) for n in range(51, 71)]


# -------------------------------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize("kind", [pa.binary(32), pa.binary(), pa.large_binary()], ids=str)
@check
@given(ids=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20))
def test_ids_of_32_bytes_are_read_from_parquet(tmp_path: Path, kind: pa.DataType, ids: list[bytes]) -> None:
    content = parquet_of({"condition_id": pa.array(ids, kind)})

    assert read(tmp_path, content) == list(dict.fromkeys(condition_id.hex() for condition_id in ids))


@pytest.mark.parametrize("kind", [pa.binary(64), pa.string_view()], ids=str)
def test_text_of_other_types_is_read_from_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    values = [i.encode() if pa.types.is_fixed_size_binary(kind) else i for i in IDS]

    assert read(tmp_path, parquet_of({"any name": pa.array(values, kind)})) == IDS


PARQUET = {
    "two columns of ids": (
        {"condition_id": IDS, "market_id": IDS},
        "has 2 columns of ids",
        "'condition_id', 'market_id'",
    ),
    "no column of ids": ({"id": IDS, "slug": IDS}, "has 2 columns and none of the name condition_id", "'id', 'slug'"),
    "numbers": ({"condition_id": [1, 2]}, "the column 'condition_id' is of type int64", "text (64 hex digits)"),
    "lists": ({"condition_id": [[IDS[0]]]}, "is of type list<", "convert it"),
    "a NULL": ({"condition_id": [IDS[0], None]}, "1 row is no condition id", "row 2: (condition_id is NULL)"),
    "half an id as text": ({"condition_id": [IDS[0][:32].encode()]}, "row 1: ", "32 hex digits instead of 64"),
    "31 bytes": ({"condition_id": [bytes(31)]}, "row 1: ", "zero bytes"),
    "no rows": ({"condition_id": pa.array([], pa.string())}, "has no condition ids", ""),
}


@pytest.mark.parametrize(("columns", "said", "more"), PARQUET.values(), ids=PARQUET.keys())
def test_a_parquet_file_without_clear_ids_is_refused(tmp_path: Path, columns: dict, said: str, more: str) -> None:
    message = refusal(tmp_path, parquet_of(columns))

    assert said in message
    assert more in message


def test_a_cut_off_parquet_file_is_said_to_be_one(tmp_path: Path) -> None:
    content = parquet_of({"condition_id": IDS})

    for end in (4, 100, len(content) - 1):
        assert "is a damaged or cut-off Parquet file" in refusal(tmp_path, content[:end])
