"""The yardstick: a bare aiohttp loop with 8 connections that asks for every batch and stores nothing.

``python -m benchmarks.bare_loop URL IDS`` prints JSON: ``wall`` and ``cpu`` seconds from the first request to the last
answer, without the start of the interpreter, and the rows that came. It does what a first script would do and no more:
``session.post(json=…)`` and ``response.json()``, with aiohttp's defaults, no retries, no pacing, no checks. With
``--bytes`` it neither builds nor parses JSON inside the measured time: the cost of the transport alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from benchmarks import data

CONNECTIONS = 8


async def ask(url: str, batches: list[list[str]], only_bytes: bool) -> dict[str, float]:
    """Ask for every batch over 8 connections."""
    bodies = [{"query": data.QUERY, "variables": {"ids": ["0x" + i for i in batch]}} for batch in batches]
    prepared = [json.dumps(body).encode() for body in bodies] if only_bytes else []
    rows = 0

    async def connection(session: aiohttp.ClientSession, mine: Iterator[int]) -> None:
        nonlocal rows
        for number in mine:
            if only_bytes:
                async with session.post(url, data=prepared[number]) as response:
                    rows += (await response.read()).count(b'"id"')
            else:
                async with session.post(url, json=bodies[number]) as response:
                    rows += len((await response.json())["data"]["conditions"])

    numbers = iter(range(len(batches)))
    async with aiohttp.ClientSession() as session:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(connection(session, numbers) for _ in range(CONNECTIONS)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "rows": rows, "requests": len(batches)}


def main() -> None:
    """Ask, and print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("ids", type=Path)
    parser.add_argument("--bytes", action="store_true")
    options = parser.parse_args()
    batches = list(data.batches(data.read_ids(options.ids), 4, 1000))
    json.dump(asyncio.run(ask(options.url, batches, options.bytes)), sys.stdout)


if __name__ == "__main__":
    main()
