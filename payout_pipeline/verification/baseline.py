"""Coverage and settled P&L before a backfill, and what of them was accepted since.

*Before* is measured before the first row of a backfill is written, and kept. When all ERROR checks of the view pass, the numbers
after are noted as accepted for that rebuild; the next backfill or rebuild is compared with the last accepted ones, so a loss
stays a loss however often the view is built again. Each database and view has numbers of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.storage import join, open_store

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings
    from payout_pipeline.warehouse.client import Session

_BEFORE, _ACCEPTED = "before", "accepted"


@dataclass(frozen=True)
class Measured:
    """Numbers of one moment. A number is None where it could not be measured, and the text beside it says why.

    ``market``, ``external``, ``either``, ``view``: conditions with a vector. ``wallets``: those with settled P&L of
    ``pnl_view``; ``total`` and ``redemptions`` in USD. ``no_view``, ``no_pnl``: the view does not exist, which is no fault
    before a first backfill.
    """

    measured_at: str
    pnl_view: str = ""
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


def measure(session: Session, settings: Settings) -> Measured:
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
    return Measured(**{**known, "measured_at": now, "pnl_view": settings.pnl_view})


def remember_before(session: Session, settings: Settings) -> None:
    """Measure *before* unless that was done already; called before the first row of a backfill is written."""
    before, accepted = known = baseline(settings)
    if before is not None and accepted is None:
        return
    now = measure(session, settings)
    if baseline(settings) != known:  # another worker was first, and may have written rows since
        return
    if accepted is not None:
        # What was true after the last accepted rebuild must not be lost now, nor what its sources have gained since. The view
        # and the P&L of this moment do not count: they may be the broken ones that the rebuild heals.
        now = replace(accepted, view=max(accepted.view or 0, now.either or 0))
    _write(settings, _BEFORE, now)
    open_store(settings.runtime_dir).delete(_file(settings, _ACCEPTED))


def baseline(settings: Settings) -> tuple[Measured | None, Measured | None]:
    """What was measured before the backfill, and what was accepted since (None where nothing was)."""
    return _read(settings, _BEFORE), _read(settings, _ACCEPTED)


def accept(settings: Settings, now: Measured) -> None:
    """Note the numbers of a rebuild whose ERROR checks all passed."""
    _write(settings, _ACCEPTED, now)


def accept_baseline(settings: Settings) -> None:
    """Forget what was before: the numbers of now are those that later ones are compared with."""
    from payout_pipeline.warehouse.client import Warehouse

    with Warehouse(settings, "accepting a loss").session("measuring") as session:
        now = measure(session, settings)
    _write(settings, _BEFORE, now)
    open_store(settings.runtime_dir).delete(_file(settings, _ACCEPTED))


def _file(settings: Settings, name: str) -> str:
    """The file of these numbers for the database and the view that the settings name."""
    place = f"{settings.clickhouse_host or 'embedded'} {settings.clickhouse_port or ''} {settings.truth_view}"
    return join("vw_resolutions_truth", f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}.json")


def _write(settings: Settings, name: str, measured: Measured) -> None:
    open_store(settings.runtime_dir).write(_file(settings, name), json.dumps(asdict(measured)).encode())


def _read(settings: Settings, name: str) -> Measured | None:
    try:
        found = Measured(**json.loads(open_store(settings.runtime_dir).read(_file(settings, name))))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if found.pnl_view != settings.pnl_view:
        return replace(found, wallets=None, total=None, redemptions=None, pnl_fault="another PAYOUT_PNL_VIEW")
    return found
