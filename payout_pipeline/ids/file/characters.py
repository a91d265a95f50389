"""The characters of a file in parts, so that a large one is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from payout_pipeline.errors import InputError
from payout_pipeline.ids.text import BLANKS, REPAIR, safe_excerpt

READ_CHARACTERS = 1 << 20
LONGEST_LINE = 1 << 20
BLOCK = 10_000  # ids
HEX = "(?:0[xX])?([0-9a-fA-F]{64})"


class Characters:
    """The text of a file, whose lines end with ``\\n``, from its first line on that is neither blank nor a comment.

    ``number`` is that of this line, ``first`` its beginning, ``chunks`` everything from there on.
    """

    def __init__(self, read: Callable[[int], str], source: str) -> None:
        """``read(n)`` returns the next n characters at most, none at the end; ``source`` names the file in messages."""
        chunks = iter(lambda: read(READ_CHARACTERS), "")
        self.source, self.number, self.first = source, 1, ""
        head = ""
        for chunk in chunks:
            head += chunk
            *lines, rest = head.split("\n")
            skipped = next((at for at, line in enumerate(lines) if says_something(line)), None)
            if skipped is not None:
                self.number += skipped
                self.first, head = lines[skipped], "\n".join([*lines[skipped:], rest])
                break
            self.number += len(lines)
            self.first = head = rest
            if len(rest) > LONGEST_LINE:
                break
        self.chunks = chain((head,), chunks)

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """Whole lines, many at a time, with the number of the first one. Raises InputError on one without an end."""
        number, rest = self.number, ""
        for chunk in self.chunks:
            lines = (rest + chunk).split("\n")
            rest = lines.pop()
            yield number, lines
            number += len(lines)
            if len(rest) > LONGEST_LINE:
                raise InputError(
                    f"{self.source}: line {number} is longer than {LONGEST_LINE:,} characters and begins with "
                    f"{safe_excerpt(rest)}; this is no list of ids; {REPAIR}"
                )
        yield number, [rest]


def says_something(line: str) -> bool:
    """Whether a line is neither blank nor a comment."""
    text = line.strip(BLANKS)
    return bool(text) and not text.startswith("#")
