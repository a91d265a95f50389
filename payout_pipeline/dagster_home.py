"""Where Dagster keeps its instance: ``DAGSTER_HOME``, which is the checkout unless it is set."""

from __future__ import annotations

import os
from pathlib import Path

from payout_pipeline.errors import ConfigurationError, StorageError

#: Marks runs as those of the code location that ``workspace.yaml`` names, so that the UI lists them on its job pages.
REPOSITORY_TAGS = {".dagster/repository": "__repository__@payout_pipeline"}


def ensure_dagster_home() -> Path:
    """Set ``DAGSTER_HOME`` for this process where it is unset, and return it.

    The first directory with a ``dagster.yaml`` among the current one and the checkout of this package, so that the commands and
    the UI started there share one instance; without one ``<runtime directory>/dagster``. Raises ConfigurationError where it is
    set to what is no absolute directory.
    """
    home = os.environ.get("DAGSTER_HOME")
    if home and not (Path(home).is_absolute() and Path(home).is_dir()):
        what = "is not absolute" if not Path(home).is_absolute() else "is no directory"
        raise ConfigurationError(
            f"DAGSTER_HOME is {home!r}, which {what}: set it to the checkout (export DAGSTER_HOME=$PWD), or unset it."
        )
    if not home:
        candidates = (Path.cwd(), Path(__file__).resolve().parent.parent)
        runtime = Path(os.environ.get("PAYOUT_RUNTIME_DIR") or "runtime").absolute() / "dagster"
        chosen = next((place for place in candidates if (place / "dagster.yaml").is_file()), runtime)
        chosen.mkdir(parents=True, exist_ok=True)
        home = os.environ["DAGSTER_HOME"] = str(chosen)
    if not os.access(home, os.W_OK):
        raise StorageError(
            f"cannot write {home}, where Dagster keeps its runs: set DAGSTER_HOME to a directory that can be written"
        )
    return Path(home)
