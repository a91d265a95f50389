"""Decimal strings and integer strings → exact payout vectors. Integer and Fraction arithmetic only, never a float.

A subgraph with ``payouts`` gives numerator/denominator as decimal strings. graph-node rounds a BigDecimal to 34
significant digits and strips trailing zeros (graph/src/data/store/scalar/bigdecimal.rs), so thirds arrive as
``0.3333333333333333333333333333333333``. The vector is recovered from the interval of values that read like that:

* decimals that sum to exactly one are taken as they are, where their common denominator fits UInt64;
* otherwise each element is the fraction with the smallest denominator in its interval, and it is believed only if no
  other fraction with a denominator up to 2**64-1 lies in that interval. Fractions a/b and c/d are at least 1/(b·d)
  apart and an interval is at most 1e-34 wide, so every vector with a denominator up to 5·10**14 is recovered, and
  what cannot be told apart is invalid instead of guessed.

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
        # The type has to be looked at: True == 1 and would share its cache entry.
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
    intervals = [_interval(mantissa, places) for mantissa, places in numbers]
    lowest, highest = sum(low for low, _ in intervals), sum(high for _, high in intervals)
    if not lowest <= 1 <= highest:
        return InvalidVector(f"the payouts sum to {_decimal_text(total, scale)}, not to 1")
    elements: list[Fraction] = []
    for low, high in intervals:
        # What the others leave of 1 bounds an element too: it helps where one is much smaller than the other.
        low, high = max(low, 1 - (highest - high)), min(high, 1 - (lowest - low))
        if low > high:
            return InvalidVector(f"the payouts sum to {_decimal_text(total, scale)}, not to 1")
        simplest = _simplest_between(low, high)
        if simplest.denominator > MAX_UINT64:
            return InvalidVector("no fraction with a denominator up to 2^64-1 reads like this")
        if not _is_alone(simplest, low, high):
            return InvalidVector("several fractions with a denominator up to 2^64-1 read like this")
        elements.append(simplest)
    if sum(elements) != 1:
        return InvalidVector(f"the payouts sum to {_decimal_text(total, scale)}, not to 1")
    denominator = lcm(*(element.denominator for element in elements))
    return _lowest_terms([element.numerator * (denominator // element.denominator) for element in elements])


def _decimal_text(total: int, scale: int) -> str:
    digits = str(total).rjust(scale + 1, "0")
    text = f"{digits[:-scale]}.{digits[-scale:]}".rstrip("0").rstrip(".") if scale else digits
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _interval(mantissa: int, places: int) -> tuple[Fraction, Fraction]:
    """All values that are rounded to ``mantissa / 10**places``, ends included (either way of rounding a tie).

    Numbers with more digits than graph-node writes count as rounded at their own last digit.
    """
    if mantissa == 0:  # rounding to significant digits never makes a zero
        return Fraction(0), Fraction(0)
    digits = len(str(mantissa))
    value = Fraction(mantissa, 10**places)
    unit = Fraction(10 ** max(digits, SIGNIFICANT_DIGITS))
    half = Fraction(10 ** (digits), 10**places) / unit / 2
    # Just below a power of ten the digits are ten times finer.
    below = half / 10 if mantissa == 10 ** (digits - 1) else half
    return value - below, value + half


def _simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """The fraction with the smallest denominator in [low, high], 0 <= low <= high (by continued fractions)."""
    whole: list[int] = []
    while True:
        floor = low.numerator // low.denominator
        if floor == low:
            found = Fraction(floor)
            break
        if floor + 1 <= high:
            found = Fraction(floor + 1)
            break
        whole.append(floor)
        low, high = 1 / (high - floor), 1 / (low - floor)
    for floor in reversed(whole):
        found = floor + 1 / found
    return found


def _is_alone(fraction: Fraction, low: Fraction, high: Fraction) -> bool:
    """Whether no other fraction with a denominator up to 2**64-1 lies in [low, high].

    The neighbours of a/b among these are a/b ± 1/(b·q), q being the largest denominator allowed with a·q ± 1
    divisible by b.
    """
    top, bottom = fraction.numerator, fraction.denominator
    if low == high:
        return True
    inverse = pow(top, -1, bottom) if bottom > 1 else 0
    for sign, room in ((1, high - fraction), (-1, fraction - low)):
        # top·q ≡ -sign (mod bottom)
        residue = (-sign * inverse) % bottom
        step = MAX_UINT64 - (MAX_UINT64 - residue) % bottom
        if Fraction(1, bottom * step) <= room:
            return False
    return True
