"""What is wrong with a text that is no condition id, and what would help; the same in each place that takes ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.errors import InputError
from payout_pipeline.ids.text import RefusedTexts, normalise, why_no_id

ID = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
TOKEN = "21742633143463906290569050155826241533067272736897614950488156847949938836455"

REASONS = {
    "": "is empty",
    " \t": "is empty",
    TOKEN: "this is a token id (a decimal number of 70 to 78 digits); condition ids have 64 hex digits: take",
    f'"{TOKEN}"': "this is a token id",
    "will-bitcoin-reach-100k-in-2024": "this is a market slug: take the market's condition id",
    "https://polymarket.com/event/will-it-rain": "this is the address of a page: take the market's condition id",
    f"HexBytes('0x{ID}')": "Python's HexBytes: write value.hex()",
    "b'\\x12\\x34'": "Python's bytes: write value.hex()",
    f"\\x{ID}": "PostgreSQL's bytea: select encode(column, 'hex')",
    f"\\\\x{ID}": "PostgreSQL's bytea: select encode(column, 'hex')",
    "2.18E+76": "a spreadsheet has rounded this number and its digits are lost: export the ids again",
    "2,18E+76": "a spreadsheet has rounded this number",
    "2e+76": "a spreadsheet has rounded this number",
    ID[:-1]: "63 hex digits instead of 64; leading zeros may be lost: export the ids again as text",
    "0x" + ID[2:]: "62 hex digits instead of 64; leading zeros may be lost",
    ID[:40]: "40 hex digits instead of 64",
    ID + "00": "66 hex digits instead of 64",
    "a" * 5000: "998 or more hex digits instead of 64",
    f"0x{ID[:9]}\u00a0{ID[9:]}": "contains a non-breaking space (U+00A0) at character 12: remove it",
    f"{ID}\u200b": "contains a zero width space (U+200B) at character 65: remove it",
    f"\ufeff{ID}": "contains a byte order mark (U+FEFF) at character 1: remove it",
    f"{ID[:5]}\u202e{ID[5:]}": "contains a right-to-left override (U+202E) at character 6: remove it",
    "а" + ID[1:]: "characters that are no ASCII hex digits",
    f'"{ID}"': "is in quotes",
    f'"{ID}': "a quote that is not closed, or more than one value",
    f"{ID},{ID}": "looks like a table; give it a header line that names the column of the ids (condition_id, conditionId,",
    '{"id": 1}': "looks like JSON",
    "0x0x" + ID: "not hex digits only",
}


@pytest.mark.parametrize(("text", "reason"), REASONS.items(), ids=range(len(REASONS)))
def test_a_text_that_is_no_id_is_recognised_and_the_reason_helps(text: str, reason: str) -> None:
    assert normalise(text) is None
    assert why_no_id(text).startswith(reason)


@given(st.text(max_size=100))
def test_any_text_is_an_id_or_has_a_reason_in_one_printable_line(text: str) -> None:
    if normalise(text) is None:
        assert why_no_id(text).isprintable()
        assert why_no_id(text)


@pytest.mark.parametrize("text", [ID, ID.upper(), "0x" + ID, f" \t0X{ID.upper()} "])
def test_each_spelling_of_an_id_has_the_same_normal_form(text: str) -> None:
    assert normalise(text) == ID


def test_a_reason_that_is_repeated_is_written_once() -> None:
    refused = RefusedTexts("CONDITION_IDS_QUERY", repair="change the query")
    for row in range(1, 24):
        refused.add(f"row {row}", TOKEN if row != 3 else None, "" if row != 3 else "condition_id is NULL")

    with pytest.raises(InputError) as caught:
        refused.raise_if_any()

    lines = str(caught.value).split("\n")
    assert lines[0] == "CONDITION_IDS_QUERY: 23 rows are no condition id; nothing was asked."
    assert lines[1].startswith(f"  row 1: '{TOKEN[:60]}' … (this is a token id")
    assert lines[2] == f"  row 2: '{TOKEN[:60]}' … (the same)"
    assert lines[3] == "  row 3: (condition_id is NULL)"
    assert lines[-2:] == ["  … and 3 more", "Correct or remove them, or change the query."]
