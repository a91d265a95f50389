"""The report as one self-contained HTML page with plots; the page itself is the template ``page.html.j2``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payout_pipeline.checkpoint import read_progress
from payout_pipeline.errors import StorageError
from payout_pipeline.report.causes import affected
from payout_pipeline.report.model import Report
from payout_pipeline.report.summary import passed_checks, summed_up
from payout_pipeline.scrub import escape_controls, scrub
from payout_pipeline.settings import Settings
from payout_pipeline.storage import Store, open_store
from payout_pipeline.words import duration

if TYPE_CHECKING:
    from jinja2 import Template

    from payout_pipeline.ledger import SnapshotInfo

#: A bar: its label and what is stacked in it.
Bar = tuple[str, Sequence[tuple[str, int]]]

_SHAPES = 12
_SPANS = 60
_COLOURS = {
    "": "#2e7d4f",
    "resolved": "#2e7d4f",
    "unresolved": "#8aa6c1",
    "absent": "#c9c2b4",
    "invalid": "#d08a2e",
    "failed": "#b3372f",
}


@dataclass(frozen=True)
class Span:
    """A span of time: when it ended (seconds since the first request), the batches answered, and their mean time."""

    until: float
    batches: int
    mean_seconds: float


@dataclass(frozen=True)
class Plots:
    """What the page draws; a plot without data is left out."""

    shapes: Sequence[Bar] = ()
    coverage: Sequence[Bar] = ()
    statuses: Sequence[Bar] = ()
    batches: Sequence[Span] = ()
    waits: str = ""


def write_page(path: Path, settings: Settings, report: Report) -> None:
    """Write the page to ``path``. Raises StorageError where that cannot be written."""
    text = page(report, gather_plots(settings, report))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {path}: {error.strerror}. Choose another place with --html."
        ) from error


def page(report: Report, plots: Plots) -> str:
    """The whole page as text."""
    return _template().render(
        report=report,
        age=duration(report.ages[0]) if report.ages is not None else "",
        passed=passed_checks(report.statuses),
        plots=plots,
        colours=_COLOURS,
        summed_up=summed_up,
        affected=affected,
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    def clean(value: Any) -> Any:
        """Without secrets and control characters. What a macro of the template made is of another type: markup."""
        return "\n".join(map(escape_controls, scrub(value).split("\n"))) if type(value) is str else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=clean, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    environment.filters["total"] = lambda parts: sum(value for _, value in parts)
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def gather_plots(settings: Settings, report: Report) -> Plots:
    """What the ledgers, the progress files and the checks have to draw."""
    from payout_pipeline.ledger import Ledger

    store = open_store(settings.runtime_dir)
    shapes: Counter[str] = Counter()
    snapshots: list[SnapshotInfo] = []
    for worker in report.worklist.workers:
        ledger = Ledger(store, worker.key)
        snapshot = ledger.finished()
        if snapshot is None:
            continue
        snapshots.append(snapshot)
        for batch in ledger.read(["payout_numerators", "payout_denominator"], ["resolved"]):
            rows = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
            shapes.update(f"{numerators}/{denominator}" for numerators, denominator in rows)
    common = shapes.most_common(_SHAPES)
    rest = shapes.total() - sum(count for _, count in common)
    return Plots(
        shapes=[_bar(name, count) for name, count in [*common, *([("all others", rest)] if rest else [])]],
        coverage=_coverage(report),
        statuses=[(snapshot.partition, tuple(snapshot.counts.items())) for snapshot in snapshots],
        batches=_batches(store, len(report.worklist.workers)),
        waits=_waits(snapshots),
    )


def _bar(label: str, value: int) -> Bar:
    return label, (("", value),)


def _coverage(report: Report) -> list[Bar]:
    """The view before and after its rebuild, beside the table that was there before."""
    verdict = next((s.verdict for s in report.statuses if s.info.name == "coverage_before_after"), None)
    facts = verdict.facts if verdict is not None else {}
    labels = {"before": "view before the rebuild", "after": "view after the rebuild"}
    names = ("market_resolutions_final", "before", "after")
    return [_bar(labels.get(name, name), int(facts[name])) for name in names if isinstance(facts.get(name), int)]


def _batches(store: Store, workers: int) -> list[Span]:
    """The batches of all workers in spans of equal length."""
    timed = [
        (datetime.fromisoformat(line.timestamp.replace("Z", "+00:00")).timestamp(), line)
        for worker in range(1, workers + 1)
        for line in read_progress(store, worker, last=100_000)
    ]
    if not timed:
        return []
    start = min(moment - line.duration_ms / 1000 for moment, line in timed)
    length = max(max(moment for moment, _ in timed) - start, 0.1) / _SPANS
    found: list[Span] = []
    for index in range(_SPANS):
        lines = [line for moment, line in timed if min(int((moment - start) / length), _SPANS - 1) == index]
        mean = sum(line.duration_ms for line in lines) / len(lines) / 1000 if lines else 0.0
        found.append(Span((index + 1) * length, len(lines), mean))
    return found


def _waits(snapshots: Sequence[SnapshotInfo]) -> str:
    """Answers of 429 and waits for the limit of all runs, in words."""
    totals = {
        name: sum(float(snapshot.stats.get(name) or 0) for snapshot in snapshots)
        for name in ("rate_limited", "waits", "waited_seconds")
    }
    return (
        f"{totals['rate_limited']:,.0f} answers of 429, {totals['waits']:,.0f} waits for the rate limit "
        f"of {totals['waited_seconds']:,.1f} s in all"
    )
