"""``payout-pipeline query ID…``: what Goldsky says of a few conditions, beside what is stored of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from payout_pipeline.errors import ConfigurationError, PayoutPipelineError
from payout_pipeline.ids.text import normalise, why_no_id
from payout_pipeline.scrub import excerpt
from payout_pipeline.settings import Settings
from payout_pipeline.words import counted, is_

if TYPE_CHECKING:
    from rich.console import Console

    from payout_pipeline.goldsky.answers import BatchAnswer, SubgraphInfo

MAX_IDS = 1000
_DATABASE_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One condition. ``vector`` is the exact one, ``raw`` the answer as it came; ``stored`` where it is kept."""

    condition_id: str
    status: str
    vector: str
    winning_index: int | None
    raw: str
    error: str
    stored: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """All conditions, and why the database could not be asked, where it could not."""

    endpoint: str
    block_number: int
    rows: tuple[Answered, ...]
    database_note: str

    @property
    def exit_code(self) -> int:
        """1 where an id got no usable answer."""
        return int(any(row.status in ("failed", "invalid") for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def normalised(ids: Sequence[str]) -> list[str]:
    """The ids as 64 lower-case hex digits, each once. Raises ConfigurationError naming those that are none."""
    found: dict[str, None] = {}
    wrong: list[str] = []
    for text in ids:
        if condition_id := normalise(text):
            found[condition_id] = None
        else:
            wrong.append(f"{excerpt(text, 80)} ({why_no_id(text)})")
    if wrong:
        raise ConfigurationError(
            f"{len(wrong)} of {counted(len(ids), 'argument')} {is_(len(wrong))} no condition id (64 hex digits, 0x allowed): "
            f"{', '.join(wrong[:5])}"
        )
    if len(found) > MAX_IDS:
        raise ConfigurationError(f"at most {MAX_IDS:,} ids at once; for more put them into a file and run the backfill")
    return list(found)


def ask(settings: Settings, ids: Sequence[str]) -> Answers:
    """Ask Goldsky and, where it can be had, the database.

    Raises ConfigurationError on what is no id, GoldskyPermanentError, GoldskyUnavailableError, SnapshotLostError.
    """
    wanted = normalised(ids)
    rows, block = asyncio.run(_ask_goldsky(settings, wanted))
    stored, note = _ask_database(settings, wanted)
    return Answers(
        endpoint=excerpt(settings.goldsky_endpoint.split("?", 1)[0]),
        block_number=block,
        rows=tuple(
            Answered(
                **row,
                stored=tuple(
                    {name: s[name] for name in ("table", "vector", "winning_index", "source")}
                    for s in stored
                    if s["condition_id"] == row["condition_id"]
                ),
            )
            for row in rows
        ),
        database_note=note,
    )


async def _ask_goldsky(settings: Settings, ids: list[str]) -> tuple[list[dict[str, Any]], int]:
    from payout_pipeline.goldsky.client import GoldskyClient, SnapshotGoneError

    async with GoldskyClient.from_settings(settings) as client:
        info = await client.probe()
        pin = client.make_pin(info, settings.goldsky_block_margin)
        try:
            answer = await client.fetch_batch(ids, pin)
        except SnapshotGoneError as gone:
            if not gone.history_not_kept:
                raise
            pin = client.make_pin(info, settings.goldsky_block_margin, history_kept=False)
            answer = await client.fetch_batch(ids, pin)
        while absent := answer.absent:  # as in a run: an id is absent once a second answer agrees
            again = await client.fetch_batch(absent, pin)
            answer.found |= again.found
            answer.failed |= again.failed
            answer.absent = again.absent
            if len(again.absent) == len(absent):
                break
    return [_row(i, answer, info) for i in ids], answer.block_number


def _row(condition_id: str, answer: BatchAnswer, info: SubgraphInfo) -> dict[str, Any]:
    """What was answered of one condition: the fields of :class:`Answered` but for ``stored``."""
    from payout_pipeline.ledger.answers import judge

    row: dict[str, Any] = {"condition_id": condition_id, "vector": "", "winning_index": None, "raw": "", "error": ""}
    if condition_id in answer.failed:
        return row | {"status": "failed", "error": excerpt(answer.failed[condition_id], 500)}
    condition = answer.found.get(condition_id)
    if condition is None:
        return row | {"status": "absent"}
    judged = judge(condition, info)
    row |= {"status": judged["status"], "raw": excerpt(judged["payouts"] or "null", 2000)}
    row["error"] = excerpt(judged.get("error", ""), 500)
    if judged["status"] == "resolved":
        row["vector"] = f"[{','.join(map(str, judged['payout_numerators']))}]/{judged['payout_denominator']}"
        row["winning_index"] = judged["winning_index"]
    return row


def _ask_database(settings: Settings, ids: list[str]) -> tuple[list[dict[str, Any]], str]:
    """What is stored of the ids; a note instead where the database cannot be asked now. Creates nothing."""
    from payout_pipeline.verification.numbers import stored_vectors
    from payout_pipeline.warehouse.client import Warehouse

    warehouse = Warehouse.existing(settings, "query", _DATABASE_WAIT_SECONDS)
    if warehouse is None:
        return [], "the embedded database does not exist yet"
    try:
        with warehouse.session("query") as session:
            return stored_vectors(session, settings, ids), ""
    except PayoutPipelineError as fault:
        return [], str(fault).partition("\n")[0]


def print_answers(answers: Answers, console: Console) -> None:
    """A block for each condition."""
    from rich.markup import escape

    console.print(f"[dim]{escape(answers.endpoint)} at block {answers.block_number:,}[/]")
    colours = {
        "resolved": "green",
        "unresolved": "cyan",
        "absent": "yellow",
        "invalid": "bold red",
        "failed": "bold red",
    }
    for row in answers.rows:
        winner = f"  winning index {row.winning_index}" if row.winning_index is not None else ""
        console.print(f"[bold]{row.condition_id}[/]  [{colours[row.status]}]{row.status}[/]")
        if row.vector:
            console.print(f"  Goldsky   {escape(row.vector)}{winner}   [dim]answered {escape(row.raw)}[/]")
        if row.error:
            console.print(f"  [red]{escape(row.error)}[/]" + (f"   [dim]{escape(row.raw)}[/]" if row.raw else ""))
        for place in row.stored:
            console.print(
                f"  stored    {escape(str(place['vector']))}  winning index {place['winning_index']}   "
                f"[dim]{escape(str(place['table']))}, {escape(str(place['source']))}[/]"
            )
        if not row.stored and not answers.database_note:
            console.print("  stored    [dim]nothing[/]")
    if answers.database_note:
        console.print(f"[yellow]What is stored could not be read: {escape(answers.database_note)}[/]")
