"""Condition ids and outcomes for the demo and for tests: reproducible, shaped like the real ones, with the exact truth.

Of the ids about 75 % are resolved, 23 % known but unresolved, 2 % absent from the subgraph. Nearly all vectors have one
winner; 50/50s, 0.54/0.46s, thirds (34 digits, which no decimal of that length holds exactly) and three outcomes occur.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from math import lcm
from pathlib import Path

import orjson

from payout_pipeline.errors import InputError
from payout_pipeline.subgraph.decimals import decimal_text

RESOLVED_SHARE = 0.75
UNRESOLVED_SHARE = 0.23

_FIRST_RESOLUTION = int(datetime(2021, 1, 1, tzinfo=timezone.utc).timestamp())
_LAST_RESOLUTION = int(datetime(2025, 10, 1, tzinfo=timezone.utc).timestamp())

Shares = tuple[Fraction, ...]


def _shares(*texts: str) -> Shares:
    return tuple(Fraction(text) for text in texts)


# Weights in 100,000 resolved conditions; the rare ones are more frequent than on chain so that small data has them too.
_SHAPES: tuple[tuple[Shares, int], ...] = (
    (_shares("0", "1"), 76_500),
    (_shares("1", "0"), 21_700),
    (_shares("1/2", "1/2"), 900),
    (_shares("0.54", "0.46"), 200),
    (_shares("0.46", "0.54"), 100),
    (_shares("1/3", "2/3"), 100),
    (_shares("1/3", "1/3", "1/3"), 150),
    (_shares("1/7", "2/7", "4/7"), 50),
    (_shares("1", "0", "0"), 100),
    (_shares("0", "1", "0"), 60),
    (_shares("0", "0", "1"), 60),
    (_shares("1/2", "0", "1/2"), 40),
    (_shares("0.123456789012345678", "0.876543210987654322"), 40),
)


@dataclass(frozen=True, slots=True)
class GeneratedData:
    """``ids``: text file, one id a line, shuffled; ``conditions``: CSV for the local subgraph.

    ``resolved``, ``unresolved`` and ``absent`` are numbers of ids and add up to the number generated.
    """

    ids: Path
    conditions: Path
    resolved: int
    unresolved: int
    absent: int


def generate(count: int, seed: int, directory: Path) -> GeneratedData:
    """Writes ``condition_ids.txt`` (exactly ``count`` distinct ids) and ``conditions.csv`` into ``directory``.

    The same count and seed give the same bytes. Raises :class:`~payout_pipeline.errors.InputError` for a count below 1.
    """
    if count < 1:
        raise InputError(f"{count} ids cannot be generated; ask for at least one")
    directory.mkdir(parents=True, exist_ok=True)
    dice = random.Random(seed)
    ids = [dice.randbytes(32).hex() for _ in range(count)]
    resolved = round(count * RESOLVED_SHARE)
    unresolved = min(count - resolved, round(count * UNRESOLVED_SHARE))
    texts = [payouts_text(shares) for shares, _weight in _SHAPES]
    chosen = dice.choices(texts, weights=[weight for _shares, weight in _SHAPES], k=resolved)
    # Every shape at least once, where there are enough ids.
    chosen[: len(texts)] = texts[:resolved]
    times = [dice.randrange(_FIRST_RESOLUTION, _LAST_RESOLUTION) for _ in range(resolved)]

    conditions = directory / "conditions.csv"
    with conditions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("condition_id", "payouts", "resolved_at"))
        writer.writerows(
            (identity, payouts, datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
            for identity, payouts, when in zip(ids, chosen, times, strict=False)
        )
        writer.writerows((identity, "", "") for identity in ids[resolved : resolved + unresolved])
    dice.shuffle(ids)
    listed = directory / "condition_ids.txt"
    listed.write_text("\n".join(ids) + "\n", encoding="utf-8")
    return GeneratedData(listed, conditions, resolved, unresolved, count - resolved - unresolved)


def payouts_text(shares: Shares) -> str:
    """The JSON text in which a subgraph serves these shares: decimals of at most 34 significant digits."""
    return orjson.dumps([decimal_text(share) for share in shares]).decode()


def expected_vectors(conditions: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(condition id, numerators, denominator) in lowest terms of every resolved condition that ``generate`` wrote.

    Comes from the shapes that the data was made of, not from the decimals, so it does not share a conversion with what
    it is compared to. Raises :class:`~payout_pipeline.errors.InputError` for a vector that was not generated.
    """
    known = {payouts_text(shares): shares for shares, _weight in _SHAPES}
    exact: dict[str, tuple[tuple[int, ...], int]] = {}
    for text, shares in known.items():
        denominator = lcm(*(share.denominator for share in shares))
        exact[text] = tuple(int(share * denominator) for share in shares), denominator
    with conditions.open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            text = record["payouts"]
            if not text:
                continue
            if text not in exact:
                raise InputError(f"{conditions}: {text} of {record['condition_id']} is not a generated vector")
            numerators, denominator = exact[text]
            yield record["condition_id"], numerators, denominator
