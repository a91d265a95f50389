"""Functions in child processes, side by side: each ends by itself or with its parent, and its output goes to a log file.

Forked on Linux, so that a run costs no start-up of Python and Dagster; spawned where forking is not safe (macOS).
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
INTERRUPTED = 128 + signal.SIGTERM
_POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)
processes: Any = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")


@dataclass(frozen=True)
class Child:
    """A running child; ``receiver`` gets its exit code and what it has to say."""

    name: str
    process: BaseProcess
    receiver: Connection


@dataclass(frozen=True)
class Outcome:
    """How a child ended; ``exit_code`` is INTERRUPTED where it was stopped before it was done."""

    name: str
    exit_code: int
    message: str = ""


def start(logs: Path, name: str, function: Callable[..., None], **arguments: Any) -> Child:
    """Call ``function`` in a child with its output in a file of ``logs``; it fails by raising."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name.replace(' ', '-')}.log"
    receiver, sender = processes.Pipe(duplex=False)
    # Daemonic: where this process fails, its children are ended with it.
    process = processes.Process(target=_child, args=(function, arguments, log, sender, os.getpid()), daemon=True)
    process.start()
    sender.close()
    return Child(name, process, receiver)


def wait(children: Sequence[Child], stop: StopRequest, refresh: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Wait for all children, calling ``refresh`` meanwhile.

    A stop request is passed on as SIGTERM, and as SIGKILL when the grace is over.
    """
    ended: dict[str, Outcome] = {}
    deadline = None
    while running := [child for child in children if child.name not in ended]:
        if stop.requested and deadline is None:
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            for child in running:
                child.process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for child in running:
                child.process.kill()
        refresh()
        ready = wait_for_any([child.receiver for child in running], _POLL_SECONDS)
        ended |= {child.name: _outcome(child, stop) for child in running if child.receiver in ready}
    return [ended[child.name] for child in children]


def _outcome(child: Child, stop: StopRequest) -> Outcome:
    try:
        code, message = child.receiver.recv()
        child.process.join()
    except EOFError:  # it was ended from outside
        child.process.join()
        code, message = 1, f"its process ended with exit code {child.process.exitcode}, without a result"
    return Outcome(child.name, INTERRUPTED) if code and stop.requested else Outcome(child.name, code, message)


def _child(
    function: Callable[..., None], arguments: dict[str, Any], log: Path, sender: Connection, parent: int
) -> None:
    # The answers of a request are many objects that all stay alive: at the default thresholds the garbage collector goes through
    # them and all of Dagster again and again, half a second of the 3.6 s from the first request to the last.
    gc.set_threshold(100_000, 50, 100)
    os.setpgrp()  # Ctrl-C reaches the whole group of the terminal; the parent passes it on once, as SIGTERM
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code, message = 0, ""
    try:
        function(**arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except PayoutPipelineError as fault:
        code, message = fault.exit_code, scrub(str(fault))
    except Exception as unexpected:
        logger.exception("unexpected fault")
        code, message = 1, scrub(f"{type(unexpected).__name__}: {unexpected}")
    sender.send((code, message))


def _end_with_parent(parent: int) -> None:
    """When the parent was killed, ask this process to stop in order, and end it if it does not."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_SECONDS)
    os._exit(128 + signal.SIGKILL)
