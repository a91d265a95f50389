"""The success report as one self-contained HTML page: no script, no font, no picture from anywhere else.

Everything that comes from data is escaped where it enters the page. The plots are plain SVG.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from payout_pipeline.checks.history import CheckStatus, State
from payout_pipeline.errors import StorageError
from payout_pipeline.ledger.checkpoint import read_progress
from payout_pipeline.report import Report
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import Settings
from payout_pipeline.storage import Store, open_store
from payout_pipeline.verdict import Severity, Table

if TYPE_CHECKING:
    from payout_pipeline.ledger import SnapshotInfo

_SHAPES = 12
_WIDTH = 720
_ROW = 26
_LABEL = 190
_LABEL_CHARACTERS = 24
_COLOURS = {
    "resolved": "#2e7d4f",
    "unresolved": "#8aa6c1",
    "absent": "#c9c2b4",
    "invalid": "#d08a2e",
    "failed": "#b3372f",
}
_PALETTE = ("#2e7d4f", "#8aa6c1", "#c9c2b4", "#d08a2e", "#b3372f", "#6b5b95")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #667; --paper: #fff; --line: #d8dce2; --soft: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa3ad; --paper: #15181c; --line: #343a42; --soft: #1d2126; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.headline { padding: .8rem 1rem; border-left: .4rem solid; background: var(--soft); font-weight: 600; }
.dim, figcaption { color: var(--dim); } .check { border-left: .3rem solid; padding: .1rem .9rem; margin: .8rem 0; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; } caption { text-align: left; font-weight: 600; }
th, td { border: 1px solid var(--line); padding: .2rem .55rem; text-align: left; overflow-wrap: break-word; }
th { background: var(--soft); } td.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; color: var(--dim); } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.good { border-color: #2e7d4f; } .bad { border-color: #b3372f; } .warn { border-color: #d08a2e; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } .wrap { overflow-x: auto; }
"""


@dataclass(frozen=True)
class RequestPoint:
    """One finished batch: when (seconds since the first one began), its requests, and how long it took in seconds."""

    seconds: float
    requests: int
    duration: float


@dataclass(frozen=True)
class Plots:
    """What the page draws; a plot without data is left out."""

    shapes: Sequence[tuple[str, int]] = ()
    coverage: Sequence[tuple[str, int]] = ()
    statuses: Sequence[tuple[str, Mapping[str, int]]] = ()
    requests: Sequence[RequestPoint] = ()
    waits: str = ""


def gather_plots(settings: Settings, report: Report) -> Plots:
    """What the ledgers, the progress files and the checks have to draw."""
    from payout_pipeline.ledger import Ledger

    store = open_store(settings.runtime_dir)
    shapes: Counter[str] = Counter()
    snapshots: list[SnapshotInfo] = []
    for worker in report.worklist.workers:
        ledger = Ledger(store, worker.key)
        snapshot = ledger.finished()
        if snapshot is not None:
            snapshots.append(snapshot)
            for batch in ledger.read(["payout_numerators", "payout_denominator"], ["resolved"]):
                rows = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
                shapes.update(f"{numerators}/{denominator}" for numerators, denominator in rows)
    facts = {(s.info.name, s.partition): s.verdict.facts for s in report.statuses if s.verdict is not None}
    coverage = facts.get(("coverage_before_after", None), {})
    common = shapes.most_common(_SHAPES)
    rest = sum(shapes.values()) - sum(count for _, count in common)
    return Plots(
        shapes=[*common, *([("all others", rest)] if rest else [])],
        coverage=[
            (shown, int(coverage[label]))
            for label, shown in (
                ("market_resolutions_final", "market_resolutions_final"),
                ("before", "view before the rebuild"),
                ("after", "view after the rebuild"),
            )
            if label in coverage
        ],
        statuses=[(snapshot.partition, snapshot.counts) for snapshot in snapshots],
        requests=_request_points(store, len(report.worklist.workers)),
        waits=_waits(snapshots),
    )


def _request_points(store: Store, workers: int) -> list[RequestPoint]:
    """The batches of all workers on one time axis."""
    timed = [
        (datetime.fromisoformat(line.timestamp.replace("Z", "+00:00")).timestamp(), line)
        for worker in range(1, workers + 1)
        for line in read_progress(store, worker, last=100_000)
    ]
    if not timed:
        return []
    start = min(moment - line.duration_ms / 1000 for moment, line in timed)
    return [RequestPoint(moment - start, line.attempts, line.duration_ms / 1000) for moment, line in timed]


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


