"""The one judge of every reliability test: did anything get lost, doubled, invented, leaked, or stuck (O1-O7)?

It reads what a user reads: the stored rows (all of them, raw, so that a duplicate shows), the view, the Parquet ledgers
through pandas, exit codes, what the processes printed, and the server's own list of requests. It shares no conversion and no
query with the pipeline; the truth comes from the shapes that the data was generated of.

O1 stored vectors equal the truth; O2 one row a condition in the view; O3 the ledger closes; O4 exit 0 only if all is done;
O5 the rate limit held, as counted by the server; O6 no secret anywhere; O7 no hang. B1 goes with them: what was finished is
not asked again.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from payout_pipeline.subgraph.log import LoggedRequest, max_in_window

Vector = tuple[tuple[int, ...], int]
Rows = Callable[[str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Truth:
    """What is right. ``resolved``: exact vectors by id; the others: ids. Together they are the distinct input ids."""

    resolved: Mapping[str, Vector]
    unresolved: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    invalid: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()

    def status_of(self) -> dict[str, str]:
        """The right status of each id."""
        named = {"unresolved": self.unresolved, "absent": self.absent, "invalid": self.invalid, "failed": self.failed}
        return dict.fromkeys(self.resolved, "resolved") | {i: name for name, ids in named.items() for i in ids}


@dataclass(frozen=True)
class Violation:
    """One broken promise."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass
class Evidence:
    """What a case left behind. ``exits``: codes in order; the last one is that of the run that is judged."""

    runtime: Path
    truth: Truth
    workers: int
    rows: Rows
    target: str = "default.resolutions_external_ingest"
    view: str = "cascadian_clean.vw_resolutions_truth"
    requests: Sequence[LoggedRequest] = ()
    limit: tuple[int, float] | None = None
    exits: Sequence[int] = ()
    outputs: Sequence[Path] = ()
    secrets: Sequence[str] = ()
    overdue: Sequence[str] = ()
    interruptions: int | None = None
    """Kills and stops so far; None: the requests are not compared with them."""
    in_flight: int = 8
    """Batches that one interruption may cost, over all workers."""
    complete: bool = True
    """Whether everything should be done by now; otherwise what is there must be right as far as it goes."""
    newest_only: bool = False
    """Compare the newest version of each row (FINAL): somebody has changed rows by hand, and healing adds versions."""
    more: list[Violation] = field(default_factory=list)


def judge(evidence: Evidence) -> list[Violation]:
    """Everything that is wrong; empty if nothing is."""
    found = list(evidence.more)
    found += [Violation("O7", text) for text in evidence.overdue]
    there = _existing(evidence)
    found += _stored(evidence, there)
    if evidence.complete:
        found += _view(evidence, there)
    found += _ledgers(evidence)
    found += _exits(evidence)
    found += _requests(evidence)
    found += leaks(evidence.secrets, evidence.runtime, evidence.outputs)
    return found


