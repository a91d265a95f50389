"""What an answer or an error of the subgraph means for the request that got it: pure functions, no network, no clock.

The error texts are those of graph-node (0.44/0.45) and of the gateways in front of it. Goldsky publishes neither its
version nor its texts, so messages are recognised by a part of them and never compared as a whole.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from enum import Enum

from payout_pipeline.scrub import excerpt

EXCERPT_LENGTH = 200


class FaultKind(str, Enum):
    """What may be done about a failed request; of several errors in one answer the first of these kinds decides."""

    PERMANENT = "permanent"  # no repetition helps
    REPIN = "repin"  # the block or the deployment is gone: the whole run needs a new snapshot
    RATE_LIMITED = "rate_limited"  # over the server's limit: all processes wait
    SPLIT = "split"  # the request is too heavy: ask for fewer ids at once
    BEHIND = "behind"  # the head is before the block asked for: soon over, or the block is gone
    TRANSIENT = "transient"  # the same request may succeed later
    REFUSED = "refused"  # an answer came, but it must not be believed: ask again


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed request. ``retry_after`` is in seconds and not yet capped; ``None`` where the server named none."""

    kind: FaultKind
    message: str
    status: int | None = None
    retry_after: float | None = None
    history_not_kept: bool = False
    overloaded: bool = False  # the server asks for a long pause
    html: bool = False  # a web page instead of an API's answer: final where nothing ever answered better
    splits: bool = True  # parts of the request may be answered where the whole is not
    heavy: bool = False  # may well come from the request's size


_TOKEN = re.compile(r"(?i)\Aauth error\b|unauthori[sz]ed|forbidden")

_RULES: tuple[tuple[FaultKind, re.Pattern[str]], ...] = (
    (
        FaultKind.REPIN,
        re.compile(r"only has data starting at|no block with that hash found|\Aindexing_error\b"),
    ),
    (
        FaultKind.SPLIT,
        re.compile(
            r"canceling statement due to statement timeout"
            r"|error encoding message to server"  # more ids than the database takes as bound values
            r"|\Athe result size of "
            r"|\Aquery is too expensive|\Aquery potentially returns"
        ),
    ),
    (FaultKind.BEHIND, re.compile(r"has only indexed up to")),
    (FaultKind.RATE_LIMITED, re.compile(r"(?i)too many requests|\brate.?limit|query allowance")),
    (
        FaultKind.TRANSIENT,
        re.compile(
            r"\AStore error: |\Aservice is overloaded|\AQuery timed out|\Athe chain was reorganized"
            r"|has not started syncing|\Apanic processing query|\Ainternal error"
            r"|\AFailed to get entities from store: |(?i:bad indexers)"
        ),
    ),
    (
        FaultKind.PERMANENT,
        re.compile(
            r"\AInvalid value provided|has no field|argument must be between|\ANon-list value|\AFilter must by"
            r"|\ACannot mix column|\AOrdering by |\Adeployment `.*` does not exist|\ANot supported"
            r"|\Aquery has a depth"
            r"|\AUnexpected |\AParse error|\ASyntax Error|Recursion limit exceeded|\AOperation name required"
            r"|\AUnknown (?:argument|fragment|type|directive|field)|\ACannot query field|\AVariable \"|\AField \""
            r"|\ANo value provided for required|\AFailed to decode|\AInvalid subgraph name|(?i:\ASubgraph .*not found)"
            r"|(?i:payment required)"
        ),
    ),
    (FaultKind.PERMANENT, _TOKEN),
)
_HEAVY = re.compile(r"\AQuery timed out")
_OVERLOADED = re.compile(r"\Aservice is overloaded|\AStore error: database unavailable")
_HISTORY = re.compile(r"only has data starting at")
_NOT_GRAPHQL = re.compile(r"(?i)\A\s*(?:<!doctype|<html|<\?xml|<)")

# 408 request timeout, 421 misdirected, 425 too early: nothing is wrong with the request itself.
_TRANSIENT_STATUS = frozenset({408, 421, 425})


def classify_message(message: str) -> FaultKind:
    """The class of one ``errors[].message``. An unknown text counts as transient: retries are bounded anyway."""
    for kind, pattern in _RULES:
        if pattern.search(message):
            return kind
    return FaultKind.TRANSIENT


def classify_errors(errors: object, status: int | None = None) -> Fault:
    """The class of a GraphQL ``errors`` value of any shape; the most final of several errors decides."""
    messages = [_message_of(error) for error in errors] if isinstance(errors, list) else [_message_of(errors)]
    kinds = [classify_message(message) for message in messages]
    kind = min(kinds, key=list(FaultKind).index, default=FaultKind.TRANSIENT)
    first = next((text for text, its in zip(messages, kinds, strict=True) if its is kind), "an empty list of errors")
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return Fault(
        kind,
        f"the subgraph answered with an error: {excerpt(first, EXCERPT_LENGTH)}{more}"
        + (". Check GOLDSKY_API_TOKEN." if kind is FaultKind.PERMANENT and _TOKEN.search(first) else ""),
        status,
        heavy=bool(_HEAVY.search(first)),
        history_not_kept=kind is FaultKind.REPIN and bool(_HISTORY.search(first)),
        # A replica that lags behind needs seconds, not milliseconds.
        overloaded=kind is FaultKind.BEHIND or bool(_OVERLOADED.search(first)),
    )


def is_indexing_error(errors: object) -> bool:
    """Whether ``errors`` says only that the deployment failed at the block asked for; ``_meta`` is answered then."""
    return (
        isinstance(errors, list) and bool(errors) and all(_message_of(e).startswith("indexing_error") for e in errors)
    )


