"""No secret in any output, encoded forms included (RELIABILITY G1, G2)."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payout_pipeline.scrub import excerpt, keys_of, register_secret, scrub

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


KEYS = [
    "0123456789abcdef0123456789abcdef",
    "9F86D081884C7D659A2FEAA0C55AD015",
    "4b1c9a52-0d9e-4f1c-8a55-0a6f5f3a9c11",
    "cm5x8k2l90003e201j6li0diw",
    "sk_live_aB3dE6gH9jK2mN5pQ8sT",
    "dGhpcyBpcyBhIGtleSAxMjM0NQ==",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "url", ["https://host/api/{}/subgraphs/x/gn", "http://host:8000/{}", "https://host/gn?api-key={}&x=1"]
)
def test_g1_a_key_in_an_endpoint_is_masked(url, key):
    for text in (url, "POST {url} failed: 500", "endpoint='{url}', next", "({url})", '{{"endpoint":"{url}"}}'):
        shown = text if text is url else text.replace("{url}", url).replace("{{", "{").replace("}}", "}")
        shown = scrub(shown.replace("{}", key))
        assert key not in shown
        assert "***" in shown
        assert "host" in shown


@pytest.mark.parametrize(
    "url",
    [
        "https://api.goldsky.com/api/public/project_cl6mb8i9h0003e201j6li0diw/subgraphs/positions-subgraph/0.0.7/gn",
        "https://api.goldsky.com/api/public/project_cl6mb8i9h0003e201j6li0diw/subgraphs/polymarket-orderbook-resync/prod/gn",
        "https://gateway.thegraph.com/api/subgraphs/id/81Dm16JjuFSrqz813HysXoUPvzTwE7fsfPk2RTf66nyC",
        "https://host/deployments/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWxn4Lb",
        "s3://bucket/payout-pipeline-runtime-2026-11-27/goldsky_payouts/worker_1_of_4/ledger.parquet",
        "http://localhost:3000/runs/4b1c9a52-0d9e-4f1c-8a55-0a6f5f3a9c11",
        "http://localhost:3000/runs/b/backfill-of-november-2026",
    ],
)
def test_what_is_public_in_a_url_stays_readable(url):
    assert scrub(f"{url} answered") == f"{url} answered"


def test_what_is_no_url_stays_as_it_is():
    text = "condition 0x" + "ab" * 32 + " of QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWxn4Lb, sha256 " + "0f" * 32
    assert scrub(text) == text


def test_g1_a_key_of_the_endpoint_is_masked_outside_of_it_too_once_a_client_is_made():
    url = "https://host/api/f00dfeed0123456789abcdef01234567/gn"
    assert keys_of(url) == ["f00dfeed0123456789abcdef01234567"]
    for key in keys_of(url):
        register_secret(key)
    assert scrub("GET /api/f00dfeed0123456789abcdef01234567/gn") == "GET /api/***/gn"
