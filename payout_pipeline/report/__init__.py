"""The success report: the latest status of every check, on one screen. It shows; it decides nothing.

Everything in it was computed by the checks and stored by Dagster, so the report, the UI and the exit code cannot
disagree. What it knows is in ``model``; failures with one cause are put together in ``causes``; ``text``, ``document``
(JSON) and ``html`` are its three forms.
"""

from payout_pipeline.report.model import Report, build_report, read_report
from payout_pipeline.report.text import render

__all__ = ["Report", "build_report", "read_report", "render"]
