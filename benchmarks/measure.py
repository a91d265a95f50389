"""A command, measured from outside: wall and CPU seconds of its whole tree, memory, and both over time.

CPU is user + system of the process and of every descendant, living or reaped. Memory is the largest resident size of
any one process (``VmHWM``) and, where asked for, the largest sum of proportional sizes (PSS: a page that a parent and
its forked children share counts once). Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_EVERY = 0.05
_PSS_EVERY = 0.2


@dataclass
class Measured:
    """What a command cost. ``timeline`` is (``time.time()``, CPU seconds of the tree until then)."""

    wall: float
    cpu: float
    exit_code: int
    started: float
    output: str
    peak_rss: int
    peak_pss: int
    timeline: list[tuple[float, float]] = field(default_factory=list)
    largest: str = ""

    def cpu_before(self, moment: float) -> float:
        """CPU seconds of the tree until ``moment`` (of ``time.time()``)."""
        before = [cpu for at, cpu in self.timeline if at <= moment]
        return before[-1] if before else 0.0


class Running:
    """A started command and the thread that watches its tree."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path, pss: bool) -> None:
        self.log, self.pss = log, pss
        self.peak_rss = self.peak_pss = 0
        self.largest = ""
        self.timeline: list[tuple[float, float]] = []
        with log.open("wb") as output:
            self.started, self._clock = time.time(), time.perf_counter()
            self.process = subprocess.Popen(
                list(command), env=dict(env), cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        next_pss = 0.0
        while not self._ended.wait(_EVERY):
            tree = list(descendants(self.process.pid))
            cpu = 0.0
            for pid in tree:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    cpu += sum(map(int, fields[11:15])) / _TICK
                    rss = int(_status(pid, "VmHWM"))
                    if rss > self.peak_rss:
                        self.peak_rss = rss
                        self.largest = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
            self.timeline.append((time.time(), cpu))
            if self.pss and time.monotonic() >= next_pss:
                self.peak_pss = max(self.peak_pss, sum(_pss(pid) for pid in tree))
                next_pss = time.monotonic() + _PSS_EVERY

    def finish(self, timeout: float) -> Measured:
        """Wait for the end; a command that takes longer than ``timeout`` seconds is killed with its group."""
        deadline = time.monotonic() + timeout
        used = None
        while used is None:
            pid, status, rusage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                used, code = rusage, os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                self.kill()
                deadline = float("inf")
            else:
                time.sleep(0.002)
        wall = time.perf_counter() - self._clock
        self.process.returncode = code
        self._ended.set()
        self._watcher.join()
        cpu = used.ru_utime + used.ru_stime
        self.timeline.append((time.time(), cpu))
        text = self.log.read_text(errors="replace")
        return Measured(wall, cpu, code, self.started, text, self.peak_rss, self.peak_pss, self.timeline, self.largest)

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
    pss: bool = False,
    meanwhile: Callable[[Running], None] | None = None,
) -> Measured:
    """Run ``command`` to its end; ``meanwhile`` is called once it was started."""
    running = Running(command, env, cwd, log, pss)
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


def _status(pid: int, name: str) -> int:
    """A line of ``/proc/PID/status`` in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