def vector_row(row: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Id, numerators, denominator and winning index of a row as ClickHouse's JSON has it."""
    numerators = tuple(int(value) for value in row["payout_numerators"])
    return str(row["condition_id"]), numerators, int(row["payout_denominator"]), int(row["winning_index"])


def expected_rows(resolved: Mapping[str, Vector]) -> Counter[tuple[str, tuple[int, ...], int, int]]:
    """The rows that the target table has to hold, each once."""
    return Counter(
        (identity, numerators, denominator, _winner(numerators))
        for identity, (numerators, denominator) in resolved.items()
    )


def _winner(numerators: tuple[int, ...]) -> int:
    largest = max(numerators)
    return numerators.index(largest) if numerators.count(largest) == 1 else -1


def _difference(rule: str, what: str, got: Counter[Any], expected: Counter[Any], *, subset: bool) -> list[Violation]:
    extra = got - expected
    missing = Counter() if subset else expected - got
    problems = []
    if extra:
        problems.append(f"{sum(extra.values())} rows that should not be there, such as {next(iter(extra))}")
    if missing:
        problems.append(f"{sum(missing.values())} rows missing, such as {next(iter(missing))}")
    return [Violation(rule, f"{what}: {problem}") for problem in problems]


def _existing(evidence: Evidence) -> set[str]:
    """Which of the target table and the view are there."""
    names = ", ".join(f"'{name}'" for name in (evidence.target, evidence.view))
    found = evidence.rows(
        f"SELECT database || '.' || name AS full_name FROM system.tables WHERE database || '.' || name IN ({names})"
    )
    return {str(row["full_name"]) for row in found}


def _stored(evidence: Evidence, there: set[str]) -> list[Violation]:
    if evidence.target not in there:
        return [Violation("O1", f"{evidence.target} does not exist")] if evidence.complete else []
    rows = evidence.rows(
        "SELECT condition_id, payout_numerators, payout_denominator, winning_index, source, "
        f"block_number FROM {evidence.target}{' FINAL' if evidence.newest_only else ''}"
    )
    got = Counter(vector_row(row) for row in rows)
    found = _difference(
        "O1",
        f"raw rows of {evidence.target}",
        got,
        expected_rows(evidence.truth.resolved),
        subset=not evidence.complete,
    )
    foreign = Counter(str(row.get("source")) for row in rows) - Counter({"goldsky-api": len(rows)})
    if foreign:
        found.append(Violation("O1", f"sources that should not be there: {dict(foreign)}"))
    return found


def _view(evidence: Evidence, there: set[str]) -> list[Violation]:
    if evidence.view not in there:
        return [Violation("O2", f"{evidence.view} does not exist")]
    rows = evidence.rows(
        f"SELECT condition_id, payout_numerators, payout_denominator, winning_index FROM {evidence.view}"
    )
    per_id = Counter(str(row["condition_id"]) for row in rows)
    twice = [identity for identity, count in per_id.items() if count > 1]
    found = (
        [Violation("O2", f"{len(twice)} conditions more than once in the view, such as {twice[0]}")] if twice else []
    )
    got = Counter(vector_row(row) for row in rows)
    return found + _difference(
        "O1", f"rows of {evidence.view}", got, expected_rows(evidence.truth.resolved), subset=False
    )


def ledger_rows(runtime: Path, workers: int) -> list[dict[str, Any]]:
    """The finished ledgers' rows through pandas, with their ``partition``."""
    import pandas as pd

    width = len(str(workers))
    rows: list[dict[str, Any]] = []
    for worker in range(1, workers + 1):
        key = f"worker_{worker:0{width}d}_of_{workers}"
        path = runtime / "goldsky_payouts" / key / "ledger.parquet"
        if path.exists():
            frame = pd.read_parquet(path, dtype_backend="pyarrow")
            rows += [{**row, "partition": key} for row in frame.to_dict("records")]
    return rows


def _ledgers(evidence: Evidence) -> list[Violation]:
    rows = ledger_rows(evidence.runtime, evidence.workers)
    expected = evidence.truth.status_of()
    found: list[Violation] = []
    seen = Counter(str(row["condition_id"]) for row in rows)
    twice = [identity for identity, count in seen.items() if count > 1]
    if twice:
        found.append(Violation("O3", f"{len(twice)} ids stand in the ledgers more than once, such as {twice[0]}"))
    strange = seen.keys() - expected.keys()
    if strange:
        found.append(
            Violation("O3", f"{len(strange)} ids in the ledgers that nobody asked for, such as {min(strange)}")
        )
    missing = expected.keys() - seen.keys()
    if missing and evidence.complete:
        found.append(Violation("O3", f"{len(missing)} of {len(expected)} ids in no ledger, such as {min(missing)}"))
    wrong = Counter(
        (expected[str(row["condition_id"])], str(row["status"]))
        for row in rows
        if str(row["condition_id"]) in expected and expected[str(row["condition_id"])] != row["status"]
    )
    found += [Violation("O3", f"{n} ids that are {right} stand as {said}") for (right, said), n in wrong.items()]
    vectors = {
        str(row["condition_id"]): (tuple(int(n) for n in row["payout_numerators"]), int(row["payout_denominator"]))
        for row in rows
        if row["status"] == "resolved"
    }
    unequal = [
        i for i, vector in vectors.items() if i in evidence.truth.resolved and evidence.truth.resolved[i] != vector
    ]
    if unequal:
        found.append(
            Violation(
                "O1", f"{len(unequal)} vectors differ in the ledgers, such as {unequal[0]}: {vectors[unequal[0]]}"
            )
        )
    return found


def _exits(evidence: Evidence) -> list[Violation]:
    if evidence.exits and evidence.exits[-1] == 0 and not evidence.complete:
        return [Violation("O4", "exit status 0 although not everything is done")]
    if evidence.exits and evidence.exits[-1] != 0 and evidence.complete and not evidence.truth.failed:
        return [Violation("O4", f"exit status {evidence.exits[-1]} of a run that should have finished everything")]
    return []


def _requests(evidence: Evidence) -> list[Violation]:
    found: list[Violation] = []
    if evidence.limit is not None:
        allowed, seconds = evidence.limit
        most = max_in_window((request.arrived for request in evidence.requests), seconds)
        if most > allowed:
            found.append(Violation("O5", f"{most} requests within {seconds:g} s; {allowed} are allowed"))
    if evidence.interruptions is not None:
        answered = Counter(
            identity
            for request in evidence.requests
            if request.status == 200 and not request.faults and request.id_count > 0
            for identity in {i.removeprefix("0x") for i in request.ids}
        )
        # The end of an answer that might have been cut off is asked for once more: a few ids, each once a run. An absence
        # needs another answer still.
        for kind, ids, times in (
            ("a known", answered.keys() - evidence.truth.absent, 2),
            ("an absent", evidence.truth.absent, 3),
        ):
            most_often = max((answered[identity] for identity in ids), default=0)
            if most_often > times * (1 + evidence.interruptions):
                message = f"{kind} id was answered {most_often} times with {evidence.interruptions} interruptions"
                found.append(Violation("B1", message))
        again = sum(count - 1 for count in answered.values())
        batch = max((request.id_count for request in evidence.requests), default=0)
        allowed_again = evidence.interruptions * evidence.in_flight * batch + len(answered) // 10
        if again > allowed_again:
            found.append(
                Violation(
                    "B1",
                    f"{again} ids were answered again after {evidence.interruptions} interruptions; at most "
                    f"{allowed_again} were in flight",
                )
            )
    return found


# ------------------------------------------------------------------------------------------------------------ secrets


def secret_forms(secret: str) -> set[bytes]:
    """The forms in which a secret may leak: as it is, URL-encoded, hexadecimal, and base64 at each alignment."""
    raw = secret.encode()
    forms = {raw, quote(secret, safe="").encode(), quote_plus(secret).encode(), raw.hex().encode(), raw[::-1]}
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw).rstrip(b"=")
        core = encoded[4 if offset else 0 : -2]
        forms |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in forms if len(form) >= 6}


def leaks(secrets: Sequence[str], directory: Path, outputs: Iterable[Path] = ()) -> list[Violation]:
    """Where a secret stands: in any file under ``directory`` (compressed Parquet and gzip included) or any output."""
    if not secrets:
        return []
    forms = {form: secret for secret in secrets for form in secret_forms(secret)}
    found = []
    for path in [*sorted(p for p in directory.rglob("*") if p.is_file()), *outputs]:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if path.suffix == ".parquet":
            content += _parquet_text(path)
        if content[:2] == b"\x1f\x8b":
            content += zlib.decompressobj(wbits=31).decompress(content)
        found += [
            Violation("O6", f"a secret that begins with {secret[:3]!r} stands in {path}")
            for form, secret in forms.items()
            if form in content
        ]
    return found


def _parquet_text(path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):  # a file that a test has damaged
        return b""
    texts = [column.to_pylist() for column in table.columns if pa.types.is_string(column.type)]
    facts = b" ".join((table.schema.metadata or {}).values())
    return facts + json.dumps(texts, ensure_ascii=False).encode()
