"""The ids of JSON: an array, or one value a line. A value is a string, or an object with one key that names an id."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from payout_pipeline.ids.file.characters import BLOCK, HEX, LONGEST_LINE, Characters, says_something
from payout_pipeline.ids.text import BLANKS, ID_COLUMNS, RefusedTexts, normalise

_SPACE = re.compile(r"[ \t\n]*")
_TOO_DEEP = "too many brackets"
_CUT_OFF = "the JSON array is not closed: is the file cut off?"
# What an ordinary list consists of: read without a call of the decoder for each element.
_ARRAY_ITEM = re.compile(rf'[ \t\n]*"{HEX}"[ \t\n]*,')


class _Number(str):
    """A JSON number, as it was written."""

    __slots__ = ()


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, repeated keys included."""


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number, object_pairs_hook=_Pairs)


def _text_of(value: Any) -> tuple[str | None, str]:
    """What has to be an id, of a string or of an object with one key of :data:`ID_COLUMNS`; or None, and what is wrong."""
    if isinstance(value, _Pairs):
        known = [content for key, content in value if key in ID_COLUMNS]
        if len(known) != 1:
            count = f"has {len(known)}" if known else "has none"
            return None, f"an object that {count} of the keys {', '.join(ID_COLUMNS)}; exactly one is needed"
        value = known[0]
    if not isinstance(value, str):
        kind = "null" if value is None else "a list" if isinstance(value, list) else "no string"
        return None, f"{kind}, where an id is expected"
    if isinstance(value, _Number) and normalise(value):
        return None, "a number, where a string is expected"
    return value, ""


def _take(value: Any, raw: str, place: str, found: list[str], refused: RefusedTexts) -> None:
    """Put the id of a JSON value into ``found``, or refuse it."""
    text, why = _text_of(value)
    condition_id = None if text is None else normalise(text)
    if condition_id:
        found.append(condition_id)
    else:
        refused.add(place, raw if text is None else text, why)


def ids_of_json_lines(text: Characters, refused: RefusedTexts) -> Iterator[list[str]]:
    """The ids of the values, one a line. Raises InputError on a line without an end."""
    for number, lines in text.blocks():
        found: list[str] = []
        for offset, line in enumerate(lines):
            if not says_something(line):
                continue
            place, content = f"line {number + offset}", line.strip(BLANKS)
            try:
                _take(_DECODER.decode(content), content, place, found, refused)
            except json.JSONDecodeError as error:
                refused.add(place, content, f"no whole JSON value: {error.msg} at character {error.pos + 1}")
            except RecursionError:
                refused.add(place, content, _TOO_DEEP)
        yield found


class _Window:
    """The part of a long JSON text around the position ``at``; what lies far before it is forgotten."""

    def __init__(self, text: Characters) -> None:
        self._chunks = text.chunks
        self._line, self._counted_to = text.number, 0
        self.content, self.at = "", 0

    def line(self) -> int:
        """The number of the line at ``at``."""
        self._line += self.content.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line

    def rest(self) -> str:
        """The next characters, as many as an excerpt may show."""
        return self.content[self.at : self.at + 1000]

    def _more(self) -> bool:
        chunk = next(self._chunks, "")
        self.line()
        self.content, self.at, self._counted_to = self.content[self.at :] + chunk, 0, 0
        return bool(chunk)

    def symbol(self) -> str:
        """Move to the next character that is no blank, and return it; empty at the end of the text."""
        while True:
            if match := _SPACE.match(self.content, self.at):
                self.at = match.end()
            if self.at < len(self.content) or not self._more():
                return self.content[self.at : self.at + 1]

    def value(self) -> tuple[Any, str]:
        """The JSON value that begins at ``at``, and its text; moves behind it. Raises JSONDecodeError, RecursionError."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.content, self.at)
            except json.JSONDecodeError:
                if len(self.content) - self.at > LONGEST_LINE or not self._more():
                    raise
                continue
            length = end - self.at
            if end < len(self.content) or not self._more():  # a number may go on
                self.at += length
                return value, self.content[self.at - length : self.at]


def ids_of_json_array(text: Characters, refused: RefusedTexts) -> Iterator[list[str]]:
    """The ids of the elements; where the text stops being JSON, the rest is not read."""
    window = _Window(text)
    found: list[str] = []
    number = 0
    window.symbol()
    window.at += 1  # the bracket
    while True:
        if len(found) >= BLOCK:
            yield found
            found = []
        number += 1
        if match := _ARRAY_ITEM.match(window.content, window.at):
            found.append(match[1])
            window.at = match.end()
            continue
        symbol = window.symbol()
        place = f"element {number} (line {window.line()})"
        if symbol == "]" and number == 1:
            window.at += 1
            break
        try:
            value, raw = window.value()
        except json.JSONDecodeError as error:
            refused.add(place, window.rest(), _why_no_json(error, symbol))
            return
        except RecursionError:
            refused.add(place, window.rest(), _TOO_DEEP)
            return
        _take(value, raw, place, found, refused)
        symbol = window.symbol()
        window.at += 1
        if symbol == "]":
            break
        if symbol != ",":
            why = "a comma or the closing bracket is missing behind it" if symbol else _CUT_OFF
            refused.add(place, raw, why)
            return
    if window.symbol():
        refused.add(f"line {window.line()}", window.rest(), "behind the end of the JSON array")
    yield found


def _why_no_json(error: json.JSONDecodeError, symbol: str) -> str:
    if symbol == "]":
        return "a comma before the closing bracket"
    if symbol == "'":
        return "JSON has double quotes; without the brackets, one a line, ids in single quotes are read"
    if error.msg.startswith("Unterminated") or error.pos >= len(error.doc):
        return _CUT_OFF
    return f"no JSON: {error.msg}"
