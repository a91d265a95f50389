"""``compare_view`` and the view agree on tables of every shape that is handled, and each single change of a view row is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payout_pipeline.verification.expected_view import VIEW_COLUMNS, ViewComparison, compare_view
from payout_pipeline.verification.numbers import Place
from payout_pipeline.warehouse.view import rebuild_view
from payout_pipeline_tests.warehouse_fixtures import World, condition

pytestmark = pytest.mark.parametrize("world", ["embedded"], indirect=True)

VIEW = "{db}_clean.vw_resolutions_truth"
# Type → literals, each later than the one before it.
MOMENTS = {
    "UInt64": ["0", "9", "10", "9223372036854775808", "18446744073709551615"],
    "Int32": ["-10", "-9", "0", "9", "10"],
    "Nullable(Int16)": ["NULL", "-1", "0", "1"],
    "Float64": ["nan", "-1.5", "9", "10"],
    "String": ["''", "'10'", "'9'", "'v2'"],
    "Date": ["'2025-01-09'", "'2025-01-10'", "'2025-10-01'"],
    "DateTime": ["'1970-01-01 00:00:00'", "'2025-01-09 00:00:00'", "'2025-01-10 00:00:00'"],
    "DateTime64(3, 'UTC')": ["'2025-01-09 00:00:00.001'", "'2025-01-09 00:00:00.010'"],
    "DateTime64(9, 'UTC')": ["'2025-01-09 00:00:00.000000001'", "'2025-01-09 00:00:00.000000002'"],
}
# Engines take unsigned integers, dates and times as versions.
VERSIONS = ["UInt64", "DateTime", "DateTime64(3, 'UTC')"]
TIMES = ["DateTime", "Nullable(DateTime)", "DateTime64(3)", "Nullable(DateTime64(6, 'UTC'))"]
WHOLE = [("[1, 0]", "1"), ("[0, 1]", "1"), ("[0, 10]", "10"), ("[3, 4]", "7"), ("[1, 1, 1]", "3"), ("[5]", "5")]
USELESS = [("[0, 0]", "1"), ("[]", "1"), ("[7, 7]", "0")]
NEGATIVE = [("[-1, 2]", "1"), ("[1, 1]", "-2")]
LARGE = [
    ("[16777217, 1]", "16777218"),
    ("[9007199254740993, 0]", "9007199254740993"),
]
FRACTIONS = [
    ("[0.54, 0.46]", "1"),
    ("[0.3333333333, 0.3333333333, 0.3333333333]", "1"),
    ("[0.50000000001, 0.49999999999]", "1"),
    ("[2.5, 7.5]", "10"),
    ("[0.5, nan]", "1"),
    ("[inf, 0.5]", "1"),
    ("[1e30, 0.5]", "1"),
    ("[18446744073709549568, 2]", "4"),
]


@dataclass(frozen=True)
class MadeTable:
    """A table and its rows: ``columns`` name → type, ``rows`` literals in the order of the columns."""

    columns: dict[str, str]
    engine: str
    rows: list[tuple[str, ...]]

    def create(self, world: World, name: str) -> None:
        columns = ", ".join(f"{column} {kind}" for column, kind in self.columns.items())
        world.run(f"DROP TABLE IF EXISTS {name}", f"CREATE TABLE {name} ({columns}) ENGINE = {self.engine}")
        for row in self.rows:  # one insert a row: unmerged parts
            world.run(f"INSERT INTO {name} VALUES ({', '.join(row)})")


def _vectors(numerators: str, denominator: str) -> list[tuple[str, str]]:
    """Vectors that columns of these types hold; no two with the same numerators."""
    kinds = numerators + denominator
    found = [*WHOLE, *USELESS]
    if "UInt" not in kinds:
        found += NEGATIVE
    if "8" not in kinds:
        found += LARGE + ([] if "Float" in kinds else [("[18446744073709551615, 0]", "1")])
    return found + (FRACTIONS if "Float" in numerators else [])


@st.composite
def _spelled(draw: st.DrawFn, kind: str) -> str:
    number, spelling = draw(st.integers(0, 2)), draw(st.sampled_from(["plain", "plain", "upper", "0x", "0X"]))
    name = condition(number)
    if spelling in ("0x", "0X") and kind.startswith("FixedString"):
        spelling = "plain"
    return {"plain": f"'{name}'", "upper": f"'{name.upper()}'", "0x": f"'0x{name}'", "0X": f"'0X{name.upper()}'"}[
        spelling
    ]


@st.composite
def _rows(draw: st.DrawFn, columns: dict[str, str], sources: list[str]) -> list[tuple[str, ...]]:
    """Rows of a few conditions, of which several may be equal in all that decides."""
    kinds = columns["payout_numerators"], columns["payout_denominator"]
    vectors = _vectors(*kinds)
    nullable = "Nullable" in kinds[0]
    made = []
    for _ in range(draw(st.integers(0, 6))):
        numerators, denominator = draw(st.sampled_from(vectors))
        if nullable and draw(st.booleans()):
            numerators = numerators.replace("1, 0]", "1, NULL]")
        row: dict[str, str] = {"payout_numerators": numerators, "payout_denominator": denominator}
        for name, kind in columns.items():
            if name in ("condition_id", "condition_id_norm"):
                row[name] = draw(_spelled(kind))
            elif name == "source":
                row[name] = f"'{draw(st.sampled_from(sources))}'"
            elif name in ("fetched_at", "updated_at", "version"):
                row[name] = draw(st.sampled_from(MOMENTS[kind]))
        row["winning_index"] = str(draw(st.integers(0, 2)))
        moments = ["'1970-01-01 00:00:00'", "'2025-03-01 12:00:00'", "'2025-03-02 12:00:00'"]
        row["resolved_at"] = draw(st.sampled_from(moments))
        made.append(tuple(row[name] for name in columns))
    return made


@st.composite
def markets(draw: st.DrawFn) -> MadeTable:
    """The user's table: few columns are needed, and their types are many."""
    id_column = draw(st.sampled_from(["condition_id", "condition_id_norm"]))
    integer = st.sampled_from(["UInt8", "Int32", "UInt64", "Int256", "Nullable(UInt8)", "Nullable(Int64)"])
    number = integer | st.sampled_from(["Float32", "Float64"])
    columns = {
        id_column: draw(st.sampled_from(["String", "FixedString(64)", "LowCardinality(String)"])),
        "payout_numerators": f"Array({draw(number)})",
        "payout_denominator": draw(number),
    }
    columns |= draw(_some({"winning_index": ["Int32", "UInt16", "Nullable(Int64)"], "resolved_at": TIMES}))
    columns |= draw(_some({"source": ["String", "LowCardinality(String)", "Nullable(String)"]}))
    columns |= draw(_some({name: list(MOMENTS) for name in ("fetched_at", "updated_at", "version")}))
    by = next((name for name in ("fetched_at", "updated_at", "version") if columns.get(name) in VERSIONS), "")
    engine = draw(
        st.sampled_from(["MergeTree ORDER BY tuple()", f"ReplacingMergeTree({by}) ORDER BY {id_column}"]),
    )
    return MadeTable(columns, engine, draw(_rows(columns, ["goldsky-api", "a", "b"])))


