"""A command, measured from outside: wall seconds, exit code, and the largest process of its tree.

Memory is the largest resident size of any one process (``VmHWM``). Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.25  # the kernel keeps the peaks; looking more often takes a tenth of a core from what is measured


@dataclass
class Measured:
    """What a command took. ``peak_rss``: bytes of the largest process of its tree."""

    wall: float
    exit_code: int
    peak_rss: int


class Running:
    """A started command and the thread that watches its tree."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.peak_rss = 0
        with log.open("wb") as output:
            self._clock = time.perf_counter()
            self.process = subprocess.Popen(
                list(command), env=dict(env), cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            for pid in list(descendants(self.process.pid)):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    self.peak_rss = max(self.peak_rss, _peak(pid))

    def finish(self, timeout: float) -> Measured:
        """Wait for the end; a command that takes longer than ``timeout`` seconds is killed with its group."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.wait()
        wall = time.perf_counter() - self._clock
        self._ended.set()
        self._watcher.join()
        return Measured(wall, code, self.peak_rss)

    def kill(self) -> None:
        """``kill -9`` of the command and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in list(descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    timeout: float = 600,
    meanwhile: Callable[[Running], None] | None = None,
) -> Measured:
    """Run ``command`` to its end; ``meanwhile`` is called once it was started."""
    running = Running(command, env, cwd, log)
    try:
        if meanwhile is not None:
            meanwhile(running)
        return running.finish(timeout)
    except BaseException:
        running.kill()  # an interrupted benchmark leaves nothing running
        raise


def descendants(pid: int) -> Iterator[int]:
    """``pid`` and everything below it."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def _peak(pid: int) -> int:
    """The largest resident size that the process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
