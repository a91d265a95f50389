"""The numbers of a subgraph: BigDecimal as graph-node stores and prints it, and the integers behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction

_CONTEXT = Context(prec=34, Emax=999_999, Emin=-999_999)

# Two rationals with denominators below this differ by more than 10^-34, so the nearest one is the only one.
_LARGEST_DENOMINATOR = 10**16


def normalised(text: str) -> str:
    """A decimal at the 34 significant digits that graph-node keeps, as it prints them: ``0.1``, ``1324000000``, ``0``.

    Raises ValueError for what is no finite number.
    """
    try:
        value = _CONTEXT.create_decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is no finite number")
    return _printed(value)


def decimal_text(value: Fraction) -> str:
    """A share as the subgraph's mapping computes it: numerator / sum at 34 significant digits."""
    return _printed(_CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator)))


def _printed(value: Decimal) -> str:
    text = format(value, "f") if value else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text


def integer_vector(payouts: Sequence[str]) -> tuple[list[int], int]:
    """The integer numerators and their sum that a chain would have reported for these decimal payouts.

    Where every decimal is what a rational of small denominator looks like at 34 digits, and these sum to one, they are
    it (``0.333…3`` and ``0.666…7`` are 1/3 and 2/3, although the decimals sum to one as well). Otherwise the decimals
    are scaled to integers as they are; the denominator is the sum in any case.
    """
    shares = [Fraction(text) for text in payouts]
    rational = [share.limit_denominator(_LARGEST_DENOMINATOR) for share in shares]
    if sum(rational) == 1 and [decimal_text(share) for share in rational] == list(payouts):
        shares = rational
    scale = math.lcm(*(share.denominator for share in shares))
    numerators = [int(share * scale) for share in shares]
    return numerators, sum(numerators)
