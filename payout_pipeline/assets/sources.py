"""The tables and the file around the pipeline, for lineage. They are the user's: nothing here materializes them."""

from __future__ import annotations

import dagster as dg

from payout_pipeline.settings import Settings


def external_specs(settings: Settings) -> list[dg.AssetSpec]:
    """The input file, the user's resolutions and, where it is configured, the P&L view."""
    specs = [] if settings.condition_ids_query else [_input_file(settings)]
    specs.append(
        dg.AssetSpec(
            "market_resolutions_final",
            description=(
                f"The warehouse's own resolutions (`{settings.market_resolutions_table}`). They come first in the truth view; "
                "Goldsky's vectors fill what is missing."
            ),
            group_name="payouts",
            kinds={"clickhouse", "table"},
            owners=["team:analytics"],
            metadata={"dagster/table_name": settings.market_resolutions_table},
        )
    )
    if settings.pnl_view:
        specs.append(
            dg.AssetSpec(
                "vw_wallet_pnl_settled",
                deps=["vw_resolutions_truth"],
                description=(
                    f"Settled P&L a wallet (`{settings.pnl_view}`), which reads the truth view: every doubled row there "
                    "pays a wallet twice."
                ),
                group_name="payouts",
                kinds={"clickhouse", "view"},
                owners=["team:trading"],
                metadata={"dagster/table_name": settings.pnl_view},
            )
        )
    return specs


def _input_file(settings: Settings) -> dg.AssetSpec:
    return dg.AssetSpec(
        "condition_ids",
        description=(
            f"The condition ids without a payout vector: `{settings.condition_ids_file}`. `0x`, upper case and duplicates are "
            "normalised; anything else is refused with its place."
        ),
        group_name="payouts",
        kinds={"file"},
        owners=["team:data-engineering"],
    )
