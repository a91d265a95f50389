"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from payout_pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings


def parse_workers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """The numbers of ``--workers 1,3`` in order, each once; none where the option is not given."""
    if value is None:
        return ()
    try:
        return tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        raise click.BadParameter(f"expected worker numbers such as 1,3, got {value!r}") from None


def check_workers(settings: Settings, workers: Sequence[int]) -> None:
    """Raise ConfigurationError where a number is none of the settings' workers."""
    for worker in workers:
        if not 1 <= worker <= settings.workers:
            raise ConfigurationError(
                f"--workers names worker {worker}, but PAYOUT_WORKERS is {settings.workers}: use 1 to {settings.workers}."
            )
