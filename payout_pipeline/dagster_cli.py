"""``dagster`` in this environment: Dagster's own command, which knows where our definitions and our instance are.

Dagster's ``asset`` commands want ``-m payout_pipeline.definitions`` each time, and work on a temporary instance that
nobody sees where ``DAGSTER_HOME`` is not set. Both have one sensible answer here, so they are the defaults; whatever
the user gives, on the command line or in the environment, wins. Everything else is passed on untouched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_POINTERS = ("-m", "--module-name", "-f", "--python-file", "--package-name", "--autoload-defs-module-name")
_VARIABLES = ("DAGSTER_MODULE_NAME", "DAGSTER_PYTHON_FILE", "DAGSTER_PACKAGE_NAME")


def names_definitions(arguments: Sequence[str]) -> bool:
    """Whether the command line or the environment says where the definitions are."""
    given = any(argument == flag or argument.startswith(f"{flag}=") for argument in arguments for flag in _POINTERS)
    return given or any(os.environ.get(variable) for variable in _VARIABLES)


def main() -> None:
    """Entry point of the script ``dagster``."""
    from dagster._cli import main as dagster_main

    if sys.argv[1:2] == ["asset"]:
        from payout_pipeline.cli import load_dotenv_file
        from payout_pipeline.instance import ensure_dagster_home

        load_dotenv_file()
        ensure_dagster_home()
        if not names_definitions(sys.argv[2:]):
            os.environ["DAGSTER_MODULE_NAME"] = "payout_pipeline.definitions"
    dagster_main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
