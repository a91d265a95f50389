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
from pathlib import Path

import orjson

from payout_pipeline.subgraph.decimals import decimal_text

_FIRST_RESOLUTION = int(datetime(2021, 1, 1, tzinfo=timezone.utc).timestamp())
_LAST_RESOLUTION = int(datetime(2025, 10, 1, tzinfo=timezone.utc).timestamp())

# Payout numerators and their weight in 100,000 resolved conditions. The rare ones are more frequent than on chain, so
# that small data has them too.
_SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((0, 1), 76_500),
    ((1, 0), 21_700),
    ((1, 1), 900),
    ((27, 23), 200),
    ((23, 27), 100),
    ((1, 2), 100),
    ((1, 1, 1), 150),
    ((1, 2, 4), 50),
    ((1, 0, 0), 100),
    ((0, 1, 0), 60),
    ((0, 0, 1), 60),
    ((1, 0, 1), 40),
    ((61_728_394_506_172_839, 438_271_605_493_827_161), 40),
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

    The same count and seed give the same bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    ids = [chance.randbytes(32).hex() for _ in range(count)]
    resolved = round(count * 0.75)
    unresolved = min(count - resolved, round(count * 0.23))
    texts = [_payouts_text(numerators) for numerators, _weight in _SHAPES]
    chosen = chance.choices(texts, weights=[weight for _numerators, weight in _SHAPES], k=resolved)
    # Every shape at least once, where there are enough ids.
    chosen[: len(texts)] = texts[:resolved]
    times = [chance.randrange(_FIRST_RESOLUTION, _LAST_RESOLUTION) for _ in range(resolved)]

    conditions = directory / "conditions.csv"
    with conditions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("condition_id", "payouts", "resolved_at"))
        writer.writerows(
            (identity, payouts, datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
            for identity, payouts, when in zip(ids, chosen, times, strict=False)
        )
        writer.writerows((identity, "", "") for identity in ids[resolved : resolved + unresolved])
    chance.shuffle(ids)
    listed = directory / "condition_ids.txt"
    listed.write_text("\n".join(ids) + "\n", encoding="utf-8")
    return GeneratedData(listed, conditions, resolved, unresolved, count - resolved - unresolved)


def _payouts_text(numerators: tuple[int, ...]) -> str:
    """The JSON text in which a subgraph serves this vector: decimals of at most 34 significant digits."""
    return orjson.dumps([decimal_text(Fraction(value, sum(numerators))) for value in numerators]).decode()


def expected_vectors(conditions: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(condition id, numerators, denominator) in lowest terms of every resolved condition that ``generate`` wrote.

    Comes from the shapes that the data was made of, not from the decimals, so it does not share a conversion with what
    it is compared to. Raises KeyError for a vector that was not generated.
    """
    known = {_payouts_text(numerators): numerators for numerators, _weight in _SHAPES}
    with conditions.open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            if text := record["payouts"]:
                yield record["condition_id"], known[text], sum(known[text])
