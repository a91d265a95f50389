"""Coverage and settled P&L before a backfill, and what of them was accepted since.

*Before* is measured before the first row of a backfill is written, and kept. When all ERROR checks of the view pass, the numbers
after are noted as accepted for that rebuild; the next backfill or rebuild is compared with the last accepted ones, so a loss
stays a loss however often the view is built again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.storage import join, open_store

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings
    from payout_pipeline.warehouse.client import Session

_BEFORE = join("vw_resolutions_truth", "before.json")
_ACCEPTED = join("vw_resolutions_truth", "accepted.json")


@dataclass(frozen=True)
class Measured:
    """Numbers of one moment. A number is None where it could not be measured, and the text beside it says why.

    ``market``, ``external``, ``either``, ``view``: conditions with a vector. ``wallets``: those with settled P&L; ``total`` and
    ``redemptions`` in USD. ``no_view``, ``no_pnl``: the view does not exist, which is no fault before a first backfill.
    """

    measured_at: str
    rebuild: str = ""
    market: int | None = None
    external: int | None = None
    either: int | None = None
    view: int | None = None
    no_view: bool = False
    view_fault: str = ""
    wallets: int | None = None
    total: float | None = None
    redemptions: float | None = None
    no_pnl: bool = False
    pnl_fault: str = ""


def measure(session: Session, settings: Settings, rebuild: str = "") -> Measured:
    """What can be measured now; whatever cannot is said, and stops nothing."""
    from payout_pipeline.verification.numbers import coverage, settled_pnl, view_conditions

    fields: dict[str, Any] = {}

    def attempt(read: Callable[[], dict[str, Any]], fault: str) -> None:
        try:
            fields.update(read())
        except PayoutPipelineError as error:
            fields[fault] = str(error).splitlines()[0]

    attempt(lambda: coverage(session, settings), "view_fault")
    attempt(lambda: view_conditions(session, settings), "view_fault")
    if settings.pnl_view:
        attempt(lambda: settled_pnl(session, settings), "pnl_fault")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
    known: dict[str, Any] = {name: finite[name] for name in Measured.__dataclass_fields__ if name in finite}
    return Measured(**{**known, "measured_at": now, "rebuild": rebuild})


def remember_before(session: Session, settings: Settings) -> None:
    """Measure *before* unless that was done already; called before the first row of a backfill is written."""
    store = open_store(settings.runtime_dir)
    accepted = _read(settings, _ACCEPTED)
    if accepted is not None and store.exists(_BEFORE) and accepted.rebuild:
        # The rebuild before this one was accepted: what was true then is what must not be lost now.
        store.write(_BEFORE, json.dumps({**asdict(accepted), "rebuild": ""}).encode())
        store.delete(_ACCEPTED)
    if not store.exists(_BEFORE):
        before = measure(session, settings)
        if not store.exists(_BEFORE):  # another worker may have been first, and have written rows since
            store.write(_BEFORE, json.dumps(asdict(before)).encode())


def baseline(settings: Settings) -> tuple[Measured | None, Measured | None]:
    """What was measured before the backfill, and what was accepted since (None where nothing was)."""
    return _read(settings, _BEFORE), _read(settings, _ACCEPTED)


def accept(settings: Settings, now: Measured) -> None:
    """Note the numbers of a rebuild whose ERROR checks all passed."""
    open_store(settings.runtime_dir).write(_ACCEPTED, json.dumps(asdict(now)).encode())


def accept_baseline(settings: Settings) -> None:
    """Forget what was before: the numbers of now are those that later ones are compared with."""
    from payout_pipeline.warehouse.client import Warehouse

    with Warehouse.from_settings(settings, "accepting a loss").session("measuring") as session:
        now = measure(session, settings)
    store = open_store(settings.runtime_dir)
    store.write(_BEFORE, json.dumps(asdict(now)).encode())
    store.delete(_ACCEPTED)


def _read(settings: Settings, name: str) -> Measured | None:
    try:
        return Measured(**json.loads(open_store(settings.runtime_dir).read(name)))
    except (FileNotFoundError, ValueError, TypeError):
        return None