def _message_of(error: object) -> str:
    if isinstance(error, dict):
        message = error.get("message")
        if isinstance(message, str):
            return message
    return error if isinstance(error, str) else repr(error)[:1000]


def classify_http(
    status: int,
    body: str,
    *,
    retry_after: float | None = None,
    location: str | None = None,
    has_token: bool = True,
) -> Fault:
    """The class of an answer whose status is not 200. ``body``: as much of the text as was read."""
    shown = excerpt(body, EXCERPT_LENGTH) or "an empty body"
    text = f"HTTP {status}: {shown}"
    if status == 429:
        return Fault(FaultKind.RATE_LIMITED, text, status, retry_after)
    if 300 <= status < 400:
        where = f" to {excerpt(location, EXCERPT_LENGTH)}" if location else ""
        return Fault(
            FaultKind.PERMANENT,
            f"HTTP {status}: the endpoint redirects{where}; redirects are never followed, so that neither ids nor the "
            "token go to another place. Set GOLDSKY_ENDPOINT to the final address.",
            status,
        )
    if status == 413:
        return Fault(FaultKind.SPLIT, text, status)
    if status in _TRANSIENT_STATUS or status >= 500:
        return Fault(FaultKind.TRANSIENT, text, status, retry_after)
    if status == 403 and _NOT_GRAPHQL.match(body):
        return Fault(FaultKind.TRANSIENT, f"a bot guard or proxy answered with {text}", status, retry_after)
    token = "Check GOLDSKY_API_TOKEN" if has_token else "GOLDSKY_API_TOKEN is not set: check whether one is needed"
    hint = {
        401: f" {token}.",
        403: f" {token} and that the endpoint belongs to its project.",
        404: " No subgraph is deployed there: check name and version in GOLDSKY_ENDPOINT.",
        405: " This is no GraphQL endpoint: check GOLDSKY_ENDPOINT.",
    }.get(status, "")
    return Fault(FaultKind.PERMANENT, text + hint, status)


def classify_body(body: bytes | bytearray, answer: object) -> Fault:
    """The class of a body with status 200 that is no GraphQL result. ``answer``: its JSON, ``None`` if it is none."""
    text = body[:4000].decode("utf-8", "replace")
    shown = excerpt(text, EXCERPT_LENGTH) or "an empty body"
    if isinstance(answer, dict):
        message = answer.get("message")
        if not answer or message == "Not found":
            return Fault(
                FaultKind.PERMANENT,
                f"HTTP 200, but no GraphQL answer: {shown} The address is not that of a subgraph, or the query is not "
                "understood there: check GOLDSKY_ENDPOINT.",
                200,
            )
        if isinstance(message, str) and classify_message(message) is FaultKind.RATE_LIMITED:
            return Fault(FaultKind.RATE_LIMITED, f"HTTP 200: {shown}", 200)
    if not text.strip():
        return Fault(FaultKind.TRANSIENT, "HTTP 200 with an empty body", 200)
    html = bool(_NOT_GRAPHQL.match(text))
    what = "which is HTML" if html else "which is no GraphQL answer"
    # What is no JSON but begins like it was cut off, perhaps because it is long.
    message = f"HTTP 200 with a body {what}: {shown}"
    return Fault(FaultKind.TRANSIENT, message, 200, html=html, heavy=not html)


def classify_exception(error: BaseException, timeout_seconds: float) -> Fault:
    """The class of a connection that failed, by the exception of aiohttp or the operating system."""
    import ssl

    import aiohttp

    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return Fault(
            FaultKind.TRANSIENT,
            f"no complete answer within {timeout_seconds:g} s (GOLDSKY_TIMEOUT_SECONDS)",
            heavy=True,
        )
    text = f"{type(error).__name__}: {excerpt(str(error), EXCERPT_LENGTH)}"
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)):
        return Fault(FaultKind.PERMANENT, f"the server's certificate cannot be verified: {text}")
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return Fault(FaultKind.PERMANENT, f"GOLDSKY_ENDPOINT is no usable address: {text}")
    # Some gateways close the connection on large requests. A connection that was never made says nothing of the request.
    heavy = not isinstance(error, aiohttp.ClientConnectorError)
    return Fault(FaultKind.TRANSIENT, f"the connection failed: {text}", heavy=heavy)


_SECONDS = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_NEVER = 1e15


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a ``Retry-After`` header (RFC 9110, 10.2.3): seconds or an HTTP date, ``None`` if neither.

    Never negative, never infinite; ``now`` (aware) is the time that a date is measured from. Not capped here.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return min(max(0.0, float(text)), _NEVER)
    if not text.isascii():
        return None
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=timezone.utc)) - now).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def capped_wait(retry_after: float | None, *, cap: float, window: float) -> tuple[float, str]:
    """Seconds to hold after an answer of 429, and the sentence that says why.

    At least one window of the limit (as far as the cap allows): the server's window is full, and a sliding window is
    certain to be empty only one length later. A shorter ``Retry-After`` could cost another 429.
    """
    least = min(window, cap)
    if retry_after is None:
        return least, f"HTTP 429 without a usable Retry-After; waiting {least:g} s"
    seconds = min(max(retry_after, least), cap)
    why = ""
    if seconds < retry_after:
        why = f", capped at {cap:g} s (GOLDSKY_MAX_RETRY_AFTER_SECONDS)"
    elif seconds > retry_after:
        why = f"; waiting {least:g} s, the limit's whole window"
    return seconds, f"HTTP 429 with Retry-After {retry_after:g} s{why}"
