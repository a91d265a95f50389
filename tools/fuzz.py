"""``make fuzz``: bytes from outside against the id reader, the answer parser and the checkpoint reader.

Coverage-guided where atheris is installed (``pip install atheris`` into an environment of its own), else by seeded mutations of
good inputs. ``--seconds`` for each target; exit status 1 with the input where a promise is broken.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_PIECES = (
    b"\n", b"\r", b"\x00", b"#", b" ", b"\t", b"0x", b"0X", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"null", b"true", b"[]",
    b"{}", b'"', b"-1", b"1e400", b"NaN", b"0.1", b"99999999999999999999", b"\\u0000", b"\\ud800", b"\xd0\xb0", b",", b":",
    b"\xe2\x80\xae", b"1" * 70, b"a" * 64, b"\x85", b"\xe2\x80\xa8",
)  # fmt: skip


def mutated(dice: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with a few pieces cut, doubled, exchanged or put in."""
    data = bytearray(dice.choice(corpus))
    for _ in range(dice.choice((1, 1, 2, 3, 5, 8))):
        at = dice.randint(0, len(data))
        length = dice.choice((1, 1, 2, 8, 64))
        kind = dice.randrange(5)
        if kind == 0:
            del data[at : at + length]
        elif kind == 1:
            data[at:at] = data[at : at + length]
        elif kind == 2:
            data[at:at] = dice.choice(_PIECES)
        elif kind == 3 and at < len(data):
            data[at] = dice.randrange(256)
        else:
            data[at : at + length] = dice.choice(_PIECES)
    return bytes(data)


def by_mutation(name: str, target: Callable[[bytes], None], seconds: float, seed: int) -> bool:
    """Whether the target held for ``seconds``."""
    from payout_pipeline_tests.fuzz.targets import seeds

    dice = random.Random(f"{name} {seed}")
    corpus = seeds(name)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        data = mutated(dice, corpus)
        count += 1
        try:
            target(data)
        except Exception:  # noqa: BLE001 - any exception is the finding, and is shown with its input
            say(f"{name}: FAILED after {count:,} inputs (seed {seed}) on {data!r}\n{traceback.format_exc()}")
            return False
        if dice.random() < 0.001:  # wander off from the good ones, too
            corpus.append(data)
    say(f"{name}: {count:,} inputs in {time.monotonic() - began:.0f} s, nothing found (mutation, seed {seed})")
    return True


def by_coverage(name: str, seconds: float) -> bool:
    """One target under atheris (libFuzzer), which ends the process; so in a child."""
    import subprocess

    from payout_pipeline_tests.fuzz.targets import seeds

    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(seeds(name)):
            (Path(corpus) / str(number)).write_bytes(data)
        command = [
            sys.executable,
            "-m",
            "tools.fuzz",
            "--child",
            name,
            corpus,
            f"-max_total_time={seconds:.0f}",
            "-max_len=4096",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if line.strip()]
    say(f"{name}: atheris, exit {done.returncode}; " + " | ".join(last[-3:]))
    if done.returncode:
        say(done.stdout[-6000:])
    return done.returncode == 0


def child(name: str, arguments: list[str]) -> None:
    """Under atheris until its time is over. Nothing of the pipeline may be imported before: it is instrumented here."""
    import atheris

    with atheris.instrument_imports(include=["payout_pipeline"]):
        from payout_pipeline_tests.fuzz.targets import TARGETS
    atheris.Setup([f"fuzz {name}", *arguments], TARGETS[name])
    atheris.Fuzz()


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """All targets, one after the other."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return 0
    from payout_pipeline_tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for each target (600)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--engine", choices=["auto", "mutation", "atheris"], default="auto")
    parser.add_argument("targets", nargs="*", default=[], help=", ".join(TARGETS))
    chosen = parser.parse_args()
    guided = chosen.engine == "atheris" or (chosen.engine == "auto" and importlib.util.find_spec("atheris") is not None)
    held = [
        by_coverage(name, chosen.seconds) if guided else by_mutation(name, TARGETS[name], chosen.seconds, chosen.seed)
        for name in chosen.targets or TARGETS
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
