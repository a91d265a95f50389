"""The checks that compare with what was before: coverage of the view, and settled P&L."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from payout_pipeline.verdict import SHOWN_ROWS, Table, Value, Verdict
from payout_pipeline.verification import numbers
from payout_pipeline.verification.baseline import Measured, baseline, measure
from payout_pipeline.verification.numbers import Place
from payout_pipeline.warehouse.statements import statement
from payout_pipeline.words import counted, has, verb

REBUILD = (
    "materialize vw_resolutions_truth again (`dagster asset materialize -m payout_pipeline.definitions --select "
    "vw_resolutions_truth`)"
)


def coverage_before_after(place: Place) -> Verdict:
    """Conditions after are at least those before, and at least those accepted since."""
    now = measure(place.session, place.settings)
    before, accepted = baseline(place.settings)
    rows: list[tuple[Value, ...]] = []
    for label, at in (("Before", before), ("Accepted", accepted), ("After Goldsky", now)):
        if at is not None:
            cells = (at.market, at.external, at.either, 0 if at.no_view else at.view)
            rows.append((label, *("not measured" if cell is None else cell for cell in cells)))
    columns = ("status", "market_resolutions_final", "external table", "either", "in the view")
    floor = max([at.view or 0 for at in (before, accepted) if at is not None], default=0)
    problems: list[str] = []
    repair = f"Check {place.settings.truth_view} and its two tables, then {REBUILD}."
    if now.view is None:
        problems.append(now.view_fault or f"there is no view {place.settings.truth_view}")
    elif before is None:
        problems.append("the number of conditions before was never measured")
        repair = f"Do not create the view by hand; {REBUILD}, which measures before and after."
    elif now.view < floor:
        problems.append(f"{floor:,} before, {floor - now.view:,} lost")
        repair = (
            "Rows were removed from market_resolutions_final or from the external table: compare the columns of the "
            f"table, restore what is gone, then {REBUILD}. If the loss is right: `payout-pipeline verify --accept-loss`."
        )
    view = now.view or 0
    sentence = f"The view covers {counted(view, 'condition')}"
    if problems:
        sentence += f"; {problems[0]}"
    elif before is not None and before.no_view:
        sentence += " and is new"
    elif before is not None and before.view_fault:
        sentence += f"; before, it could not be read: {before.view_fault}"
    else:
        sentence += f"; {floor:,} before, {view - floor:,} gained"
    return Verdict(
        not problems,
        f"{sentence.rstrip('.')}.",
        floor,
        view,
        tables=(Table("coverage before and after", columns, tuple(rows)),),
        sql=statement("checks/coverage_before_after", **place.market_parts, **place.target_parts),
        repair=repair,
        facts={"gained": view - floor, "before": floor, "after": view},
    )


def settled_pnl(place: Place) -> Verdict:
    """Wallets with settled P&L and its total, before and after; redemptions are part of it; no wallet is paid twice."""
    view = place.settings.pnl_view
    now = numbers.settled_pnl(place.session, place.settings)
    if now.get("no_pnl"):
        sentence = f"There is no view {view}" + (
            " in the embedded database" if place.settings.embedded else ", or the user may not see it"
        )
        repair = f"Create {view}, GRANT SELECT on it, or set PAYOUT_PNL_VIEW (empty: no P&L check)."
        embedded = place.settings.embedded and not any(at and at.wallets for at in baseline(place.settings))
        return Verdict(
            False, f"{sentence}.", "a view of settled P&L", "none",
            repair=repair, nothing=embedded,
        )  # fmt: skip
    before, accepted = baseline(place.settings)
    floor = max([at.wallets or 0 for at in (before, accepted) if at is not None], default=0)
    redeemed = any(at.redemptions for at in (before, accepted) if at is not None)
    problems = _pnl_problems(now, floor, view, redeemed=redeemed)
    truth = numbers.view_conditions(place.session, place.settings)
    again = truth.get("view_rows", 0) - truth.get("view", 0)
    if again:
        doubled = f"{place.settings.truth_view} has {counted(again, 'row')} too many, and each pays its wallets twice"
        problems.insert(0, (doubled, f"See one_row_per_condition; {REBUILD}."))
    tables = _pnl_tables(now, before, accepted)
    sentence = (
        f"{counted(now['wallets'], 'wallet')} {has(now['wallets'])} settled P&L of {now['total']:,.2f} USD in total"
    )
    if before is not None and before.total is not None and before.wallets is not None:
        sentence += f" ({before.wallets:,} and {before.total:,.2f} USD before)"
    elif before is not None and before.pnl_fault:
        sentence += f" (before, it could not be read: {before.pnl_fault})"
    if problems:
        said = "; ".join(problem for problem, _ in problems)
        sentence = f"{said[0].upper()}{said[1:]}. {sentence}"
    return Verdict(
        not problems,
        f"{sentence.rstrip('.')}.",
        floor,
        now["wallets"],
        tables=tables,
        sql=now["sql"],
        repair=" ".join(dict.fromkeys(repair for _, repair in problems)),
        nothing=not problems and not now["rows"],
        facts={"total_settled_pnl": round(now["total"], 2), "paid twice": now["doubled"] + again},
    )


def _pnl_tables(now: Mapping[str, Any], before: Measured | None, accepted: Measured | None) -> tuple[Table, ...]:
    """Settled P&L of then and now, and the wallets that are paid again."""
    rows: list[tuple[Value, ...]] = []
    for label, wallets, total, paid in (
        *(
            (name, at.wallets, at.total, at.redemptions)
            for name, at in (("Before", before), ("Accepted", accepted))
            if at
        ),
        ("After Goldsky", now["wallets"], now["total"], now["redemptions"]),
    ):
        cells = (wallets, total, paid)
        shown = ["not measured" if c is None else round(c, 2) if isinstance(c, float) else c for c in cells]
        rows.append((label, *shown))
    columns = ("status", "wallets_with_settled_pnl", "total_settled_pnl", "redemption value")
    tables = [Table("settled P&L before and after", columns, tuple(rows))]
    if now["examples"]:
        tables.append(Table("wallets paid more than once", ("wallet", "rows"), tuple(now["examples"][:SHOWN_ROWS])))
    return tuple(tables)


def _pnl_problems(now: Mapping[str, Any], floor: int, view: str, *, redeemed: bool) -> list[tuple[str, str]]:
    """What is wrong with settled P&L, each with its repair; ``redeemed``: redemption values were part of it before."""
    problems: list[tuple[str, str]] = []
    definition = f"Correct the definition of {view}."
    if now["not_numbers"]:
        problems.append(
            (
                f"{counted(now['not_numbers'], 'row')} of {view} {verb(now['not_numbers'], 'hold')} NULL, NaN or infinity",
                definition,
            )
        )
    if now["without_wallet"]:
        problems.append(
            (f"{counted(now['without_wallet'], 'row')} of {view} {has(now['without_wallet'])} no wallet", definition)
        )
    if now["doubled"] > 0:
        example = f" (wallet {now['examples'][0][0]} has {now['examples'][0][1]} rows)" if now["examples"] else ""
        problems.append(
            (
                f"{counted(now['doubled'], 'row')} {verb(now['doubled'], 'pay')} a wallet again{example}",
                f"Where one_row_per_condition failed too, {REBUILD}; otherwise the definition of {view} joins something "
                "that has several rows a wallet.",
            )
        )
    if now["not_added_up"]:
        problems.append(
            (
                f"in {counted(now['not_added_up'], 'wallet')} the total is not trading plus redemption",
                f"Correct the definition of {view}: total_pnl = trading_pnl + redemption_pnl.",
            )
        )
    if now["wallets"] < floor:
        problems.append(
            (
                f"{floor - now['wallets']:,} of {counted(floor, 'wallet')} lost their settled P&L",
                "Compare coverage_before_after: conditions that left the view take their wallets along. If the loss is "
                "right: `payout-pipeline verify --accept-loss`.",
            )
        )
    elif redeemed and not now["redemptions"]:
        problems.append(("the redemption values that were part of it before are gone", definition))
    return problems
