"""Forwards the package's log records to a Dagster run's log or a console, redacted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from payout_pipeline.scrub import escape_controls, scrub

_ROOT = "payout_pipeline"


class _Forwarder(logging.Handler):
    """Hands records on to another logger, without secrets and without characters that could forge a line."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.log(record.levelno, escape_controls(scrub(record.getMessage())))
        except Exception:  # noqa: BLE001 - as every handler: a line that cannot be logged must not end a run
            self.handleError(record)


@contextmanager
def forwarded_to(log: logging.Logger, *, debug: bool) -> Iterator[None]:
    """While the context lasts, ``log`` hears everything that the pipeline's modules say.

    ``debug`` (the variable ``DEBUG``) adds each request and each statement.
    """
    logger = logging.getLogger(_ROOT)
    handler = _Forwarder(log)
    former = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False  # said once, not again by the root logger
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former[0])
        logger.propagate = former[1]
