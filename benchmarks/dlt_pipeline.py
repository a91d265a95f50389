"""The same job as a dlt pipeline, the tool that people would otherwise take: its own state, its own retries, Parquet.

Runs in an environment of its own that has ``dlt[parquet]`` (``benchmarks/run.py`` makes it). Written as dlt's manual has it:
a resource of batches, a parallelized transformer that asks with dlt's retrying session, a filesystem destination.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
from dlt.sources.helpers import requests

QUERY = "query Conditions($ids: [ID!]!) { conditions(first: 1000, where: {id_in: $ids}) { id payouts } }"


def build(url: str, ids: list[str]) -> list[Any]:
    """The resource and the transformer."""
    batches = [ids[start : start + 1000] for start in range(0, len(ids), 1000)]

    @dlt.resource(name="batches", selected=False)
    def todo() -> Iterator[list[str]]:
        state = dlt.current.resource_state()
        for number in range(state.setdefault("next", 0), len(batches)):
            yield batches[number]
            state["next"] = number + 1

    @dlt.transformer(
        data_from=todo,
        name="conditions",
        write_disposition="append",
        primary_key="id",
        parallelized=True,
        columns={"payouts": {"data_type": "json", "nullable": True}},
    )
    def conditions(batch: list[str]) -> list[dict[str, Any]]:
        body = {"query": QUERY, "variables": {"ids": ["0x" + identifier for identifier in batch]}}
        rows: list[dict[str, Any]] = requests.post(url, json=body).json()["data"]["conditions"]
        return rows

    return [todo, conditions]


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("ids", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    place = options.directory.absolute()
    pipeline = dlt.pipeline(
        "payouts",
        pipelines_dir=str(place / "state"),
        destination=dlt.destinations.filesystem(bucket_url=(place / "out").as_uri()),
        dataset_name="payouts",
    )
    pipeline.run(build(options.url, options.ids.read_text().split()), loader_file_format="parquet")


if __name__ == "__main__":
    main()