@st.composite
def external_tables(draw: st.DrawFn) -> MadeTable:
    """The table of payouts in the shapes that the pipeline writes to."""
    sources = draw(st.sampled_from(["String", "LowCardinality(String)", "Enum8('goldsky-api' = 2, 'a' = 1, 'b' = 3)"]))
    columns = {
        "condition_id": draw(st.sampled_from(["String", "FixedString(64)", "LowCardinality(String)"])),
        "payout_numerators": draw(st.sampled_from(["Array(UInt8)", "Array(Int64)", "Array(UInt64)", "Array(UInt256)"])),
        "payout_denominator": draw(st.sampled_from(["UInt8", "Int64", "UInt64", "Int256"])),
        "winning_index": draw(st.sampled_from(["Int8", "Int32", "Int64"])),
        "resolved_at": draw(st.sampled_from(TIMES)),
        "source": sources,
    }
    columns |= draw(_some({"fetched_at": ["DateTime", "DateTime64(3, 'UTC')", "DateTime64(9, 'UTC')"]}))
    columns |= draw(_some({"version": ["UInt64"], "updated_at": ["DateTime"]}))
    by = draw(st.sampled_from(["", *(name for name in ("fetched_at", "version") if name in columns)]))
    key = draw(st.sampled_from(["condition_id", "(condition_id)", "(condition_id, source)", "(source, condition_id)"]))
    engine = f"ReplacingMergeTree({by}) ORDER BY {key}"
    columns = {name: kind + (" DEFAULT 0" if name == "version" else "") for name, kind in columns.items()}
    plain = {name: kind.removesuffix(" DEFAULT 0") for name, kind in columns.items()}
    if "updated_at" in columns:
        columns["updated_at"] += " DEFAULT now()"
    return MadeTable(columns, engine, draw(_rows(plain, ["goldsky-api", "a", "b"])))


