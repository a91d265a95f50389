"""``make chaos``: the backfill killed, stopped and starved at random, started again until it is done, and judged.

``python -m tools.chaos --rounds 20`` draws seeds from the clock and prints each; ``--seed 7`` repeats one round. Exit status 1
where the oracle found anything; the failed round's directory is kept and named.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from payout_pipeline_tests.chaos.processes import Nursery
from payout_pipeline_tests.chaos.rounds import run_round


def say(line: str) -> None:
    """Print at once, so that a round can be read while the next one is played."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Play the rounds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; rounds count up from it (default: from the clock)")
    parser.add_argument("--rounds", type=int, help="how many (default: 1 with --seed, else 20)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after that")
    parser.add_argument("--keep", action="store_true", help="keep the directories of good rounds, too")
    chosen = parser.parse_args()
    first = chosen.seed if chosen.seed is not None else int(time.time()) % 1_000_000 * 1_000
    rounds = chosen.rounds or (1 if chosen.seed is not None else 20)
    failed: list[int] = []
    done = starts = 0
    began = time.monotonic()
    with Nursery() as nursery:
        for seed in range(first, first + rounds):
            if time.monotonic() - began > chosen.seconds:
                break
            directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
            result = run_round(seed, directory, nursery)
            done, starts = done + 1, starts + result.starts
            say(result.describe())
            if result.violations:
                failed.append(seed)
                say(f"  kept: {directory}")
            elif not chosen.keep:
                shutil.rmtree(directory, ignore_errors=True)
    say(
        f"{done} rounds with {starts} starts (seeds {first} to {first + done - 1}): {len(failed)} failed {failed or ''}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
