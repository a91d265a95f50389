"""Secrets are taken out of everything that leaves the program: messages, logs, metadata, files.

A secret is registered once, when the settings are read; :func:`scrub` then removes it in each form in which a server
or a library may echo it: as it is, URL-encoded, and as base64 at any alignment (so also inside a basic
authorization header, where the user name precedes it).
"""

from __future__ import annotations

import base64
import json
import re
import threading
from urllib.parse import quote, quote_plus

_MASK = "***"
_MIN_LENGTH = 4  # shorter values would mask ordinary words and hide nothing that could not be guessed
_lock = threading.Lock()
_forms: set[str] = set()
_pattern: re.Pattern[str] | None = None

# Credentials in a URL and bearer tokens are masked even where they were not registered.
_URL_CREDENTIALS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]+@")
_URL = re.compile(r"(?i:https?)://[^\s'\"<>]+")
# What looks like a key in the path or query of a URL: hex, a UUID, lower case or upper case with a digit, or a mixture of
# both cases and digits. Public ids stay readable: Goldsky's projects, conditions, what follows `/id/` in the URLs of The
# Graph, and Dagster's runs.
_KEY = re.compile(
    r"""(?x)
    [0-9a-fA-F]{24,} | [0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}
    | (?=[a-z]*[0-9])[a-z0-9]{24,} | (?=[A-Z]*[0-9])[A-Z0-9]{24,}
    | (?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])(?=[^0-9]*[0-9])[A-Za-z0-9_+%.~-]{20,}=*
    """
)
_PUBLIC = re.compile(r"0x[0-9a-f]{64}|project_[a-z0-9]+|Qm[1-9A-HJ-NP-Za-km-z]{44}")
_AUTHORIZATION = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")


def _base64_cores(value: bytes) -> set[str]:
    """The part of the base64 text of ``value`` that does not depend on its neighbours, for each of three alignments."""
    cores: set[str] = set()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + value).decode().rstrip("=")
        first = (0, 2, 3)[offset]  # characters that also carry bits of what precedes
        last = len(encoded) - (1 if (offset + len(value)) % 3 else 0)  # and of what follows
        core = encoded[first:last]
        if len(core) >= _MIN_LENGTH + 2:
            cores.add(core)
            cores.add(core.replace("+", "-").replace("/", "_"))
    return cores


def register_secret(value: str | None) -> None:
    """Make :func:`scrub` remove ``value`` and its encoded forms from now on. Empty and very short values are ignored."""
    global _pattern
    if not value or len(value) < _MIN_LENGTH:
        return
    raw = value.encode()
    forms = {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1]}
    forms |= {form.lower() for form in (quote(value, safe=""), quote(value)) if "%" in form}
    forms.add(raw.hex())
    forms |= _base64_cores(raw)
    with _lock:
        _forms.update(forms)
        _pattern = re.compile("|".join(re.escape(form) for form in sorted(_forms, key=len, reverse=True)))


def _without_keys(url: str) -> str:
    """The URL with each part that looks like a key masked."""
    parts = re.split(r"([/?&=#;,:)\]}]+)", url)
    return "".join(
        _MASK
        if _KEY.fullmatch(part) and not _PUBLIC.fullmatch(part) and parts[max(0, n - 2)] not in ("id", "runs")
        else part
        for n, part in enumerate(parts)
    )


def keys_of(url: str) -> list[str]:
    """The parts of a URL that look like keys, so that they can be registered."""
    return [part for part in re.split(r"[/?&=#;,:]+", url) if part not in scrub(url)]


def scrub(text: str) -> str:
    """``text`` without any registered secret, credentials or keys in URLs, or authorization values."""
    if _pattern is not None:
        text = _pattern.sub(_MASK, text)
    text = _URL_CREDENTIALS.sub(rf"\1{_MASK}@", text)
    if "://" in text:
        text = _URL.sub(lambda match: _without_keys(match[0]), text)
    return _AUTHORIZATION.sub(rf"\1 {_MASK}", text)


def escape_controls(text: str) -> str:
    """``text`` on one line, with everything that is not printable written out, so that it can neither forge a line nor hide.

    That is control, format and direction-changing characters, unassigned ones, spaces other than the plain one, and
    halves of surrogate pairs, which no output can encode.
    """
    if text.isprintable():
        return text
    text = text.replace("\n", "\\n").replace("\r", "\\r")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def clean_lines(text: str) -> str:
    """``text`` without secrets, and without characters that could steer a terminal or reorder a line; lines stay lines."""
    return "\n".join(map(escape_controls, scrub(text).split("\n")))


def excerpt(text: str, limit: int = 200) -> str:
    """The first ``limit`` characters of ``text``, scrubbed first (a secret cut in half is still a secret), on one line."""
    clean = scrub(text)
    return escape_controls(clean[:limit]) + ("…" if len(clean) > limit else "")