@st.composite
def _some(draw: st.DrawFn, kinds: dict[str, list[str]]) -> dict[str, str]:
    """A part of these columns, each of one of its types."""
    return {name: draw(st.sampled_from(of)) for name, of in kinds.items() if draw(st.booleans())}


def compare(world: World) -> ViewComparison:
    with world.session() as session:
        return compare_view(Place(session, world.settings))


def rebuild(world: World, market: MadeTable, external: MadeTable) -> None:
    market.create(world, "{db}.market_resolutions_final")
    external.create(world, "{db}.resolutions_external_ingest")
    with world.session() as session:
        rebuild_view(session, world.settings)


def equal(world: World, market: MadeTable, external: MadeTable) -> None:
    """The rebuilt view has no difference from what its sources say."""
    rebuild(world, market, external)
    found = compare(world)
    assert (found.shape, found.differences, found.market_missing) == ("", [], 0)
    assert found.rows == found.expected


# What is done to one row of the view → how many conditions are then different, lost, not in the sources.
CHANGES = {
    "condition_id": ("repeat('ab', 32) AS condition_id", (0, 1, 1)),
    "payout_numerators": ("arrayPushBack(payout_numerators, toUInt64(0)) AS payout_numerators", (1, 0, 0)),
    "payout_denominator": ("payout_denominator + 1 AS payout_denominator", (1, 0, 0)),
    "winning_index": ("toInt32(winning_index + 1) AS winning_index", (1, 0, 0)),
    "resolved_at": ("ifNull(resolved_at, toDateTime(0, 'UTC')) + 1 AS resolved_at", (1, 0, 0)),
    "source": ("concat(source, '-') AS source", (1, 0, 0)),
    "dropped": ("", (0, 1, 0)),
    "doubled": ("*", (0, 0, 1)),
    "foreign": ("repeat('cd', 32) AS condition_id", (0, 0, 1)),
}


def change_one_row(world: World, change: str, condition_id: str) -> None:
    """Put a view in place of the truth view that differs from ``frozen`` in one thing."""
    columns = ", ".join(VIEW_COLUMNS)
    types = "CAST(payout_denominator, 'UInt64') AS payout_denominator"
    one, others = f"condition_id = '{condition_id}'", f"condition_id != '{condition_id}'"
    replaced = CHANGES[change][0]
    parts = [f"SELECT {columns} FROM {{db}}.frozen" + ("" if change in ("doubled", "foreign") else f" WHERE {others}")]
    if change == "doubled":
        parts.append(f"SELECT {columns} FROM {{db}}.frozen WHERE {one}")
    elif change != "dropped":
        parts.append(
            f"SELECT {columns} FROM (SELECT * REPLACE ({replaced}) FROM (SELECT * FROM {{db}}.frozen WHERE {one}))"
        )
    select = f"SELECT * REPLACE ({types}) FROM ({' UNION ALL '.join(parts)})"
    world.run(f"CREATE OR REPLACE VIEW {VIEW} AS {select}")


def freeze(world: World) -> list[str]:
    """Keep the view's rows in a table; the conditions."""
    world.run("DROP TABLE IF EXISTS {db}.frozen")
    world.run(f"CREATE TABLE {{db}}.frozen ENGINE = MergeTree ORDER BY condition_id AS SELECT * FROM {VIEW}")
    return sorted(row[0] for row in world.read("SELECT condition_id FROM {db}.frozen"))


SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
few = settings(max_examples=5, deadline=None, suppress_health_check=SUPPRESSED)
many = settings(max_examples=60, deadline=None, suppress_health_check=SUPPRESSED)


@few
@given(market=markets(), external=external_tables())
def test_a_rebuilt_view_equals_its_sources_whatever_the_tables_are(
    world: World, market: MadeTable, external: MadeTable
) -> None:
    equal(world, market, external)


