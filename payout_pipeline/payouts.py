"""Decimal strings and integer strings → exact payout vectors. Integer and Fraction arithmetic only, never a float.

A subgraph with ``payouts`` gives numerator/denominator as decimal strings. graph-node rounds a BigDecimal to 34
significant digits and strips trailing zeros (graph/src/data/store/scalar/bigdecimal.rs), so thirds arrive as
``0.3333333333333333333333333333333333``. The vector is recovered from that:

* decimals that sum to exactly one are taken as they are, where their common denominator fits UInt64;
* otherwise each element is the fraction that reads like it, if there is only one with a denominator up to 2**64-1: two
  fractions a/b and c/d are at least 1/(b·d) apart, and the rounding is at most 1e-34 wide, so every denominator up to
  5·10**14 is recovered. One element for which that does not hold is what the others leave of one. Where the sum is not
  one, or fractions cannot be told apart, the vector is invalid instead of guessed.

The CTF contract takes 2 to 256 outcomes and no all-zero vector (ConditionalTokens.prepareCondition, reportPayouts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm

MAX_UINT64 = 2**64 - 1
MIN_OUTCOMES = 2
MAX_OUTCOMES = 256
SIGNIFICANT_DIGITS = 34
# Longer than any integer of 256 bits (78 digits) and any decimal of 34 significant digits that could be stored.
_LONGEST_NUMBER = 128
_SHOWN = 60

_DECIMAL = re.compile(r"([0-9]+)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,3}))?")
_INTEGER = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Vector:
    """A payout vector in lowest terms: ``sum(numerators) == denominator``, every number fits UInt64."""

    numerators: tuple[int, ...]
    denominator: int

    @property
    def winning_index(self) -> int:
        """The position of the largest payout; -1 where several share it (a split has no winner)."""
        largest = max(self.numerators)
        return -1 if self.numerators.count(largest) > 1 else self.numerators.index(largest)


@dataclass(frozen=True, slots=True)
class InvalidVector:
    """Why an answered vector cannot be stored exactly."""

    reason: str


Payouts = Vector | InvalidVector | None
"""A vector, a reason why there is none, or None: not resolved yet."""


def parse_payouts(raw: object) -> Payouts:
    """The vector of a ``payouts`` field: a list of decimal strings (or integers) that sum to one.

    ``None`` (JSON null) is how these subgraphs say "not resolved" and gives None. ``[]`` is different from null to
    graph-node and has no meaning here, so it is invalid and not silently unresolved. Never raises.
    """
    if raw is None:
        return None
    if not isinstance(raw, (list, tuple)):
        return InvalidVector(f"payouts are {_kind(raw)}, not a list")
    try:
        # By type: True == 1 and would share its cache entry.
        return _from_decimals(tuple([item if type(item) is str else _number_text(item) for item in raw]))
    except _NotANumberError as fault:
        return InvalidVector(str(fault))


def parse_numerators(numerators: object, denominator: object) -> Payouts:
    """The vector of ``payoutNumerators`` (a list of integer strings) and ``payoutDenominator`` (their sum).

    Numerators that are null, ``[]`` or all zero, with a denominator of ``"0"`` or null, are how these subgraphs say
    "not resolved", and give None. Never raises.
    """
    if numerators is None or numerators == []:
        if denominator is None:
            return None
        numerators = [] if str(denominator) == "0" else numerators
    if not isinstance(numerators, (list, tuple)):
        return InvalidVector(f"payoutNumerators are {_kind(numerators)}, not a list")
    try:
        return _from_integers(
            tuple([item if type(item) is str else _number_text(item) for item in numerators]),
            denominator if type(denominator) is str else _number_text(denominator),
        )
    except _NotANumberError as fault:
        return InvalidVector(str(fault))


class _NotANumberError(ValueError):
    """An element of the list is of a type that cannot hold an exact number."""


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return {"str": "a string", "dict": "an object", "list": "a list"}.get(type(value).__name__, type(value).__name__)


def _number_text(value: object) -> str:
    """A JSON integer as text; anything else but a string is refused."""
    if type(value) is int:
        if abs(value) >> 256:
            raise _NotANumberError("a number beyond 256 bits")
        return str(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        raise _NotANumberError(f"{value!r} is a JSON float, which is not exact")
    raise _NotANumberError(f"an element is {_kind(value)}")


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!a}… ({len(text):,} characters)"


def _count_fault(count: int) -> InvalidVector | None:
    if count == 0:
        return InvalidVector("the list is empty: neither null (not resolved) nor a vector")
    if count < MIN_OUTCOMES:
        return InvalidVector("one outcome only; a condition has at least 2")
    if count > MAX_OUTCOMES:
        return InvalidVector(f"{count:,} outcomes; a condition has at most {MAX_OUTCOMES}")
    return None


def _lowest_terms(numerators: list[int]) -> Vector | InvalidVector:
    """The vector of non-negative integers whose sum is the denominator."""
    divisor = gcd(*numerators)
    if divisor == 0:
        return InvalidVector("all payouts are zero")
    reduced = tuple([numerator // divisor for numerator in numerators])
    denominator = sum(reduced)
    if denominator > MAX_UINT64:
        return InvalidVector(f"the denominator {denominator} does not fit UInt64 (at most {MAX_UINT64})")
    return Vector(reduced, denominator)


@lru_cache(maxsize=4096)
def _from_integers(numerators: tuple[str, ...], denominator: str) -> Payouts:
    for text in (*numerators, denominator):
        if len(text) > _LONGEST_NUMBER or _INTEGER.fullmatch(text) is None:
            return InvalidVector(f"{_shown(text)} is no non-negative integer")
    bottom = int(denominator)
    if not numerators:
        return None if bottom == 0 else InvalidVector(f"no numerators, but the denominator is {_shown(denominator)}")
    fault = _count_fault(len(numerators))
    if fault is not None:
        return fault
    tops = [int(text) for text in numerators]
    if bottom == 0 and not any(tops):
        return None
    if bottom == 0:
        return InvalidVector(f"the denominator is 0, but there are {len(tops)} numerators")
    if sum(tops) != bottom:
        return InvalidVector(f"the numerators sum to {sum(tops)}, the denominator is {bottom}")
    return _lowest_terms(tops)


@lru_cache(maxsize=4096)
def _from_decimals(texts: tuple[str, ...]) -> Payouts:
    fault = _count_fault(len(texts))
    if fault is not None:
        return fault
    # Each number is mantissa / 10**places.
    numbers: list[tuple[int, int]] = []
    for text in texts:
        match = _DECIMAL.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
        if match is None:
            return InvalidVector(f"{_shown(text)} is no plain non-negative decimal number")
        fraction = (match[2] or "").rstrip("0")
        places = len(fraction) - int(match[3] or 0)
        numbers.append((int(match[1] + fraction) * 10 ** max(-places, 0), max(places, 0)))
    scale = max(places for _, places in numbers)
    tops = [mantissa * 10 ** (scale - places) for mantissa, places in numbers]
    total = sum(tops)
    if total == 0:
        return InvalidVector("all payouts are zero")
    if total == 10**scale:
        exact = _lowest_terms(tops)
        if isinstance(exact, Vector):
            return exact
    return _recover(numbers, total, scale)


def _recover(numbers: list[tuple[int, int]], total: int, scale: int) -> Vector | InvalidVector:
    """The one storable vector whose elements, rounded to 34 significant digits, read like these numbers."""
    elements = [_fraction(mantissa, places) for mantissa, places in numbers]
    unknown = [index for index, element in enumerate(elements) if element is None]
    found = [element for element in elements if element is not None]
    if len(unknown) == 1:
        rest = Fraction(1) - sum(found)
        mantissa, places = numbers[unknown[0]]
        if abs(rest - Fraction(mantissa, 10**places)) <= _rounding(mantissa, places):
            found.insert(unknown[0], rest)
    if len(found) == len(numbers) and sum(found) == 1:
        denominator = lcm(*(element.denominator for element in found))
        return _lowest_terms([element.numerator * (denominator // element.denominator) for element in found])
    if not unknown or abs(total - 10**scale) * 10**SIGNIFICANT_DIGITS > len(numbers) * 10**scale:
        return InvalidVector(f"the payouts sum to {_decimal_text(total, scale)}, not to 1")
    return InvalidVector("none or several fractions with a denominator up to 2^64-1 read like this")


def _decimal_text(total: int, scale: int) -> str:
    digits = str(total).rjust(scale + 1, "0")
    text = f"{digits[:-scale]}.{digits[-scale:]}".rstrip("0").rstrip(".") if scale else digits
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _rounding(mantissa: int, places: int) -> Fraction:
    """How far ``mantissa / 10**places`` may be from the number that was rounded.

    Numbers with more digits than graph-node writes count as rounded at their own last digit.
    """
    digits = len(str(mantissa))
    return Fraction(10**digits, 2 * 10 ** (places + max(digits, SIGNIFICANT_DIGITS)))


def _fraction(mantissa: int, places: int) -> Fraction | None:
    """The only fraction with a denominator up to 2**64-1 that is rounded to ``mantissa / 10**places``; else None."""
    if mantissa == 0:  # rounding to significant digits never makes a zero
        return Fraction(0)
    value, half = Fraction(mantissa, 10**places), _rounding(mantissa, places)
    found = value.limit_denominator(MAX_UINT64)
    alone = 2 * half * found.denominator * MAX_UINT64 < 1
    return found if found and alone and abs(found - value) <= half else None
