"""No secret in any output, encoded forms included (RELIABILITY G1, G2)."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.scrub import excerpt, register_secret, scrub

CANARY = "c4nary/S3cret+9=zz"


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register_secret(CANARY)


@given(before=st.binary(max_size=7), after=st.binary(max_size=7))
def test_g1_a_secret_is_removed_from_base64_at_any_alignment(before, after):
    text = base64.b64encode(before + CANARY.encode() + after).decode()
    cleaned = scrub(f"Authorization: {text}!")
    # What is left holds at most the parts of a byte that the neighbours share with the secret.
    for start in range(len(text) - 11):
        piece = text[start : start + 12]
        if piece in cleaned:
            assert CANARY.encode()[:8] not in base64.b64decode(text)[start * 3 // 4 : (start + 12) * 3 // 4]


@pytest.mark.parametrize("form", [CANARY, quote(CANARY, safe=""), quote(CANARY), CANARY.encode().hex()])
def test_g1_a_secret_is_removed_in_each_of_its_forms(form):
    assert form not in scrub(f"error at http://host/{form}?x=1")


def test_g1_a_secret_that_the_excerpt_would_cut_in_half_is_removed_first():
    text = "x" * 195 + CANARY
    assert CANARY[:4] not in excerpt(text)


def test_g1_url_credentials_and_bearer_tokens_are_masked_even_if_unknown():
    assert scrub("redis://u:pw@host:1/0 Bearer abcdefghijkl") == "redis://***@host:1/0 Bearer ***"


def test_g2_an_excerpt_is_one_line_without_control_characters():
    assert excerpt("a\nb\rc\x1b[31m\u202e") == "a\\nb\\rc\\u001b[31m\\u202e"
