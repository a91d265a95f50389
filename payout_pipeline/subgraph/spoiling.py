"""What faults do to an answer: rows added, changed or left out, and what ``_meta`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import orjson

from payout_pipeline.subgraph.engine import error_body
from payout_pipeline.subgraph.faults import OF_ROWS, Fault

Row = dict[str, Any]


def spoil(body: dict[str, Any], asked: Mapping[str, Sequence[str]], faults: Iterable[Fault]) -> dict[str, Any]:
    """The body that is served in the place of ``body``. ``asked``: response key of each list → ids that it names."""
    for fault in faults:
        data = body.get("data")
        if data is None:
            break
        _spoil_meta(fault, data.get("_meta"))
        if fault.kind == "failed":
            shown = {key: data[key] for key in data if key in ("_meta", "__schema", "__type")}
            body = {**({"data": shown} if shown else {}), **error_body("indexing_error")}
        for number, (key, ids) in enumerate(asked.items()):
            if fault.options.get("alias", number) == number:
                if fault.kind == "missing_alias":
                    data.pop(key, None)
                elif fault.kind in OF_ROWS and key in data:
                    data[key] = _rows(fault, ids, data[key])
    return body


def _spoil_meta(fault: Fault, meta: dict[str, Any] | None) -> None:
    if meta is None:
        return
    if fault.kind in ("failed", "indexing_errors"):
        meta["hasIndexingErrors"] = True
    elif fault.kind == "deployment":
        meta["deployment"] = fault.options["deployment"]
    elif fault.kind == "stale_head" and meta["block"].get("timestamp"):
        meta["block"]["timestamp"] -= fault.options.get("seconds", 86_400)


def _rows(fault: Fault, asked: Sequence[str], rows: list[Row]) -> list[Row]:
    """Of a list that was not ``asked`` for by ids, rows are capped and rewritten, but neither added nor left out."""
    if fault.kind == "page_cap":
        return rows[: fault.options.get("rows", 100)]
    if fault.kind == "raw":
        return [{**row, **_raw(row, fault.options["fields"].get(row["id"], {}))} for row in rows]
    return _ROW_FAULTS[fault.kind](asked, rows) if asked and rows else rows


def _raw(row: Row, fields: Mapping[str, Any]) -> Row:
    given = {name: value for name, value in fields.items() if name in row}
    return {name: orjson.Fragment(value) if isinstance(value, bytes) else value for name, value in given.items()}


def _unasked(asked: Sequence[str]) -> str:
    """An id of the right form that is not among those asked for."""
    return next(identity for number in count() if (identity := f"0x{number:064x}") not in asked)


_ROW_FAULTS: dict[str, Callable[[Sequence[str], list[Row]], list[Row]]] = {
    "foreign_id": lambda asked, rows: [*rows[:-1], {**rows[-1], "id": _unasked(asked)}],
    "extra_id": lambda asked, rows: [*rows, {**rows[-1], "id": _unasked(asked)}],
    "duplicate_id": lambda _asked, rows: [rows[0], *rows],
    "upper_case_id": lambda _asked, rows: [{**rows[0], "id": "0x" + rows[0]["id"][2:].upper()}, *rows[1:]],
    "malformed_id": lambda _asked, rows: [{**rows[0], "id": "0xnot-an-id"}, *rows[1:]],
    "omit_id": lambda _asked, rows: rows[1:],
}
