"""The ids of a text with one id a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from payout_pipeline.ids.file.characters import HEX, Characters, says_something
from payout_pipeline.ids.text import BLANKS, RefusedTexts

_COMMENT = r"(?:[ \t]+#.*)?"
_LINE = re.compile(HEX + _COMMENT)
_QUOTED = re.compile(rf"""(["']){HEX}\1[ \t]*,?{_COMMENT}""")


def ids_of_lines(text: Characters, refused: RefusedTexts, header: int = 0) -> Iterator[list[str]]:
    """The ids of the lines; the line ``header`` is passed over. Raises InputError on a line without an end."""
    for number, lines in text.blocks():
        found: list[str] = []
        for offset, line in enumerate(lines):
            content = line.strip(BLANKS)
            if match := _LINE.fullmatch(content):
                found.append(match[1])
            elif match := _QUOTED.fullmatch(content):
                found.append(match[2])
            elif says_something(content) and number + offset != header:
                refused.add(f"line {number + offset}", content)
        yield found
