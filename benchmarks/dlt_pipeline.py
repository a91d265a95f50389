"""What people would use instead: the same job as a dlt pipeline, with dlt's own state, writing Parquet.

Runs in an environment of its own that has ``dlt[parquet]`` (``benchmarks/run.py`` makes it). Written as dlt's manual
would have it: a resource of batches, a parallelized transformer that asks with dlt's retrying session, the position in
the resource's state, a filesystem destination. ``payouts`` is a JSON column, so that no child tables arise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
from dlt.sources.helpers import requests

from benchmarks import data


def build(url: str, ids: list[str]) -> list[Any]:
    """The resource and the transformer."""
    batches = list(data.batches(ids, 4, 1000))

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
        body = {"query": data.QUERY, "variables": {"ids": ["0x" + identifier for identifier in batch]}}
        answer = requests.post(url, json=body).json()
        rows: list[dict[str, Any]] = answer["data"]["conditions"]
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
    pipeline.run(build(options.url, data.read_ids(options.ids)), loader_file_format="parquet")


if __name__ == "__main__":
    main()
