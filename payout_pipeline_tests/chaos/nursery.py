"""Starts ``payout-pipeline`` commands as processes from one that has its imports done: seconds saved at every start.

Reads one JSON object a line (``argv``, ``env``, ``cwd``, ``out``, ``err``) and forks a child for each, which becomes the
leader of a session of its own and runs the command exactly as the console script does. Says ``{"pid": …}`` at the start and
``{"pid": …, "code": …}`` at the end of each child. Nothing of the pipeline's definitions or of the embedded engine is
loaded here: both belong to the child, after its environment is set.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any


def _preload() -> None:
    import aiohttp  # noqa: F401
    import clickhouse_connect  # noqa: F401
    import dagster  # noqa: F401
    import gql  # noqa: F401
    import orjson  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import rich.console  # noqa: F401

    import payout_pipeline.fetch
    import payout_pipeline.ingest
    import payout_pipeline.truth  # noqa: F401


def _become(order: dict[str, Any]) -> None:
    """In the child: the command, never to return."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    err = os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, err)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = ["payout-pipeline", *order["argv"]]
    code = 1
    try:
        from payout_pipeline.cli import main

        main(order["argv"], prog_name="payout-pipeline")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


def _say(message: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    _preload()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _say({"pid": os.getpid()})
    buffered = b""
    while True:
        ready, _, _ = select.select([0, read_end], [], [], 1.0)
        if read_end in ready:
            os.read(read_end, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            _say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})
        if 0 in ready:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                return
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(read_end)
                    os.close(write_end)
                    _become(order)
                _say({"pid": pid})


if __name__ == "__main__":
    main()
