"""What the modules say reaches the run's log, once, without secrets, and in detail only with DEBUG."""

from __future__ import annotations

import logging

import pytest

from payout_pipeline.logs import forwarded_to
from payout_pipeline.scrub import register_secret


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


@pytest.fixture
def run_log():
    log = logging.getLogger("a dagster run")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    heard = _Heard()
    log.addHandler(heard)
    yield log, heard.lines
    log.removeHandler(heard)


def test_a_warning_of_a_module_is_heard_once_and_nothing_after_the_run(run_log):
    log, lines = run_log
    with forwarded_to(log, debug=False):
        logging.getLogger("payout_pipeline.goldsky.pacing").warning("held for %d s", 7)
        logging.getLogger("payout_pipeline.warehouse.client").debug("SELECT 1")
    logging.getLogger("payout_pipeline.goldsky.pacing").warning("too late")
    assert lines == [(logging.WARNING, "held for 7 s")]


def test_debug_adds_every_statement(run_log):
    log, lines = run_log
    with forwarded_to(log, debug=True):
        logging.getLogger("payout_pipeline.warehouse.client").debug("SELECT 1")
    assert lines == [(logging.DEBUG, "SELECT 1")]


def test_g1_g2_secrets_and_forged_lines_do_not_get_through(run_log):
    log, lines = run_log
    register_secret("canary-logs-55")
    with forwarded_to(log, debug=False):
        logging.getLogger("payout_pipeline.goldsky.client").info("said: canary-logs-55\nINFO all is well")
    assert lines == [(logging.INFO, "said: ***\\nINFO all is well")]
