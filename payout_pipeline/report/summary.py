"""What passed, a line a check: the workers' numbers added up. And how a single value is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from payout_pipeline.checks.history import QUIET, CheckStatus, State
from payout_pipeline.ids.chunks import PARTITION_KEY
from payout_pipeline.verdict import Value


def passed_checks(statuses: Iterable[CheckStatus]) -> list[list[CheckStatus]]:
    """What passed, and what had nothing to check: the workers of one check and one state together."""
    found: dict[tuple[str, str, State], list[CheckStatus]] = {}
    for status in statuses:
        if status.state in QUIET:
            found.setdefault((status.info.asset, status.info.name, status.state), []).append(status)
    return list(found.values())


def summed_up(workers: Sequence[CheckStatus]) -> str:
    """One sentence for all workers that passed a check: whole numbers are added, others given as a range."""
    first = workers[0]
    verdicts = [status.verdict for status in workers if status.verdict is not None]
    if len(workers) == 1 or len(verdicts) < len(workers):
        return first.sentence
    parts: list[str] = []
    if all(_is_count(verdict.expected) and _is_count(verdict.actual) for verdict in verdicts):
        actual, expected = (sum(int(getattr(v, name)) for v in verdicts) for name in ("actual", "expected"))
        parts.append(f"{actual:,} of {expected:,}")
    counted = bool(parts)  # and a number that is 0 adds nothing
    for name in verdicts[0].facts:
        values = [verdict.facts[name] for verdict in verdicts if name in verdict.facts]
        if not counted or any(values):
            parts.append(_together(name, values))
    text = ", ".join(part for part in parts if part)
    if text:
        return text
    said = {PARTITION_KEY.sub("the worker", status.sentence) for status in workers}
    return said.pop() if len(said) == 1 else f"{first.sentence} (the first of {len(workers)}; --verbose shows each)"


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _together(name: str, values: Sequence[Value]) -> str:
    """One fact of all workers in words; empty where there is nothing to say."""
    if all(_is_count(value) for value in values):
        return f"{sum(int(value) for value in values):,} {name}"
    numbers = [float(value) for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        return f"{name} {low:g}" + (f" to {high:g}" if high > low else "")
    same = set(values)
    return f"{name}: {cell(values[0])}" if len(same) == 1 else ""


def cell(value: object) -> str:
    """A value as text, for a table or a sentence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
