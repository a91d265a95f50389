"""Functions in child processes: forked, so that a run costs no start-up of Python and Dagster, watched, and ended together.

Where forking is not safe (macOS), children are spawned instead, at the price of their imports.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.scrub import scrub
from payout_pipeline.signals import StopRequest

#: A child that was asked to stop has this long to keep its finished work before it is killed.
STOP_GRACE_SECONDS = 25.0
_POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code, what it has to say, and whether it has materialized what it was to make."""

    name: str
    exit_code: int
    message: str = ""
    materialized: bool = False

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.exit_code == 0


@dataclass
class _Child:
    name: str
    process: BaseProcess
    receiver: Connection

    def signal(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def outcome(self) -> Outcome:
        """How it ended; waits for its end."""
        sent: Outcome | None = None
        with contextlib.suppress(EOFError):
            sent = self.receiver.recv() if self.receiver.poll() else None
        self.process.join()
        code = self.process.exitcode if self.process.exitcode is not None else 1
        if sent is not None:
            return replace(sent, name=self.name)
        if code < 0:
            return Outcome(self.name, 128 - code, f"its process was ended by {signal.Signals(-code).name}")
        return Outcome(self.name, code or 1, f"its process ended with exit code {code} without a result")


class WorkerPool:
    """Children that run side by side. Leaving the context leaves none of them alive; their output goes to ``logs``."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._logs.mkdir(parents=True, exist_ok=True)
        self._context = fork_context()
        self._children: list[_Child] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
            child.process.join()

    def run(
        self,
        jobs: Iterable[tuple[str, Callable[..., Outcome], dict[str, Any]]],
        stop: StopRequest,
        refresh: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Run each (name, function, arguments) in a child of its own and wait for all; ``refresh`` is called meanwhile.

        A stop request is passed on as SIGTERM, and as SIGKILL when the grace is over.
        """
        children = [self._start(*job) for job in jobs]
        asked: float | None = None
        while living := [child.process.sentinel for child in children if child.process.is_alive()]:
            if stop.requested and asked is None:
                asked = time.monotonic()
                for child in children:
                    child.signal(signal.SIGTERM)
            if asked is not None and time.monotonic() - asked > STOP_GRACE_SECONDS:
                for child in children:
                    child.signal(signal.SIGKILL)
            refresh()
            wait_for_any(living, _POLL_SECONDS)
        return [child.outcome() for child in children]

    def _start(self, name: str, function: Callable[..., Outcome], arguments: dict[str, Any]) -> _Child:
        receiver, sender = self._context.Pipe(duplex=False)
        log = self._logs / f"{name.replace(' ', '-')}.log"
        process = self._context.Process(
            target=_child, args=(name, function, arguments, log, sender, os.getpid()), name=name
        )
        process.start()
        sender.close()
        self._children.append(_Child(name, process, receiver))
        return self._children[-1]


def fork_context() -> Any:
    """The cheapest safe way to start a child: forked on Linux, spawned elsewhere."""
    from payout_pipeline.warehouse.embedded import fork_is_safe

    return multiprocessing.get_context("fork" if sys.platform.startswith("linux") and fork_is_safe() else "spawn")


def _child(
    name: str, function: Callable[..., Outcome], arguments: dict[str, Any], log: Path, sender: Connection, parent: int
) -> None:
    """Run ``function`` and end the process; its output goes to ``log``, its outcome to the parent."""
    os.setpgrp()  # Ctrl-C reaches the whole group of the terminal; the parent passes it on once, as SIGTERM
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        outcome = function(**arguments)
    except KeyboardInterrupt:
        outcome = Outcome(name, 143, "interrupted; its finished batches are kept and not asked again")
    except PayoutPipelineError as fault:
        outcome = Outcome(name, fault.exit_code, scrub(str(fault)))
    except Exception as unexpected:
        logger.exception("unexpected fault of %s", name)
        outcome = Outcome(name, 1, scrub(f"{type(unexpected).__name__}: {unexpected}"))
    sender.send(outcome)
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    _close_engine()
    os._exit(outcome.exit_code)  # no exit handlers of the parent's


def _end_with_parent(parent: int) -> None:
    """When the parent was killed, ask this process to stop in order, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_SECONDS)
    os._exit(128 + signal.SIGKILL)


def _close_engine() -> None:
    from payout_pipeline.warehouse.embedded import close_engine

    close_engine()


def all_ok(outcomes: Sequence[Outcome]) -> bool:
    """Whether every child succeeded."""
    return all(outcome.ok for outcome in outcomes)
