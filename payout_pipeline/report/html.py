"""The report as one self-contained HTML page with plots; the page itself is the template ``page.html.j2``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import StorageError
from payout_pipeline.report.causes import affected
from payout_pipeline.report.model import Report
from payout_pipeline.report.summary import cell, passed_checks, summed_up
from payout_pipeline.scrub import clean_lines
from payout_pipeline.words import duration

if TYPE_CHECKING:
    from jinja2 import Template

#: A bar: its label, and the names and numbers that are stacked in it.
Bar = tuple[str, Sequence[tuple[str, int]]]

_COLOURS = {
    "resolved": "#2e7d4f",
    "unresolved": "#8aa6c1",
    "absent": "#c9c2b4",
    "invalid": "#d08a2e",
    "failed": "#b3372f",
}
_COVERAGE = {
    "market_resolutions_final": "market_resolutions_final",
    "before": "view before the rebuild",
    "after": "view after the rebuild",
}


def write_page(path: Path, report: Report) -> None:
    """Write the page to ``path``. Raises StorageError where that cannot be done."""
    text = page(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {path}: {error.strerror}. Choose another place with --html."
        ) from error


def page(report: Report) -> str:
    """The whole page as text."""
    return _template().render(
        report=report,
        age=duration(report.age) if report.age is not None else "",
        passed=passed_checks(report.statuses),
        plots={"Coverage: conditions in the view": _coverage(report), "Ids by status, per worker": _statuses(report)},
        colours=_COLOURS,
        summed_up=summed_up,
        affected=affected,
    )


def _coverage(report: Report) -> list[Bar]:
    """The view before and after its rebuild, beside the table that was there before."""
    facts = next((s.verdict.facts for s in report.statuses if s.info.name == "coverage_before_after" and s.verdict), {})
    return [(label, ((label, int(facts[name])),)) for name, label in _COVERAGE.items() if name in facts]


def _statuses(report: Report) -> list[Bar]:
    """The ids of each worker by status."""
    counted = [s for s in report.statuses if s.info.name == "every_id_accounted_for" and s.verdict and s.verdict.facts]
    return [
        (status.partition or "", tuple((name, int(status.verdict.facts.get(name, 0))) for name in _COLOURS))
        for status in counted
        if status.verdict is not None
    ]


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    def clean(value: Any) -> Any:
        """Without secrets and control characters. What a macro of the template made is of another type: markup."""
        return clean_lines(value) if type(value) is str else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=clean, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = cell
    environment.filters["total"] = lambda parts: sum(value for _, value in parts)
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
