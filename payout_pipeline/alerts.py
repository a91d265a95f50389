"""Word to ``PAYOUT_ALERT_WEBHOOK``: what is in trouble is said once, and once more when it is well again.

What is in trouble now is found out by ``alert_sensors.py``. Here it is compared with what has been said, which is kept in the
runtime directory together with the messages that wait for the webhook. A message is durable before it is sent, and is
sent again until it has been taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, SecretStr, ValidationError

from payout_pipeline.scrub import clean_lines, excerpt
from payout_pipeline.settings import Settings
from payout_pipeline.storage import Store, open_store
from payout_pipeline.words import counted, duration

logger = logging.getLogger(__name__)

STATE_FILE = "alerts.json"
NOT_TWICE_WITHIN = timedelta(hours=1)
TIMEOUT_SECONDS = 10.0
_LONGEST_MESSAGE = 1_500
# What is markup to Slack: an answer with <!channel> in it must not notify a channel.
_PLAIN = str.maketrans("<>", "‹›")


class Sign(BaseModel):
    """That an item is in trouble: ``topic`` is what is reported once an hour at most, ``event`` is another one when
    the item has failed anew."""

    topic: str
    event: str


@dataclass(frozen=True)
class Trouble:
    """One cause and all items (runs, checks) that are in trouble by it: one message.

    ``consequences`` never make a message of their own; the trouble is over when they are, too.
    """

    key: str
    title: str
    since: datetime
    sentences: Sequence[str]
    repair: str
    items: Mapping[str, Sign]
    consequences: dict[str, Sign] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """What a look at the troubles led to: the messages sent, how many wait, and why they do."""

    sent: tuple[str, ...] = ()
    waiting: int = 0
    problem: str = ""


class _Open(BaseModel):
    """A trouble that has been announced and is not over."""

    title: str
    since: AwareDatetime
    items: dict[str, Sign]


class _Message(BaseModel):
    """A message to be sent; ``about`` are the topics and items that it speaks of."""

    key: str
    text: str
    about: list[str]


class _State(BaseModel):
    """``told``: when each topic and item was spoken of last, within the last hour."""

    open: dict[str, _Open] = {}
    told: dict[str, AwareDatetime] = {}
    outbox: list[_Message] = []

    def recently(self, *topics: str) -> bool:
        return any(topic in self.told for topic in topics)

    def take(self, trouble: Trouble, items: Mapping[str, Sign]) -> None:
        """Make ``items`` those of ``trouble``, and of no other."""
        for other in self.open.values():
            other.items = {item: sign for item, sign in other.items.items() if item not in items}
        before = self.open.get(trouble.key)
        self.open[trouble.key] = _Open(
            title=trouble.title,
            since=min(before.since, trouble.since) if before else trouble.since,
            items={**(before.items if before else {}), **items},
        )
        self.open = {key: found for key, found in self.open.items() if found.items}

    def say(self, message: _Message, now: datetime) -> None:
        self.outbox.append(message)
        self.told |= dict.fromkeys(message.about, now)


def settle(
    settings: Settings,
    troubles: Iterable[Trouble],
    is_over: Callable[[str], bool],
    now: datetime,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Delivery:
    """Say what is new among ``troubles``, and what is over, and send what waits.

    Args:
        settings: of the pipeline; ``alert_webhook`` is set.
        troubles: all that there are now.
        is_over: whether an item is well again, or gone; False where that is not known.
        now: the time.
        timeout_seconds: of one message, from connecting to the answer.

    Raises StorageError where the runtime directory cannot be written; then nothing is sent.
    """
    if settings.alert_webhook is None:
        return Delivery()
    store = open_store(settings.runtime_dir)
    state = _read(store)
    before = state.model_copy(deep=True)
    state.told = {topic: at for topic, at in state.told.items() if abs(now - at) < NOT_TWICE_WITHIN}
    for trouble in troubles:
        _announce(state, trouble, now)
    for key, found in list(state.open.items()):
        if all(map(is_over, found.items)) and not state.recently(f"over: {key}"):
            del state.open[key]
            state.say(_Message(key=key, text=_recovery(found, now), about=[f"over: {key}"]), now)
    if state != before or state.outbox:
        store.write(STATE_FILE, state.model_dump_json().encode())
    sent: list[str] = []
    problem = ""
    while state.outbox and not problem:
        message = state.outbox[0]
        problem = asyncio.run(_post(settings.alert_webhook, message.text, timeout_seconds))
        if not problem:
            sent.append(message.text)
            state.outbox = state.outbox[1:]
            state.told |= dict.fromkeys(message.about, now)
            store.write(STATE_FILE, state.model_dump_json().encode())
    if problem:
        logger.warning("%s %s kept and sent again.", problem, counted(len(state.outbox), "message is", "messages are"))
    return Delivery(tuple(sent), len(state.outbox), problem)


def _announce(state: _State, trouble: Trouble, now: datetime) -> None:
    """Say what is new in a trouble.

    Within an hour of a message nothing more is said of its topics: what joins a trouble that is still open is added to it, and
    what comes back after it was over waits for the hour to end.
    """
    known = {item: sign for found in state.open.values() for item, sign in found.items.items()}
    topics = {sign.topic for sign in known.values()}
    news = {item: sign for item, sign in trouble.items.items() if known.get(item) != sign}
    if any(not state.recently(item, sign.topic) for item, sign in news.items()):
        about = sorted({*trouble.items, *(sign.topic for sign in trouble.items.values())})
        state.outbox = [message for message in state.outbox if message.key != trouble.key]
        state.say(_Message(key=trouble.key, text=_failure(trouble), about=about), now)
        state.take(trouble, trouble.items)
    else:
        joined = {item: sign for item, sign in news.items() if item in known or sign.topic in topics}
        if joined:
            state.take(trouble, joined)
    if trouble.consequences and trouble.key in state.open:
        state.take(trouble, trouble.consequences)


def _failure(trouble: Trouble) -> str:
    head = f"Payout pipeline FAILED: {trouble.title}\nSince {trouble.since:%Y-%m-%d %H:%M} UTC"
    return _fitted(head, trouble.sentences, f"What to do: {trouble.repair}")


def _recovery(found: _Open, now: datetime) -> str:
    since = f"It had failed since {found.since:%Y-%m-%d %H:%M} UTC ({duration(now - found.since)})."
    return _fitted(f"Payout pipeline WELL AGAIN: {found.title}", [], since)


def _fitted(head: str, sentences: Sequence[str], end: str) -> str:
    """The parts below one another, clean; where they are too long, the middle is cut."""
    head, middle, end = (clean_lines(part).translate(_PLAIN) for part in (head, "\n".join(sentences), end))
    head, end = head[: _LONGEST_MESSAGE // 3], end[: _LONGEST_MESSAGE // 3]
    room = _LONGEST_MESSAGE - len(head) - len(end) - 3
    middle = middle if len(middle) <= room else middle[:room] + "…"
    return "\n".join(part for part in (head, middle, end) if part)


def _read(store: Store) -> _State:
    """What has been said; nothing where the file is missing, or damaged, in which case it is kept aside."""
    try:
        return _State.model_validate_json(store.read(STATE_FILE))
    except FileNotFoundError:
        return _State()
    except ValidationError:
        aside = store.describe(store.set_aside(STATE_FILE))
        logger.warning("%s was damaged and is kept aside; what is in trouble is said once more.", aside)
        return _State()


async def _post(webhook: SecretStr, text: str, seconds: float) -> str:
    """Send a message; returns why it was not taken, empty where it was. Redirects are not followed."""
    import aiohttp

    from payout_pipeline.goldsky.transport import proxy_of_environment

    url = webhook.get_secret_value()
    check = "Check that PAYOUT_ALERT_WEBHOOK is right, and that this machine can reach it."
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.post(url, json={"text": text}, allow_redirects=False, proxy=proxy_of_environment(url)) as answer,
        ):
            status = answer.status
    except asyncio.TimeoutError:
        return f"The alert webhook did not answer within {seconds:g} s. {check}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"The alert webhook cannot be reached: {excerpt(f'{type(error).__name__}: {error}')}. {check}"
    if 300 <= status < 400:
        return f"The alert webhook redirects (HTTP {status}), which is not followed. Set PAYOUT_ALERT_WEBHOOK to the final URL."
    return "" if 200 <= status < 300 else f"The alert webhook answered HTTP {status}. {check}"
