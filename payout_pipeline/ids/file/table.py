"""The ids of a CSV table: of the one column whose name in the header says that it holds them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import NamedTuple

from payout_pipeline.errors import InputError
from payout_pipeline.ids.file.characters import BLOCK, Characters
from payout_pipeline.ids.text import BLANKS, ID_COLUMNS, RefusedTexts, normalise
from payout_pipeline.words import counted

_HEX_WITHIN = re.compile(r"[0-9a-fA-F]{64}")


class Header(NamedTuple):
    """``separator`` between the ``columns``; the ids are in the column ``at``, counted from 0."""

    separator: str
    columns: list[str]
    at: int


def header_of(text: Characters) -> Header | None:
    """The header, if the first line of ``text`` is one that names a column of ids.

    Raises InputError where it names several: which one is meant is not guessed.
    """
    found: list[Header] = []
    for separator in ",;\t":
        try:
            columns = [
                cell.strip(BLANKS) for cell in next(csv.reader([text.first], delimiter=separator, strict=True), [])
            ]
        except csv.Error:
            continue
        at = [position for position, column in enumerate(columns) if column in ID_COLUMNS]
        if len(at) > 1:
            raise InputError(
                f"{text.source}: the header in line {text.number} names {len(at)} columns of ids "
                f"({', '.join(columns[position] for position in at)}), and which one is meant is not guessed; keep one of them"
            )
        found += [Header(separator, columns, position) for position in at]
    # A line without a separator is one column, whichever it is read with.
    tables = [header for header in found if len(header.columns) > 1]
    return tables[0] if len(tables) == 1 else found[0] if found and not tables else None


def ids_of_table(text: Characters, header: Header, refused: RefusedTexts) -> Iterator[list[str]]:
    """The ids of the table's rows; raises InputError on a line without an end."""
    separator, columns, at = header
    lines = (f"{line}\n" for _, block in text.blocks() for line in block)
    rows = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    next(rows)
    found: list[str] = []
    while True:
        number = text.number + rows.line_num
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            refused.add(f"line {number}", None, f"no row of a table: {error}; is a quote not closed?")
            continue
        if not row:
            continue
        last = text.number + rows.line_num - 1
        if len(row) != len(columns):
            why = f"{counted(len(row), 'cell')}, where the header has {counted(len(columns), 'column')}"
            refused.add(f"line {number}", separator.join(row), why)
        elif last > number and any("\n" in cell and _HEX_WITHIN.search(cell) for cell in row):
            why = f"a quoted cell that goes on to line {last} has ids in it; is a quote not closed?"
            refused.add(f"line {number}", separator.join(row), why)
        elif condition_id := normalise(row[at]):
            found.append(condition_id)
        else:
            refused.add(f"line {number}", row[at])
        if len(found) >= BLOCK:
            yield found
            found = []
    yield found