@pytest.mark.slow
@pytest.mark.timeout(600)
@many
@given(market=markets(), external=external_tables())
def test_a_rebuilt_view_equals_its_sources_in_many_tables(world: World, market: MadeTable, external: MadeTable) -> None:
    equal(world, market, external)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(many, max_examples=15)
@given(data=st.data(), market=markets(), external=external_tables())
def test_each_single_change_of_a_row_is_found_in_many_tables(
    world: World, data: st.DataObject, market: MadeTable, external: MadeTable
) -> None:
    rebuild(world, market, external)
    conditions = freeze(world)
    if not conditions:
        return
    row = data.draw(st.sampled_from(conditions))
    for change, (_, counts) in CHANGES.items():
        change_one_row(world, change, row)
        found = compare(world)
        assert (found.shape, found.changed, found.lost, found.foreign) == ("", *counts), change


GUIDE = {
    "condition_id": "String",
    "payout_numerators": "Array(UInt64)",
    "payout_denominator": "UInt64",
    "winning_index": "Int32",
    "resolved_at": "Nullable(DateTime)",
    "source": "String",
}
NO_EXTERNAL = MadeTable(GUIDE, "ReplacingMergeTree ORDER BY condition_id", [])
ID = f"'{condition(1)}'"
UPPER, WITH_0X = f"'{condition(1).upper()}'", f"'0x{condition(1)}'"


def test_each_single_change_of_a_row_is_found(world: World) -> None:
    market = MadeTable(
        GUIDE,
        "MergeTree ORDER BY condition_id",
        [
            (ID, "[1, 0]", "1", "0", "NULL", "'x'"),
            (f"'{condition(2)}'", "[0, 1]", "1", "1", "'2025-01-01 00:00:00'", "'x'"),
        ],
    )
    external = MadeTable(
        GUIDE,
        NO_EXTERNAL.engine,
        [
            (f"'{condition(3)}'", "[27, 23]", "50", "0", "'2025-01-01 00:00:00'", "'goldsky-api'"),
            (f"'{condition(4)}'", "[1, 1]", "2", "-1", "NULL", "'other'"),
        ],
    )
    equal(world, market, external)
    freeze(world)
    for row in (condition(2), condition(3)):  # one of each source
        for change, (_, counts) in CHANGES.items():
            change_one_row(world, change, row)
            found = compare(world)
            assert (found.shape, found.changed, found.lost, found.foreign) == ("", *counts), (change, row)
            assert found.differences


def _market(columns: dict[str, str], *rows: tuple[str, ...]) -> MadeTable:
    return MadeTable({"condition_id": "String", **columns}, "MergeTree ORDER BY tuple()", list(rows))


