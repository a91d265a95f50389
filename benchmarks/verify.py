"""Whether a run stored the truth: ``python -m benchmarks.verify IDS RUNTIME [URL]`` prints ``right``, or what is wrong.

Reads as a user reads: the raw rows of the target table (a duplicate is a defect), the truth view, and the Parquet
files of the ledger. Uses ClickHouse's client and nothing of the pipeline.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow.dataset

from benchmarks import data

_ROWS = """
SELECT condition_id, payout_numerators, payout_denominator, winning_index
FROM {} ORDER BY condition_id, payout_numerators FORMAT TSV
"""


def stored(runtime: Path, url: str | None, view: bool) -> dict[str, tuple[int, str]]:
    """Rows and digest of the target table and of the view."""
    client: Any
    if url:
        parts = urlsplit(url)
        client = clickhouse_connect.get_client(host=parts.hostname, port=parts.port)
    else:
        client = clickhouse_connect.get_client(interface="chdb", path=str(runtime / "clickhouse"))
    try:
        found = {}
        for table in ("default.resolutions_external_ingest", "cascadian_clean.vw_resolutions_truth")[: 1 + view]:
            text = client.raw_query(_ROWS.format(table))
            found[table] = (text.count(b"\n"), hashlib.sha256(text).hexdigest())
        return found
    finally:
        client.close()


def truth_of(ids: list[str]) -> dict[str, Any]:
    """What has to be stored of these ids: ``rows``, their ``digest``, and how many ids have each of the ``statuses``."""
    lines = list(data.truth_lines(ids))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"rows": len(lines), "digest": digest, "statuses": data.statuses(ids)}


def judge(ids: list[str], truth: dict[str, Any], runtime: Path, url: str | None, view: bool = True) -> list[str]:
    """Everything that is wrong, empty where nothing is."""
    wrong = []
    for table, (rows, digest) in stored(runtime, url, view).items():
        if (rows, digest) != (truth["rows"], truth["digest"]):
            kind = "other rows" if rows == truth["rows"] else f"{rows:,} rows"
            wrong.append(f"{table} has {kind}, the truth has {truth['rows']:,}")
    ledgers = sorted((runtime / "goldsky_payouts").glob("*/ledger.parquet"))
    counts: dict[str, int] = {}
    seen: list[str] = []
    for ledger in ledgers:
        rows = pyarrow.dataset.dataset(ledger).to_table(columns=["condition_id", "status"])
        seen += rows.column("condition_id").to_pylist()
        for pair in rows.column("status").value_counts().to_pylist():
            counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    if sorted(seen) != sorted(ids):
        wrong.append(f"the ledger has {len(seen):,} rows of {len(set(seen)):,} ids, the input {len(ids):,}")
    if counts != truth["statuses"]:
        wrong.append(f"the ledger counts {counts}, the truth is {truth['statuses']}")
    return wrong


def main() -> None:
    """Print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ids", type=Path)
    parser.add_argument("runtime", type=Path)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--no-view", action="store_true", help="one worker alone: the view is not there yet")
    parser.add_argument("--truth", type=Path, help="JSON of truth_of(IDS), where it was made before")
    options = parser.parse_args()
    ids = data.read_ids(options.ids)
    truth = json.loads(options.truth.read_text()) if options.truth else truth_of(ids)
    wrong = judge(ids, truth, options.runtime, options.url, not options.no_view)
    sys.stdout.write("; ".join(wrong) or "right")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
