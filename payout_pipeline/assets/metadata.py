"""What a materialization says about itself: plain summaries as typed Dagster metadata. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from payout_pipeline.scrub import escape_controls, scrub

if TYPE_CHECKING:
    from payout_pipeline.fetch_summary import FetchSummary
    from payout_pipeline.ids.take import TakeSummary
    from payout_pipeline.ingest import IngestSummary
    from payout_pipeline.truth import TruthSummary
    from payout_pipeline.what_changed import WhatChanged

Metadata = Mapping[str, Any]


def _columns(*columns: tuple[str, str, str]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, kind, description) for name, kind, description in columns])


LEDGER_COLUMNS = _columns(
    ("condition_id", "string", "64 lower-case hex digits, without 0x"),
    ("status", "string", "resolved, unresolved, absent, invalid or failed"),
    ("payouts", "string", "the vector as answered (JSON)"),
    ("payout_numerators", "list<uint64>", "integers in lowest terms; null unless resolved"),
    ("payout_denominator", "uint64", "the sum of the numerators"),
    ("winning_index", "int32", "position of the largest payout; -1 where several share it"),
    ("resolved_at", "timestamp", "from the subgraph where it has one, never the time of the fetch"),
    ("block_number", "uint64", "the block that was asked"),
    ("fetched_at", "timestamp", "when the answer came (UTC)"),
    ("error", "string", "why the id is invalid or failed"),
)
TARGET_COLUMNS = _columns(
    ("condition_id", "String", "64 lower-case hex digits, without 0x"),
    ("payout_numerators", "Array(UInt64)", "integers in lowest terms whose sum is the denominator"),
    ("payout_denominator", "UInt64", "the sum of the numerators"),
    ("winning_index", "Int32", "position of the largest payout; -1 where several share it"),
    ("resolved_at", "Nullable(DateTime('UTC'))", "NULL where the subgraph does not say"),
    ("source", "LowCardinality(String)", "goldsky-api"),
    ("fetched_at", "DateTime64(3, 'UTC')", "version of the row"),
    ("block_number", "UInt64", "the block that was asked"),
)
VIEW_COLUMNS = _columns(
    ("condition_id", "String", "one row per condition, lower case, without 0x"),
    ("payout_numerators", "Array", "as stored by its source"),
    ("payout_denominator", "", "above 0"),
    ("winning_index", "Int32", "-1 where several outcomes share the largest payout"),
    ("resolved_at", "Nullable(DateTime('UTC'))", "NULL where unknown"),
    ("source", "String", "market_resolutions_final, or the source of the external row"),
)


def _table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    schema = dg.TableSchema(
        [
            dg.TableColumn(name, "int" if isinstance(value, int) else "string")
            for name, value in (rows[0] if rows else {}).items()
        ]
    )
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema)


def _code(path: str) -> str:
    """``path`` as a code span of Markdown, in which nothing is escaped and only a backtick ends it."""
    return f"`{escape_controls(scrub(path)).replace('`', chr(39))}`"


def list_metadata(summary: TakeSummary) -> Metadata:
    """Of ``condition_ids``."""
    taken = summary.taken
    return {
        "dagster/row_count": taken.ids,
        "ids_new_in_the_list": summary.added,
        "ids_not_in_it_any_more": summary.gone,
        "duplicates": taken.duplicates,
        "kept": summary.kept_for or "no: the query was run",
        "taken_at": taken.taken_at,
        "first_ids": _table([{"condition_id": i} for i in summary.sample]) if summary.sample else "none",
        "sha256": taken.sha256,
        "file": dg.MetadataValue.path(summary.path),
    }


def fetch_metadata(summary: FetchSummary) -> Metadata:
    """Of ``goldsky_payouts``."""
    info, stats, pin = summary.info, summary.stats, summary.info.pin
    exact = pin.kind == "number"
    return {
        "dagster/partition_row_count": info.ids,
        "dagster/row_count": summary.ids_of_all_partitions,
        "ids_asked": stats.ids_asked,
        **{f"ids_{status}": count for status, count in info.counts.items()},
        "batches": info.batches,
        "batches_resumed": stats.batches_resumed,
        "requests": stats.requests,
        "batches_per_request": stats.batches_per_request,
        **({"batches_per_request_shrunk": stats.shrunk_because} if stats.shrunk_because else {}),
        "retries": stats.retries,
        "answers_429": stats.rate_limited,
        "waits": stats.waits,
        "waited_seconds": dg.MetadataValue.float(float(stats.waited_seconds)),
        "block_number": pin.block_number,
        "snapshot": f"{'at' if exact else 'at or after (history is not kept)'} block {pin.block_number}",
        "deployment": scrub(pin.deployment),
        "head_timestamp": dg.MetadataValue.timestamp(float(pin.head_timestamp)) if pin.head_timestamp else "unknown",
        "indexing_errors": pin.has_indexing_errors,
        "seconds": dg.MetadataValue.float(float(stats.seconds)),
        "ids_per_second": dg.MetadataValue.float(round(stats.ids_per_second, 1)),
        "payout_shapes": _table([{"vector": shape, "conditions": count} for shape, count in summary.shapes]),
        "failed_ids": _table([{"condition_id": i, "error": scrub(error)} for i, error in summary.failures])
        if summary.failures
        else "none",
        **_changes(summary.changes),
        **({"resolution_times_left_out": stats.odd_times} if stats.odd_times else {}),
        "fingerprint": info.fingerprint,
        "input_sha256": stats.input_sha256,
        "files": dg.MetadataValue.md("\n".join(f"- {_code(path)}" for path in summary.files)),
        "ledger": dg.MetadataValue.path(summary.files[0]),
    }


def _changes(changes: WhatChanged | None) -> Metadata:
    """Against the former ledgers, where there were any."""
    if changes is None:
        return {"changes": "none: there was no finished ledger before"}
    return {
        "newly_resolved": changes.counts["newly_resolved"],
        "vectors_changed": changes.counts["vector_changed"],
        "became_absent": changes.counts["became_absent"],
        "no_longer_resolved": changes.counts["no_longer_resolved"],
        "changes": _table([dict(row) for row in changes.first]) if changes.first else "none",
        "all_changes": dg.MetadataValue.md("\n".join(f"- {_code(path)}" for path in changes.files)),
    }


def ingest_metadata(summary: IngestSummary) -> Metadata:
    """Of ``resolutions_external_ingest``."""
    load = summary.load
    return {
        "dagster/partition_row_count": load.sent,
        "dagster/row_count": summary.table_rows,
        "dagster/table_name": load.table,
        "dagster/storage_kind": "clickhouse",
        "rows_resolved": load.sent,
        "rows_new": load.inserted_new,
        "rows_changed": load.inserted_changed,
        "rows_unchanged": load.unchanged,
        "rows_removed": load.removed,
        "rows_verified": load.verified,
        "seconds": dg.MetadataValue.float(float(round(summary.seconds, 3))),
        "fingerprint": summary.fingerprint,
    }


def truth_metadata(summary: TruthSummary) -> Metadata:
    """Of ``vw_resolutions_truth``."""
    return {
        "dagster/row_count": summary.rows_after,
        "dagster/table_name": summary.view,
        "rows_after": summary.rows_after,
        "workers": _table(summary.workers),
        **_changes(summary.changes),
        "seconds": dg.MetadataValue.float(float(round(summary.seconds, 3))),
        "sql": dg.MetadataValue.md(f"```sql\n{summary.sql}\n```"),
    }
