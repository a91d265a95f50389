"""Commands of the pipeline as processes of their own, with deadlines: none of them may outlive its test."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent.parent
_START_SECONDS = 90.0


class OverdueError(AssertionError):
    """A process was still running at its deadline (and has been killed)."""


@dataclass
class Running:
    """One command. ``code`` as ``subprocess`` has it (negative: the signal), once it has ended."""

    pid: int
    out: Path
    started: float = field(default_factory=time.monotonic)
    code: int | None = None
    seconds: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> int:
        """The exit code; after ``seconds`` the whole session is killed and OverdueError raised."""
        if not self._ended.wait(seconds):
            self.kill_all()
            self._ended.wait(20)
            raise OverdueError(f"still running after {seconds:g} s: {self.text()[-2000:]}")
        assert self.code is not None
        return self.code

    def ended(self, within: float = 0.0) -> bool:
        """Whether it has ended, waiting for at most ``within`` seconds."""
        return self._ended.wait(within)

    def text(self) -> str:
        """What it has printed."""
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def send(self, number: int) -> None:
        """To the process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def members(self) -> list[int]:
        """The living processes of its session, itself and its workers."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return sorted(found)

    def children(self) -> list[int]:
        """The living processes of its session without itself."""
        return [pid for pid in self.members() if pid != self.pid]

    def kill_all(self, number: int = signal.SIGKILL) -> None:
        """The whole session at once, as a power failure would."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def gone(self, within: float) -> bool:
        """Whether nothing of the session is left within ``within`` seconds."""
        deadline = time.monotonic() + within
        while self.members():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def finish(self, code: int) -> None:
        """Called by the launcher when the process has ended."""
        self.code, self.seconds = code, time.monotonic() - self.started
        self._ended.set()


class Nursery:
    """Starts commands. ``with Nursery() as nursery: nursery.start(["backfill"], env, cwd, out)``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._running: dict[int, Running] = {}
        self._pids: queue.Queue[int] = queue.Queue()
        self._early: dict[int, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Nursery:
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PAYOUT_", "GOLDSKY_", "CLICKHOUSE_"))
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "payout_pipeline_tests.chaos.nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env,
        )  # fmt: skip
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        self._pids.get(timeout=_START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in list(self._running.values()):
            if running.code is None:
                running.kill_all()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, out: Path, *, err: Path | None = None,
        cold: bool = False,
    ) -> Running:  # fmt: skip
        """Start ``payout-pipeline argv``; ``cold`` executes the console script anew instead of forking.

        Both outputs go to ``out``, unless there is a file for errors.
        """
        if cold:
            return self._start_cold(argv, env, cwd, out)
        assert self._process is not None
        assert self._process.stdin is not None
        order = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "out": str(out), "err": str(err or out)}
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            pid = self._pids.get(timeout=_START_SECONDS)
            running = self._running[pid] = Running(pid, out)
            if pid in self._early:
                running.finish(self._early.pop(pid))
        return running

    def _start_cold(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, out: Path) -> Running:
        with out.open("ab") as file:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("payout-pipeline")), *argv],
                env=dict(env), cwd=cwd, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        running = Running(process.pid, out)
        threading.Thread(target=lambda: running.finish(process.wait()), daemon=True).start()
        self._running[-process.pid] = running
        return running

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            message = json.loads(line)
            if "code" not in message:
                self._pids.put(message["pid"])
                continue
            pid, code = message["pid"], message["code"]
            running = self._running.get(pid)
            if running is None or running.code is not None:
                self._early[pid] = code
            else:
                running.finish(code)
