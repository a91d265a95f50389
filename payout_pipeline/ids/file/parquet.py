"""The ids of a Parquet file: of the one column that is named so, or of the only column that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from payout_pipeline.errors import InputError
from payout_pipeline.ids.file.characters import BLOCK
from payout_pipeline.ids.text import ID_BYTES, ID_COLUMNS, RefusedTexts, normalise, safe_excerpt
from payout_pipeline.scrub import excerpt

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_MAGIC = b"PAR1"
_READ_BYTES = 1 << 20
_SHOWN_COLUMNS = 10
# 32 bytes that are all hex digits are half of an id that was written as text.
_HEX_TEXT = re.compile(rb"[0-9a-fA-F]{32}")


def ids_of_parquet(raw: IO[bytes], source: str, refused: RefusedTexts) -> Iterator[list[str]]:
    """The ids of the rows. Raises InputError where there is no such column, or the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # Without a buffer size a whole row group would be in memory.
        file = pq.ParquetFile(raw, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True)
        column = _column(file.schema_arrow, source)
        for batch in file.iter_batches(
            BLOCK, use_threads=False, columns=[column] if len(file.schema_arrow) > 1 else None
        ):
            found: list[str] = []
            for value in batch.column(0).to_pylist():
                number += 1
                text = _text_of(value)
                condition_id = None if text is None else normalise(text)
                if condition_id:
                    found.append(condition_id)
                else:
                    refused.add(f"row {number}", text, "" if text is not None else f"{column} is NULL")
            yield found
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InputError(
            f"{source} is a damaged or cut-off Parquet file ({excerpt(str(error))}); make it again"
        ) from error


def _text_of(value: str | bytes | None) -> str | None:
    """The text of a value; of 32 bytes that are no text the hex digits."""
    if value is None or isinstance(value, str):
        return value
    if len(value) == ID_BYTES and not _HEX_TEXT.fullmatch(value):
        return value.hex()
    return value.decode("utf-8", "surrogateescape")


def _column(schema: pa.Schema, source: str) -> str:
    """The name of the column of ids. Raises InputError where it is not clear which one, or where it holds no text."""
    import pyarrow.types as kinds

    named = [name for name in schema.names if name in ID_COLUMNS]
    names = named or schema.names
    if len(names) != 1:
        problem = (
            f"{len(named)} columns of ids, and which one is meant is not guessed: "
            if named
            else f"{len(names)} columns and none of the name {', '.join(ID_COLUMNS)}: "
        )
        listed = ", ".join(map(safe_excerpt, names[:_SHOWN_COLUMNS])) + (", …" if len(names) > _SHOWN_COLUMNS else "")
        raise InputError(f"{source} has {problem}{listed}; write it with one column {ID_COLUMNS[0]}")
    kind: Any = schema.field(names[0]).type
    stored = kind.value_type if kinds.is_dictionary(kind) else kind
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    if not any(
        is_kind(stored) for is_kind in (*texts, kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary)
    ):
        raise InputError(
            f"{source}: the column {safe_excerpt(names[0])} is of type {excerpt(str(kind), 80)}; read are text (64 hex digits) "
            f"and {ID_BYTES} bytes; convert it"
        )
    return str(names[0])
