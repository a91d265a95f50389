"""The numbers of a subgraph: BigDecimal as graph-node stores and prints it, and the integers behind it.

graph-node keeps 34 significant digits, prints neither exponent nor trailing zeros
(``graph/src/data/store/scalar/bigdecimal.rs``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction

SIGNIFICANT_DIGITS = 34
_CONTEXT = Context(prec=SIGNIFICANT_DIGITS, Emax=999_999, Emin=-999_999)

# Two rationals with denominators below this differ by more than 10^-34, so the nearest one is the only one.
_LARGEST_DENOMINATOR = 10**16


def normalise(text: str) -> Decimal | None:
    """A decimal rounded to 34 significant digits; None where the text is no finite decimal."""
    try:
        value = _CONTEXT.create_decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def to_text(value: Decimal) -> str:
    """As graph-node prints it: ``0.1``, ``1324000000``, ``0``; never ``1E+9``, ``0.10`` or ``-0``."""
    if not value:
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def decimal_text(value: Fraction) -> str:
    """A share as the subgraph's mapping computes it: numerator / sum at 34 significant digits."""
    return to_text(_CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator)))


def integer_vector(payouts: Sequence[Decimal]) -> tuple[list[int], int]:
    """The integer numerators and their sum that a chain would have reported for these decimal payouts.

    Where every decimal is what a rational of small denominator looks like at 34 digits, and these sum to one, they are
    it (``0.333…3`` and ``0.666…7`` are 1/3 and 2/3, although the decimals sum to one as well). Otherwise the decimals
    are scaled to integers as they are; the denominator is the sum in any case.
    """
    shares = [Fraction(value) for value in payouts]
    rational = [share.limit_denominator(_LARGEST_DENOMINATOR) for share in shares]
    if sum(rational) == 1 and all(map(_looks_like, rational, payouts)):
        shares = rational
    scale = math.lcm(*(share.denominator for share in shares))
    numerators = [int(share * scale) for share in shares]
    return numerators, sum(numerators)


def _looks_like(rational: Fraction, value: Decimal) -> bool:
    return _CONTEXT.divide(Decimal(rational.numerator), Decimal(rational.denominator)) == value
