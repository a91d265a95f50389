"""What the truth view should hold, worked out from the two tables row by row, and compared with what it does hold.

The rules are those of the specification (one row per condition, market before external, normal form before other spellings,
``goldsky-api`` before other sources, then the latest, then the first by source name), written a second time in pandas, so that
an error in the view's SQL cannot hide in the check of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from payout_pipeline.verdict import SHOWN_ROWS
from payout_pipeline.warehouse.identifiers import quote_identifier
from payout_pipeline.warehouse.schema import Table, inspect_table
from payout_pipeline.warehouse.statements import Sql, statement
from payout_pipeline.warehouse.target import SOURCE
from payout_pipeline.warehouse.types import MAX_UINT64, element_type, integers, is_time, unwrap
from payout_pipeline.warehouse.view import normal_id

if TYPE_CHECKING:
    import pandas as pd

    from payout_pipeline.verification.numbers import Place

COLUMNS = ["condition_id", "vector", "denominator", "winning_index", "resolved_at", "source"]
VIEW_COLUMNS = ["condition_id", "payout_numerators", "payout_denominator", "winning_index", "resolved_at", "source"]
VIEW_TYPES = ["String", "Array(UInt64)", "UInt64", "Int32", "DateTime", "String"]
_SCALE = 1_000_000_000
_ROWS_AT_ONCE = 500_000
_REST = ("payout_numerators", "payout_denominator", "winning_index", "resolved_at")
_RECENT = ("fetched_at", "updated_at", "version")


@dataclass
class ViewComparison:
    """The view against its sources, over all slices. Counts are exact, lists hold the first differences.

    ``shape``: what the view is where it is no view of the six columns in their order, else empty.
    """

    shape: str = ""
    rows: int = 0
    expected: int = 0
    market: int = 0
    market_missing: int = 0
    overlap: int = 0
    differing: int = 0
    lost: int = 0
    foreign: int = 0
    changed: int = 0
    differences: list[tuple[str, str, str, str]] = field(default_factory=list)
    missing_market_ids: list[str] = field(default_factory=list)
    disagreements: list[tuple[str, str, str]] = field(default_factory=list)
    sql: str = ""


def compare_view(place: Place) -> ViewComparison:
    """Compare the view with what its sources say it should hold, in all six columns, both ways."""
    found = ViewComparison()
    found.shape = _shape(place)
    for pattern in _slices(place):
        _compare_slice(place, pattern, found)
    return found


def _shape(place: Place) -> str:
    """What the view is in place of a view with the six columns of these types in this order; empty where it is one."""
    table = inspect_table(place.session, place.view_name)
    if table is None:
        return "missing"
    if table.engine != "View":
        return f"a table of engine {table.engine}, which does not follow its sources"
    have = [(name, _plain(kind)) for name, kind in table.columns.items()]
    if have != list(zip(VIEW_COLUMNS, VIEW_TYPES, strict=True)):
        return f"one with the columns {', '.join(f'{name} {kind}' for name, kind in table.columns.items())}"
    return ""


def _plain(kind: str) -> str:
    return "DateTime" if is_time(kind) else unwrap(kind)


def _slices(place: Place) -> list[str]:
    """Slices of the ids that fit into memory, as patterns: all of them, or by their first one or two digits.

    The last one of several holds what does not begin with digits, so that no row is in none of them.
    """
    rows = sum(
        int(place.session.scalar(f"SELECT count() FROM {table.name.sql}", doing=f"counting {table.name}"))  # noqa: S608
        for table in (place.market, place.target.table)
    )
    digits = 0 if rows <= _ROWS_AT_ONCE else 1 if rows <= 16 * _ROWS_AT_ONCE else 2
    if not digits:
        return [""]
    others = f"^.{{0,{digits - 1}}}([^0-9a-f]|$)"
    return [*(f"^{number:0{digits}x}" for number in range(16**digits)), others]


def _compare_slice(place: Place, pattern: str, found: ViewComparison) -> None:
    import pandas as pd

    market = _side(place, place.market, pattern, shown_source=place.market.name.name)
    external = _side(place, place.target.table, pattern, shown_source=None)
    found.market += len(market)
    _compare_sources(market, external, found)
    expected = pd.concat([market, external[~external["condition_id"].isin(market["condition_id"])]])[COLUMNS]
    sql = statement("checks/view_equals_sources", view=place.view_name)
    found.sql = sql
    actual = place.session.arrow(sql, {"slice": pattern}, doing=f"reading {place.view_name}").to_pandas(
        use_threads=False
    )
    actual = actual.rename(columns={"id": "condition_id"})[COLUMNS]
    found.rows += len(actual)
    found.expected += len(expected)
    of_market = actual[actual["source"] == place.market.name.name]["condition_id"]
    absent = market[~market["condition_id"].isin(of_market)]["condition_id"]
    found.market_missing += len(absent)
    found.missing_market_ids += absent.head(SHOWN_ROWS - len(found.missing_market_ids)).tolist()
    _note_differences(expected, actual, found)


def _note_differences(expected: pd.DataFrame, actual: pd.DataFrame, found: ViewComparison) -> None:
    if expected.empty or actual.empty:  # columns of no rows have types of their own, which do not merge with others
        expected, actual = expected.astype(object), actual.astype(object)
    keys = [*COLUMNS, "copy"]
    both = expected.assign(copy=expected.groupby(COLUMNS, dropna=False).cumcount()).merge(
        actual.assign(copy=actual.groupby(COLUMNS, dropna=False).cumcount()), on=keys, how="outer", indicator=True
    )
    unequal = both[both["_merge"] != "both"]
    if not len(unequal):
        return
    lost = unequal[unequal["_merge"] == "left_only"].set_index("condition_id")
    extra = unequal[unequal["_merge"] == "right_only"].set_index("condition_id")
    for condition_id in sorted({str(i) for i in [*lost.index, *extra.index]}):
        is_lost, is_extra = condition_id in lost.index, condition_id in extra.index
        defect = "different" if is_lost and is_extra else "lost" if is_lost else "not in the sources"
        found.changed += defect == "different"
        found.lost += defect == "lost"
        found.foreign += defect == "not in the sources"
        if len(found.differences) < SHOWN_ROWS:
            wanted = _shown(lost.loc[[condition_id]]) if is_lost else ""
            stored = _shown(extra.loc[[condition_id]]) if is_extra else ""
            found.differences.append((condition_id, defect, wanted, stored))


def _shown(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{row['vector']}/{row['denominator']} {row['winning_index']} {row['resolved_at']} {row['source']}{more}"


def _compare_sources(market: pd.DataFrame, external: pd.DataFrame, found: ViewComparison) -> None:
    """Where Goldsky and the market table resolve the same condition: do they say the same, in lowest terms?"""
    ours = external[external["source"] == SOURCE]
    overlap = market.merge(ours, on="condition_id", suffixes=("_market", "_goldsky"))
    found.overlap += len(overlap)
    for row in overlap.itertuples(index=False):
        if not _same_shares(row.shares_market, row.shares_goldsky, exact=row.is_whole_market):
            found.differing += 1
            if len(found.disagreements) < SHOWN_ROWS:
                found.disagreements.append(
                    (
                        row.condition_id,
                        f"{row.vector_market}/{row.denominator_market}",
                        f"{row.vector_goldsky}/{row.denominator_goldsky}",
                    )
                )


def _same_shares(left: tuple[Fraction, ...], right: tuple[Fraction, ...], *, exact: bool) -> bool:
    if len(left) != len(right):
        return False
    if exact:
        return left == right
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) for a, b in zip(left, right, strict=True))


def _side(place: Place, table: Table, pattern: str, *, shown_source: str | None) -> pd.DataFrame:
    """One row per condition of ``table``; ``shown_source``: what the view names as its source, None for its own column."""
    import pandas as pd

    sql = _source_sql(table)
    frame = place.session.arrow(sql, {"slice": pattern}, doing=f"reading {table.name}").to_pandas(use_threads=False)
    frame["condition_id"] = frame["written"].str.lower().str.removeprefix("0x")
    kinds = (
        unwrap(element_type(table.columns["payout_numerators"])),
        unwrap(table.columns["payout_denominator"]),
    )
    known: dict[tuple[str, str], _Vector | None] = {}
    pairs = list(zip(frame["stored_vector"], frame["stored_denominator"], strict=True))
    for pair in set(pairs):
        known[pair] = _read_vector(*pair, kinds, external=shown_source is None)
    vectors = [known[pair] for pair in pairs]
    usable = pd.Series([vector is not None for vector in vectors], index=frame.index, dtype=bool)  # also of no rows
    frame = frame[usable].copy()
    kept = [vector for vector in vectors if vector is not None]
    frame["vector"] = [vector.text for vector in kept]
    frame["denominator"] = [str(vector.denominator) for vector in kept]
    frame["shares"] = [vector.shares for vector in kept]
    frame["is_whole"] = [vector.is_whole for vector in kept]
    if frame["winning_index"].isna().all():
        frame["winning_index"] = [str(vector.winner) for vector in kept]
    frame["rank_spelling"] = frame["written"] != frame["condition_id"]
    frame["rank_source"] = frame["stored_source"] != SOURCE
    order = ["condition_id", "rank_spelling", "rank_source", "recent", "stored_source", "stored_rest"]
    ascending = [True, True, True, False, True, True]
    frame = frame.sort_values(order, ascending=ascending, kind="stable").drop_duplicates("condition_id")
    frame["source"] = frame["stored_source"] if shown_source is None else shown_source
    return pd.DataFrame(frame[[*COLUMNS, "shares", "is_whole"]])


def _source_sql(table: Table) -> str:
    index = table.columns.get("winning_index")
    moment = table.columns.get("resolved_at")
    recent = ", ".join(f"m.{name} NULLS FIRST" for name in _RECENT if name in table.columns)
    return statement(
        "checks/source_rows",
        id=Sql(quote_identifier(table.id_column or "")),
        normal_id=normal_id(f"m.{table.id_column}"),
        winning_index=Sql(
            "toString(ifNull(m.winning_index, -1))" if index and integers(index) else "CAST(NULL, 'Nullable(String)')"
        ),
        resolved_at=Sql(
            "toInt64(ifNull(toUnixTimestamp(m.resolved_at), 0))" if moment and is_time(moment) else "toInt64(0)"
        ),
        source=Sql("ifNull(toString(m.source), '')" if "source" in table.columns else "''"),
        rest=Sql(", ".join(f"ifNull(toString(m.{name}), ''), '\\0'" for name in _REST if name in table.columns)),
        # Ranked by the database, so that numbers, times and text are each compared as what they are.
        recent=Sql(f"dense_rank() OVER (ORDER BY {recent})" if recent else "0"),
        table=table.name,
        final=table.final,
    )


@dataclass(frozen=True)
class _Vector:
    """A vector as the view shows it, and what it pays. ``is_whole``: it was stored without fractions."""

    text: str
    denominator: int
    shares: tuple[Fraction, ...]
    winner: int
    is_whole: bool


def _read_vector(vector: str, denominator: str | None, kinds: tuple[str, str], *, external: bool) -> _Vector | None:
    """The vector of a stored row; None for one that does not count: no denominator, negative, not finite, too large.

    ``kinds``: the types of the numerators and of the denominator. Fractions of float columns are shown times 10^9,
    numerators and denominator alike.
    """
    if denominator is None:
        return None
    numbers = [*_numbers(vector, kinds[0]), *_numbers(f"[{denominator}]", kinds[1])]
    if any(not math.isfinite(n) or n < 0 or n > MAX_UINT64 for n in numbers) or numbers[-1] == 0:
        return None
    *numerators, total = numbers
    if external and not sum(numerators):
        return None
    shares = tuple(Fraction(n) / Fraction(total) for n in numerators)
    is_whole = all(n == int(n) for n in numbers)
    if is_whole:
        shown, shown_total = [int(n) for n in numerators], int(total)
    else:
        shown = [round(min(n, 1e9) * _SCALE) for n in numerators]
        shown_total = round(min(total, 1e9) * _SCALE)
        if abs(sum(shown) - shown_total) <= len(shown):  # thirds sum to a hair less than 1
            shown_total = sum(shown)
    largest = max(numerators, default=0)
    winner = numerators.index(largest) if numerators.count(largest) == 1 else -1
    return _Vector(json.dumps(shown, separators=(",", ":")), shown_total, shares, winner, is_whole)


def _numbers(text: str, kind: str) -> list[Any]:
    """The numbers of ClickHouse's text of an array of ``kind``; NULL counts as 0, as in the view.

    The text of a float is the shortest that identifies it, and need not be its value.
    """
    numbers = json.loads(text.replace("NULL", "0").replace("nan", "NaN").replace("inf", "Infinity"))
    if kind == "Float32":
        import numpy as np

        return [float(np.float32(number)) for number in numbers]
    return [float(number) for number in numbers] if kind == "Float64" else list(numbers)
