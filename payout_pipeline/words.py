"""Numbers in sentences: counts, shares and durations, the same everywhere a user reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``2,345 rows``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def share(part: int, whole: int) -> str:
    """``part`` of ``whole`` in per cent, two decimals, never rounded up to 100 or down to 0."""
    if not whole:
        return "0.00 %"
    hundredths = part * 10_000 // whole
    if hundredths == 0 and part:
        hundredths = 1
    return f"{hundredths // 100}.{hundredths % 100:02d} %"


def has(number: int) -> str:
    """The verb that fits the number."""
    return "has" if number == 1 else "have"


def is_(number: int) -> str:
    """The verb that fits the number."""
    return "is" if number == 1 else "are"


def verb(number: int, plural: str) -> str:
    """The regular verb that fits the number: ``1 row holds``, ``2 rows hold``."""
    return f"{plural}s" if number == 1 else plural


def duration(delta: timedelta) -> str:
    """``3 d 4 h``, ``5 h 12 min``, ``3 min 4 s``: the two largest units."""
    seconds = max(0, int(delta.total_seconds()))
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds} s"
    return f"{seconds} s"


def listed(ids: Sequence[str], total: int, show: int = 3) -> str:
    """The first ids of ``total`` as text, for the end of a sentence; empty where there are none."""
    if not ids:
        return ""
    more = total - min(show, len(ids))
    return ", ".join(ids[:show]) + (f" and {more:,} more" if more > 0 else "")