def write_page(path: Path, settings: Settings, report: Report) -> None:
    """Write the page to ``path``. Raises StorageError where that cannot be done."""
    text = page(report, gather_plots(settings, report))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {path}: {error.strerror}. Choose another place with --html."
        ) from error


def page(report: Report, plots: Plots) -> str:
    """The whole page."""
    good = report.exit_code == 0
    body = [
        "<h1>Success report of the payout backfill</h1>",
        f'<p class="headline {"good" if good else "bad"}">{_text(report.headline)}</p>',
        _facts(report),
    ]
    trouble = [status for status in report.worst_first if status.state is not State.PASSED]
    if trouble:
        body.append("<h2>What needs attention</h2>")
        body += [_check(status, open_=True) for status in trouble]
    drawings = [
        _figure("Payout shapes: conditions by vector", _bars(plots.shapes)),
        _figure("Coverage: conditions in the view", _bars(plots.coverage)),
        _figure("Ids by status, per worker", _stacked(plots.statuses)),
        _figure(f"Requests over time, and waits: {plots.waits}", _timeline(plots.requests)),
    ]
    if any(drawings):
        body.append("<h2>Plots</h2>")
        body += drawings
    passed = [status for status in report.statuses if status.state is State.PASSED]
    if passed:
        body.append("<h2>Passed</h2>")
        body.append(_passed(passed))
        body += [_check(status, open_=False) for status in passed if status.partition is None]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Payout backfill: success report</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return escape(scrub(str(value)), quote=True)


def _facts(report: Report) -> str:
    ids = "all resolved conditions" if report.worklist.ids is None else f"{report.worklist.ids:,} ids"
    made = report.made_at.strftime("%Y-%m-%d %H:%M UTC")
    return (
        f'<p class="dim">{_text(report.worklist.source)}: {_text(ids)}, {len(report.worklist.workers)} worker(s) · '
        f"table {_text(report.target_table)} · view {_text(report.truth_view)} · "
        f"{_text(report.endpoint)} · made {made}</p>"
    )


def _check(status: CheckStatus, *, open_: bool) -> str:
    colour = "good" if status.state is State.PASSED else "warn" if status.info.severity is Severity.WARN else "bad"
    where = status.partition or status.info.asset
    severity = "" if status.state is State.PASSED else f" · {_text(status.info.severity.value)}"
    parts = [
        f'<div class="check {colour}"><p><b>{_text(status.info.name)}</b> '
        f'<span class="dim">{_text(where)} · {_text(status.state.value)}{severity}</span>'
        f"<br>{_text(status.sentence)}</p>"
    ]
    verdict = status.verdict
    if verdict is not None:
        if not verdict.passed:
            parts.append(f"<p>expected <b>{_text(verdict.expected)}</b>, actual <b>{_text(verdict.actual)}</b></p>")
        if verdict.repair and open_:
            parts.append(f"<p><b>What to do:</b> {_text(verdict.repair)}</p>")
        parts += [_table(table) for table in verdict.tables]
        if verdict.sql:
            parts.append(f"<details><summary>SQL</summary><pre>{_text(verdict.sql)}</pre></details>")
    parts.append("</div>")
    return "".join(parts)


def _passed(statuses: Sequence[CheckStatus]) -> str:
    """What passed per worker, a line each."""
    rows = tuple((s.info.name, s.partition, s.sentence) for s in statuses if s.partition is not None)
    return _table(Table("per worker", ("check", "worker", "what it found"), rows)) if rows else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="wrap"><table><caption>{_text(table.title)}</caption><tr>{head}</tr>{rows}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    if isinstance(value, float):
        return f'<td class="n">{value:,.2f}</td>'
    return f"<td>{_text(value)}</td>"


# ------------------------------------------------------------------------------------------------------------ plots


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{_text(caption)}</figcaption>{svg}</figure>" if svg else ""


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" role="img" aria-label="{_text(label)}">'
        + "".join(parts)
        + "</svg>"
    )


def _label(x: float, y: float, text: object, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_text(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:g}" fill="{colour}">'
        f"<title>{_text(title)}</title></rect>"
    )


