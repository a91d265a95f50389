"""Generated conditions whose truth is written in their ids, so that every part of the benchmark knows it by itself.

What a condition is (resolved how, unresolved, absent) is a pure function of the first eight digits of its id. Server,
verifier and competitors need no shared file beyond the list of ids, and cannot disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IDS = 170_448
#: Per thousand conditions: how many, the payouts as a subgraph prints them, and the exact vector, both written by hand.
_THIRD, _TWO_THIRDS = "0." + "3" * 34, "0." + "6" * 33 + "7"
_SHARES: tuple[tuple[int, tuple[str, ...], tuple[int, ...], int], ...] = (
    (560, ("0", "1"), (0, 1), 1),
    (168, ("1", "0"), (1, 0), 0),
    (6, ("0.5", "0.5"), (1, 1), -1),
    (4, ("0.54", "0.46"), (27, 23), 0),
    (2, (_THIRD, _THIRD, _THIRD), (1, 1, 1), -1),
    (2, (_THIRD, _TWO_THIRDS), (1, 2), 1),
    (5, ("0", "1", "0"), (0, 1, 0), 1),
    (3, ("0.25", "0.75"), (1, 3), 1),
)
_UNRESOLVED = 230

#: The head of the prepared subgraph, and the question that the yardsticks ask it, at the pipeline's own distance.
HEAD = 80_000_000
_BLOCK = f"block: {{number: {HEAD - 250}}}"
QUERY = (
    f"query Conditions($ids: [ID!]!) {{ conditions(first: 1000, where: {{id_in: $ids}}, {_BLOCK}) {{ id payouts }} "
    f"_meta({_BLOCK}) {{ deployment block {{ number }} hasIndexingErrors }} }}"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the subgraph knows of a condition: ``payouts`` None is unresolved; ``known`` False is absent."""

    known: bool
    payouts: tuple[str, ...] | None
    numerators: tuple[int, ...]
    winning_index: int


def _thousand() -> tuple[Outcome, ...]:
    outcomes: list[Outcome] = []
    for many, payouts, numerators, winner in _SHARES:
        outcomes += [Outcome(True, payouts, numerators, winner)] * many
    outcomes += [Outcome(True, None, (), 0)] * _UNRESOLVED
    outcomes += [Outcome(False, None, (), 0)] * (1000 - len(outcomes))
    return tuple(outcomes)


OUTCOMES = _thousand()


def outcome(condition_id: str) -> Outcome:
    """What the truth is for an id of 64 digits."""
    return OUTCOMES[int(condition_id[:8], 16) % 1000]


def condition_ids(count: int, seed: int = 1) -> Iterator[str]:
    """``count`` ids in no order."""
    prefix = b"condition %d " % seed
    sha256 = hashlib.sha256
    for number in range(count):
        yield sha256(prefix + b"%d" % number).hexdigest()


def write_ids(path: Path, count: int, seed: int = 1) -> Path:
    """The input file of a run: one id a line."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(identifier + "\n" for identifier in condition_ids(count, seed))
    return path


def read_ids(path: Path) -> list[str]:
    """The ids of a file that :func:`write_ids` wrote."""
    return path.read_text(encoding="ascii").split()


def batches(ids: list[str], workers: int, size: int) -> Iterator[list[str]]:
    """The ids as the workers ask for them: contiguous chunks of ceil(ids / workers), cut into batches."""
    chunk = -(-len(ids) // workers)
    for start in range(0, len(ids), chunk):
        end = min(start + chunk, len(ids))
        for first in range(start, end, size):
            yield ids[first : min(first + size, end)]


def truth_lines(ids: list[str]) -> Iterator[str]:
    """The rows that must be stored, by id, as TSV: id, numerators, denominator, winning index."""
    for identifier in sorted(ids):
        known = outcome(identifier)
        if known.payouts is not None:
            vector = ",".join(map(str, known.numerators))
            yield f"{identifier}\t[{vector}]\t{sum(known.numerators)}\t{known.winning_index}\n"


def statuses(ids: list[str]) -> dict[str, int]:
    """How many ids have each status in the ledger."""
    counts = {"resolved": 0, "unresolved": 0, "absent": 0}
    for identifier in ids:
        known = outcome(identifier)
        counts["absent" if not known.known else "unresolved" if known.payouts is None else "resolved"] += 1
    return counts
