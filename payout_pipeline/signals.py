"""SIGINT and SIGTERM while requests are in flight: the first one stops in order, the second one at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Whether the run was asked to end, and by which signal. Safe to read from any thread."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def cancels_this_task(self) -> None:
        """Cancel the running task as soon as the stop is requested."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.requested and self._task is not None:
            self._task.cancel()

    def request(self, signal_number: int) -> None:
        """Ask for the stop; the first caller's signal is kept."""
        if self.signal_number is None:
            self.signal_number = signal_number
        if self._loop is not None and self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM as a :class:`StopRequest` and restore the handlers afterwards.

    The second signal ends the process at once with 128 + its number. Outside the main thread, where Python cannot set
    handlers, the request stays unset.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            os._exit(128 + number)
        stop.request(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