def _bars(data: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars, one a (label, value)."""
    if not data:
        return ""
    room = _WIDTH - _LABEL - 110
    largest = max(max(value for _, value in data), 1)
    parts: list[str] = []
    for row, (name, value) in enumerate(data):
        y = row * _ROW
        shown = name if len(name) <= _LABEL_CHARACTERS else f"{name[: _LABEL_CHARACTERS - 1]}…"
        parts.append(_label(_LABEL - 8, y + 17, shown, "end"))
        parts.append(_rect(_LABEL, y + 4, room * value / largest, _ROW - 8, _PALETTE[0], f"{name}: {value:,}"))
        parts.append(_label(_LABEL + room * value / largest + 6, y + 17, f"{value:,}"))
    return _svg(len(data) * _ROW, parts, "; ".join(f"{name}: {value:,}" for name, value in data))


def _stacked(data: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """One bar a worker, a colour a status."""
    if not data:
        return ""
    names = list(dict.fromkeys(name for _, values in data for name in values))
    largest = max(max(sum(values.values()) for _, values in data), 1)
    room = _WIDTH - _LABEL - 90
    parts: list[str] = []
    x = float(_LABEL)
    for position, name in enumerate(names):
        parts.append(_rect(x, 6, 12, 12, _colour(name, position), name))
        parts.append(_label(x + 16, 16, name))
        x += 34 + 7 * len(name)
    for row, (worker, values) in enumerate(data, 1):
        y, x = row * _ROW, float(_LABEL)
        parts.append(_label(_LABEL - 8, y + 17, worker, "end"))
        for position, name in enumerate(names):
            value = values.get(name, 0)
            parts.append(
                _rect(x, y + 4, room * value / largest, _ROW - 8, _colour(name, position), f"{name}: {value:,}")
            )
            x += room * value / largest
        parts.append(_label(x + 6, y + 17, f"{sum(values.values()):,}"))
    described = "; ".join(f"{worker}: " + ", ".join(f"{n} {v:,}" for n, v in values.items()) for worker, values in data)
    return _svg((len(data) + 1) * _ROW, parts, described)


def _colour(name: str, position: int) -> str:
    return _COLOURS.get(name, _PALETTE[position % len(_PALETTE)])


def _timeline(points: Sequence[RequestPoint]) -> str:
    """Requests in up to 60 equal spans of time (bars), and the mean time that a batch took (line)."""
    if not points:
        return ""
    end = max(max(point.seconds for point in points), 1.0)
    spans = min(60, max(1, len(points)))
    requests = [0] * spans
    durations: list[list[float]] = [[] for _ in range(spans)]
    for point in points:
        span = min(spans - 1, int(point.seconds / end * spans))
        requests[span] += point.requests
        durations[span].append(point.duration)
    height, top, left, right = 150.0, 24.0, 50.0, 60.0
    most, longest = max(*requests, 1), max(max(point.duration for point in points), 0.1)
    width = (_WIDTH - left - right) / spans
    parts = [_label(left - 6, top + 6, most, "end"), _label(left - 6, top + height, 0, "end")]
    line: list[str] = []
    for span in range(spans):
        tall = height * requests[span] / most
        mean = sum(durations[span]) / len(durations[span]) if durations[span] else None
        took = f", a batch took {mean:.1f} s" if mean is not None else ""
        title = f"from {end * span / spans:.0f} s: {requests[span]} requests{took}"
        parts.append(_rect(left + span * width, top + height - tall, width - 1, tall, _PALETTE[1], title))
        if mean is not None:
            line.append(f"{left + (span + 0.5) * width:.1f},{top + height - height * mean / longest:.1f}")
    total = sum(requests)
    parts += [
        f'<polyline points="{" ".join(line)}" fill="none" stroke="{_COLOURS["invalid"]}" stroke-width="2"/>',
        f'<line x1="{left:g}" x2="{_WIDTH - right:g}" y1="{top + height:g}" y2="{top + height:g}" stroke="currentColor"/>',
        _label(_WIDTH - right + 6, top + 6, f"{longest:.1f} s"),
        _label(left, top + height + 18, "0 s"),
        _label(_WIDTH - right, top + height + 18, f"{end:,.0f} s", "end"),
        _label(left, 12, f"{total:,} requests (bars); time that a batch took, waits included (line)"),
    ]
    return _svg(top + height + 24, parts, f"{total:,} requests in {end:,.0f} s")