WHOLE_NUMBERS = {"payout_numerators": "Array(UInt64)", "payout_denominator": "UInt64"}
ONE, TWO = ("[1, 0]", "1"), ("[0, 1]", "1")
FIXED: dict[str, tuple[MadeTable, tuple[Any, ...]]] = {
    "version 10 is later than 9": (
        _market({**WHOLE_NUMBERS, "version": "UInt32"}, (ID, *ONE, "9"), (ID, *TWO, "10")),
        ((0, 1), 1, 1),
    ),
    "version -9 is later than -10": (
        _market({**WHOLE_NUMBERS, "version": "Int32"}, (ID, *ONE, "-10"), (ID, *TWO, "-9")),
        ((0, 1), 1, 1),
    ),
    "a version beyond Int64 is later than one within": (
        _market(
            {**WHOLE_NUMBERS, "version": "UInt64"},
            (ID, *ONE, "9223372036854775807"),
            (ID, *TWO, "18446744073709551615"),
        ),
        ((0, 1), 1, 1),
    ),
    "the second of two version columns decides where the first is equal": (
        _market(
            {**WHOLE_NUMBERS, "updated_at": "UInt32", "version": "UInt32"}, (ID, *ONE, "1", "12"), (ID, *TWO, "11", "2")
        ),
        ((0, 1), 1, 1),
    ),
    "a version of text is compared as text": (
        _market({**WHOLE_NUMBERS, "version": "String"}, (ID, *ONE, "'v10'"), (ID, *TWO, "'v9'")),
        ((0, 1), 1, 1),
    ),
    "a nanosecond decides": (
        _market(
            {**WHOLE_NUMBERS, "updated_at": "DateTime64(9)"},
            (ID, *ONE, "'2025-01-01 00:00:00.000000001'"),
            (ID, *TWO, "'2025-01-01 00:00:00.000000002'"),
        ),
        ((0, 1), 1, 1),
    ),
    "Float32 numerators beside an exact denominator above 2^24": (
        _market(
            {"payout_numerators": "Array(Float32)", "payout_denominator": "UInt64"}, (ID, "[16777216, 1]", "16777217")
        ),
        ((16_777_216, 1), 16_777_217, 0),
    ),
    "exact numerators above 2^24 beside a Float32 denominator": (
        _market(
            {"payout_numerators": "Array(UInt64)", "payout_denominator": "Float32"}, (ID, "[16777217, 1]", "16777218")
        ),
        ((16_777_217, 1), 16_777_218, 0),
    ),
    "a Float64 above 2^53, whose text is shorter than its value": (
        _market(
            {"payout_numerators": "Array(Float64)", "payout_denominator": "Float64"},
            (ID, "[18446744073709549568, 0]", "18446744073709549568"),
        ),
        ((18_446_744_073_709_549_568, 0), 18_446_744_073_709_549_568, 0),
    ),
    "a tie that the stored text decides, where the shown text would decide otherwise": (
        _market(
            {"payout_numerators": "Array(Float64)", "payout_denominator": "Float64"},
            (ID, "[0.9, 0.1]", "1"),
            (ID, "[1, 0]", "1"),
            (UPPER, "[0, 1]", "1"),
        ),
        ((900_000_000, 100_000_000), 1_000_000_000, 0),
    ),
    "fractions without a winning_index: the larger one wins by a hair that is not shown": (
        _market(
            {"payout_numerators": "Array(Float64)", "payout_denominator": "Float64"},
            (ID, "[0.49999999999, 0.50000000001]", "1"),
        ),
        ((500_000_000, 500_000_000), 1_000_000_000, 1),
    ),
    "goldsky-api before other sources, also within the market table": (
        _market(
            {**WHOLE_NUMBERS, "source": "String", "version": "UInt8"},
            (ID, *ONE, "'a'", "2"),
            (ID, *TWO, "'goldsky-api'", "1"),
        ),
        ((0, 1), 1, 1),
    ),
    "the first source by name, also within the market table": (
        _market({**WHOLE_NUMBERS, "source": "String"}, (ID, *ONE, "'b'"), (ID, *TWO, "'a'")),
        ((0, 1), 1, 1),
    ),
    "equal in all that has a precedence: by the rest, so that it is always the same row": (
        _market(
            {**WHOLE_NUMBERS, "winning_index": "Nullable(Int32)"},
            (ID, "[1, 0]", "2", "1"),
            (ID, "[1, 0]", "2", "0"),
            (ID, "[1, 0]", "3", "NULL"),
        ),
        ((1, 0), 2, 0),
    ),
    "a market row without a source is one of another source": (
        _market(
            {**WHOLE_NUMBERS, "source": "Nullable(String)", "version": "UInt8"},
            (ID, *ONE, "'a'", "1"),
            (ID, *TWO, "NULL", "2"),
        ),
        ((0, 1), 1, 1),
    ),
}


@pytest.mark.parametrize(("market", "row"), FIXED.values(), ids=FIXED.keys())
def test_of_several_rows_of_a_condition_the_check_expects_the_one_that_the_precedence_names(
    world: World, market: MadeTable, row: tuple[Any, ...]
) -> None:
    equal(world, market, NO_EXTERNAL)
    shown = f"SELECT payout_numerators, payout_denominator, winning_index FROM {VIEW}"
    assert world.read(shown) == {row: 1}


def test_a_version_beside_the_time_of_the_fetch_decides_between_spellings_of_one_id(world: World) -> None:
    rows = [
        (UPPER, *ONE, "0", "NULL", "'a'", "9"),
        (WITH_0X, *TWO, "1", "NULL", "'a'", "10"),
    ]
    external = MadeTable({**GUIDE, "version": "UInt64 DEFAULT 0"}, NO_EXTERNAL.engine, rows)
    equal(world, _market(WHOLE_NUMBERS), external)
    assert world.read(f"SELECT winning_index FROM {VIEW}") == {(1,): 1}
