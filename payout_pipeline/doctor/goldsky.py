"""What the doctor asks Goldsky: the schema and the head, and a sample of the ids at the block that a run would pin."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from payout_pipeline.doctor.finding import Finding, Level
from payout_pipeline.errors import PayoutPipelineError
from payout_pipeline.scrub import excerpt
from payout_pipeline.verification.goldsky_payouts import FRESH_WITHIN, MOST_ABSENT
from payout_pipeline.words import counted, duration, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payout_pipeline.goldsky.client import GoldskyClient
    from payout_pipeline.ids.id_list import IdList
    from payout_pipeline.settings import Settings

#: Schema and head; the sample; once more what an answer left out; once more where the block is not kept.
MAX_REQUESTS = 4
SAMPLE = 1_000
#: Shorter than the time-outs of a run, since a person waits for the answer.
_ASK_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 2.0
_RETRY = "Try again; if it stays, look at the endpoint's own page at its provider."


def ask_goldsky(settings: Settings, ids: IdList | None, now: datetime) -> list[Finding]:
    """Ask the subgraph for its schema, its head and a sample of the ids."""
    visit = _Visit(settings, now)
    try:
        asyncio.run(visit.ask(_sample(settings, ids)))
    except PayoutPipelineError as fault:
        otherwise = "Check GOLDSKY_ENDPOINT, GOLDSKY_API_TOKEN and the network."
        visit.findings.append(Finding.of_fault("goldsky", fault, otherwise))
    return visit.findings


def _sample(settings: Settings, ids: IdList | None) -> list[str]:
    """Ids spread evenly over the whole list, as many as one query may carry; none in scan mode."""
    if ids is None or not ids.count:
        return []
    size = min(SAMPLE, settings.goldsky_batch_size, ids.count)
    positions = [index * ids.count // size for index in range(size)]
    return [ids.ids(position, position + 1)[0] for position in positions]


class _WouldWaitError(Exception):
    """The rate limit has no place now; the text is the reason."""


@dataclass
class _Visit:
    """One visit to the subgraph, without retries and with little patience."""

    settings: Settings
    now: datetime
    findings: list[Finding] = field(default_factory=list)

    async def ask(self, sample: Sequence[str]) -> None:
        from payout_pipeline.goldsky.client import GoldskyClient

        def on_wait(reason: str, seconds: float) -> None:
            # A second try after a 429, or a wait behind a run that uses the whole limit, is not for the doctor.
            if reason != "window" or seconds > _LONGEST_WAIT_SECONDS:
                raise _WouldWaitError(reason)

        with tempfile.TemporaryDirectory(prefix="payout-doctor-") as scratch:
            cautious = self._cautious(scratch)
            async with GoldskyClient.from_settings(cautious, on_wait=on_wait) as client:
                try:
                    await self._probe(client)
                    if sample:
                        await self._ask_sample(client, list(sample))
                except _WouldWaitError as wait:
                    self._stopped(str(wait))

    def _cautious(self, scratch: str) -> Settings:
        from payout_pipeline.goldsky.pacing import is_kept

        settings = self.settings
        shared = is_kept(runtime_dir=settings.runtime_dir, limiter_url=settings.limiter_url)
        return settings.model_copy(
            update={
                "goldsky_max_retries": 0,
                "goldsky_timeout_seconds": min(settings.goldsky_timeout_seconds, _ASK_SECONDS),
                "goldsky_outage_budget_seconds": 0.0,
                # While runs share a budget, these requests belong into it; otherwise nothing is left behind.
                "runtime_dir": settings.runtime_dir if shared else scratch,
            }
        )

    async def _probe(self, client: GoldskyClient) -> None:
        started = time.monotonic()
        info = await client.probe()
        latency = time.monotonic() - started
        fields = "payouts" if info.schema_kind == "payouts" else "payoutNumerators and payoutDenominator"
        self._say("ok", f"{self._address} answers in {latency:.2f} s; conditions have {fields}")
        self.findings.append(_head(info.head_number, info.head_timestamp, info.has_indexing_errors, self.now))

    async def _ask_sample(self, client: GoldskyClient, sample: list[str]) -> None:
        from payout_pipeline.goldsky.client import SnapshotGoneError

        margin = self.settings.goldsky_block_margin
        info = client.info
        assert info is not None  # noqa: S101 - _probe() has set it
        pin = client.make_pin(info, margin)
        try:
            answer = await client.fetch_batch(sample, pin)
            self._say("ok", f"block {pin.block_number:,} ({margin} behind the head) is kept")
        except SnapshotGoneError as gone:
            if not gone.history_not_kept:
                raise
            pin = client.make_pin(info, margin, history_kept=False)
            answer = await client.fetch_batch(sample, pin)
            self._say(
                "warning",
                f"block {pin.block_number:,} is not kept: a run asks at the head instead (no single snapshot)",
            )
        if answer.failed:
            self._say("problem", f"a query failed: {next(iter(answer.failed.values()))}", _RETRY)
            return
        self.findings.append(_known(len(sample), len(answer.absent)))

    def _stopped(self, reason: str) -> None:
        if reason == "window":
            text, repair = "a running backfill uses the whole rate limit; not asked", "Ask again when it is done."
        else:
            text = excerpt(reason)
            repair = "Wait until that is over; if it stays, lower GOLDSKY_RATE_LIMIT or ask for a higher limit."
        self._say("warning", f"{self._address}: {text}", repair)

    def _say(self, level: Level, text: str, repair: str = "") -> None:
        self.findings.append(Finding("goldsky", level, text, repair))

    @property
    def _address(self) -> str:
        return excerpt(self.settings.goldsky_endpoint.split("?", 1)[0], 160)


def _known(asked: int, absent: int) -> Finding:
    text = (
        f"{asked - absent:,} of {counted(asked, 'id')} spread over the list are known there"
        if asked > 1
        else f"the only id of the list is {'not ' if absent else ''}known there"
    )
    if absent <= asked * MOST_ABSENT:
        return Finding("goldsky", "ok", text)
    return Finding(
        "goldsky",
        "warning",
        f"{text}; {absent:,} are not ({share(absent, asked)}, at most {MOST_ABSENT:.0%} is usual)",
        "Are these condition ids? Question ids and token ids look the same. Also check that GOLDSKY_ENDPOINT is the "
        "subgraph of their chain.",
    )


def _head(number: int, timestamp: int | None, indexing_errors: bool, now: datetime) -> Finding:
    if indexing_errors:
        return Finding(
            "goldsky",
            "warning",
            f"head at block {number:,}; the subgraph reports indexing errors, so vectors may be missing or wrong",
            "Ask the subgraph's developer, or set GOLDSKY_ENDPOINT to a healthy version.",
        )
    if timestamp is None:
        return Finding("goldsky", "ok", f"head at block {number:,}; the subgraph does not say how old it is")
    age = now - datetime.fromtimestamp(timestamp, timezone.utc)
    text = f"head at block {number:,}, {duration(age)} old"
    if age > FRESH_WITHIN:
        return Finding(
            "goldsky",
            "warning",
            f"{text}: older than {duration(FRESH_WITHIN)}, so the latest resolutions are missing",
            "Set GOLDSKY_ENDPOINT to a version that is kept up to date, or wait until it has caught up.",
        )
    return Finding("goldsky", "ok", text)
