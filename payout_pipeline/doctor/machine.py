"""What the doctor sees on this machine: the runtime directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from payout_pipeline.doctor.finding import Finding
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.ids.chunks import Worklist
from payout_pipeline.scrub import scrub
from payout_pipeline.settings import Settings
from payout_pipeline.words import counted

#: On disk for each id, generously: ledger, its batches while a run is going, and the embedded database.
_BYTES_PER_ID = 1_500
_BYTES_AT_LEAST = 200_000_000


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
