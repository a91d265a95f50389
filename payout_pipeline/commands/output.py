"""What all commands share: where they print, and how JSON is written."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

#: A pipe or a file has no width of its own; text is wrapped there as on a common wide terminal.
PIPE_WIDTH = 120


def console() -> Console:
    """Standard output for text: wraps at the terminal's width, never crops."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Write ``value`` as standard JSON, in which NaN and infinite numbers are text, since JSON has no such numbers."""
    click.echo(json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
