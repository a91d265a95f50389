"""One text: the condition id that it is, or what is wrong with it and what would help.

The id file, ``payout-pipeline query`` and the result of ``CONDITION_IDS_QUERY`` refuse a text with the same words. A text is
never repaired by a guess: what may have lost digits is refused.
"""

from __future__ import annotations

import re
import unicodedata

from payout_pipeline.errors import InputError
from payout_pipeline.words import counted, is_

ID_BYTES = 32
ID_DIGITS = 2 * ID_BYTES
#: The columns of a table, or the keys of a JSON object, that hold condition ids.
ID_COLUMNS = ("condition_id", "conditionId", "condition_id_norm", "market_id")
REPAIR = (
    "set CONDITION_IDS_FILE to a text file with one condition id (64 hex digits, 0x allowed) a line, or to a CSV, JSON or "
    f"Parquet file with a column {ID_COLUMNS[0]}"
)
BLANKS = " \t\x0b\x0c"
_SHOWN = 20
_EXCERPT = 60
_EXAMINED = 1000
_ID = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")
_QUOTED = re.compile(r"""(["'])([^"']*)\1[ \t]*,?""")
_FIND = "take the market's condition id (condition_id, in Polymarket's API conditionId)"
_FORMS = (
    (re.compile(r"HexBytes\(.*"), "Python's HexBytes: write value.hex() instead of the object"),
    (re.compile(r"""b["'].*"""), "Python's bytes: write value.hex() instead of the object"),
    (re.compile(r"\\{1,2}x[0-9a-fA-F]*"), "PostgreSQL's bytea: select encode(column, 'hex')"),
    (
        re.compile(r"[0-9](?:[.,][0-9]+)?[eE]\+[0-9]+|[0-9][.,][0-9]+[eE][0-9]+"),
        "a spreadsheet has rounded this number and its digits are lost: export the ids again, the column formatted as text",
    ),
    (
        re.compile(r"[0-9]{70,78}"),
        f"this is a token id (a decimal number of 70 to 78 digits); condition ids have {ID_DIGITS} hex digits: {_FIND}",
    ),
    (re.compile(r"https?://\S*"), f"this is the address of a page: {_FIND}"),
    (re.compile(r"(?=.*[g-z])[a-z0-9]+(?:-[a-z0-9]+)+"), f"this is a market slug: {_FIND}"),
)
_INVISIBLE = {"\u00a0": "non-breaking space", "\ufeff": "byte order mark", "\u00ad": "soft hyphen"}


def normalise(text: str) -> str | None:
    """The id as 64 lower-case hex digits; ``0x`` and blanks around it are allowed. None where ``text`` is no id."""
    match = _ID.fullmatch(text.strip(BLANKS))
    return match[1].lower() if match else None


def why_no_id(text: str) -> str:
    """What ``text``, which :func:`normalise` does not accept, seems to be, and what would help. One line."""
    text = text.strip(BLANKS)[:_EXAMINED]
    if not text:
        return "is empty"
    if "\x00" in text:
        return "zero bytes: binary, or UTF-16 without a byte order mark"
    for position, character in enumerate(text, 1):
        if not character.isascii() and unicodedata.category(character) in ("Zs", "Cf"):
            name = _INVISIBLE.get(character) or unicodedata.name(character, "invisible character").lower()
            return f"contains a {name} (U+{ord(character):04X}) at character {position}: remove it"
    if quoted := _QUOTED.fullmatch(text):
        return "is in quotes" if normalise(quoted[2]) else why_no_id(quoted[2])
    for form, reason in _FORMS:
        if form.fullmatch(text):
            return reason
    return _by_its_characters(text)


def _by_its_characters(text: str) -> str:
    body = text[2:] if text[:2] in ("0x", "0X") else text
    if re.fullmatch(r"[0-9a-fA-F]*", body):
        lost = "; leading zeros may be lost: export the ids again as text" if len(body) in (62, 63) else ""
        return f"{_many(len(body))} hex digits instead of {ID_DIGITS}{lost}"
    if not text.isascii():
        return "characters that are no ASCII hex digits"
    if body[:1] in ("{", "["):
        return "looks like JSON, which is read where the file begins with it"
    if re.search(r"[,;\t]", body):
        return (
            "looks like a table; give it a header line that names the column of the ids "
            f"({', '.join(ID_COLUMNS)}), or one id a line"
        )
    if body[:1] in ('"', "'"):
        return "a quote that is not closed, or more than one value"
    return "not hex digits only"


def _many(length: int) -> str:
    return f"{length:,}" if length < _EXAMINED - 2 else f"{_EXAMINED - 2:,} or more"


def safe_excerpt(text: str) -> str:
    """The beginning of ``text``, quoted, with everything but printable ASCII escaped."""
    shown = ascii(text[:_EXCERPT].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    return f"{shown} …" if len(text) > _EXCERPT else shown


class RefusedTexts:
    """Counts what is no id, and keeps the first 20 with their places and reasons for the message."""

    def __init__(self, source: str, repair: str = REPAIR) -> None:
        """``source`` (a path, a variable) begins the message; ``repair`` ends it: what may be done instead."""
        self._source, self._repair = source, repair
        self._count, self._unit = 0, ""
        self._shown: list[str] = []
        self._last = ""

    def add(self, place: str, text: str | None, why: str = "") -> None:
        """Note the text at ``place`` (``line 5``, ``row 5``); ``why`` is needed where :func:`why_no_id` has no reason."""
        self._count += 1
        self._unit = self._unit or place.partition(" ")[0]
        if len(self._shown) < _SHOWN:
            reason = why or why_no_id(text or "")
            shown = "" if text is None else f" {safe_excerpt(text)}"
            self._shown.append(f"  {place}:{shown} ({reason if reason != self._last else 'the same'})")
            self._last = reason

    def raise_if_any(self) -> None:
        """Raises InputError where something was refused."""
        if not self._count:
            return
        more = f"\n  … and {self._count - len(self._shown):,} more" if self._count > len(self._shown) else ""
        listed = "\n".join(self._shown)
        raise InputError(
            f"{self._source}: {counted(self._count, self._unit)} {is_(self._count)} no condition id; nothing was asked.\n"
            f"{listed}{more}\nCorrect or remove {'it' if self._count == 1 else 'them'}, or {self._repair}."
        )
