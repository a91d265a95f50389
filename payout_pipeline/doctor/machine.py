"""What the doctor sees on this machine: the runtime directory, and how long a run will take."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from payout_pipeline.doctor.finding import Finding
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.ids.chunks import Worklist
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import Settings
from payout_pipeline.words import counted, duration

#: On disk for each id, generously: ledger, its batches while a run is going, and the embedded database.
_BYTES_PER_ID = 1_500
_BYTES_AT_LEAST = 200_000_000
#: Start of Python and Dagster, loading, the view and its checks, as measured on two cores.
_OVERHEAD_SECONDS = 10.0


def runtime_findings(settings: Settings, worklist: Worklist | None) -> Iterator[Finding]:
    """Whether the runtime directory can be used, and what earlier runs set aside in it as damaged."""
    from payout_pipeline.storage import open_store

    if "://" in settings.runtime_dir:
        try:
            open_store(settings.runtime_dir).names()
        except (PayoutPipelineError, OSError) as fault:
            yield Finding.of_fault("runtime", fault)
            return
        yield Finding("runtime", "ok", f"{scrub(settings.runtime_dir)} can be read (writing is not tried)")
        return
    path = Path(settings.runtime_dir).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is no directory" if not there.is_dir() else "is not writable for this user"
        yield Finding("runtime", "problem", f"{there} {what}", "Change that, or set PAYOUT_RUNTIME_DIR elsewhere.")
        return
    free = shutil.disk_usage(there).free
    need = max(_BYTES_AT_LEAST, (worklist.ids or 0 if worklist else 0) * _BYTES_PER_ID)
    state = "is writable" if path.exists() else "will be made"
    text = f"{path} {state}; {free / 1e9:,.1f} GB free, a run needs up to {need / 1e9:,.1f} GB"
    if free < need:
        yield Finding("runtime", "problem", text, "Free some space, or set PAYOUT_RUNTIME_DIR to a larger disk.")
        return
    yield Finding("runtime", "ok", text)
    if damaged := sorted(item.name for item in path.glob("*.corrupt-*")):
        yield Finding(
            "runtime",
            "warning",
            f"{counted(len(damaged), 'damaged file')} of earlier runs set aside: {', '.join(damaged[:3])}",
            "They are not used any more; delete them when you have looked at them.",
        )


def estimate(settings: Settings, worklist: Worklist | None, latency: float | None) -> Finding:
    """How long a run will take: the rate limit's own floor, or the latency over all connections, and the overhead."""
    if worklist is None:
        return Finding("estimate", "warning", "no estimate without an input file")
    if worklist.ids is None:
        return Finding("estimate", "ok", "no estimate in scan mode: the subgraph decides how many conditions there are")
    requests = estimated_requests(worklist, settings)
    limit = settings.goldsky_rate_limit
    floor = rate_floor(requests, limit.requests, limit.seconds)
    connections = min(len(worklist.workers) * settings.goldsky_concurrent_requests, max(requests, 1))
    waiting = (latency or 0.0) * math.ceil(requests / connections)
    reason = "the rate limit" if floor >= waiting else "the latency"
    seconds = max(floor, waiting) + _OVERHEAD_SECONDS
    return Finding(
        "estimate",
        "ok",
        f"about {duration(timedelta(seconds=seconds))}: {counted(requests, 'request')} at {limit} take at least "
        f"{floor:.0f} s ({reason} decides), and about {_OVERHEAD_SECONDS:.0f} s go to everything else",
    )


def estimated_requests(worklist: Worklist, settings: Settings) -> int:
    """Requests of a run without any fault: one for the schema of each worker, and its batches, several a request.

    Where a worker has few batches, they are spread over its concurrent requests.
    """
    total = 0
    for worker in worklist.workers:
        batches = math.ceil((worker.ids or 0) / settings.goldsky_batch_size)
        spread = max(1, math.ceil(batches / settings.goldsky_concurrent_requests))
        total += 1 + math.ceil(batches / min(settings.goldsky_batches_per_request, spread))
    return total


def rate_floor(requests: int, allowed: int, seconds: float) -> float:
    """Seconds from the first request to the last that a limit of ``allowed`` in any ``seconds`` enforces."""
    return max(0, (requests - 1) // allowed) * seconds
