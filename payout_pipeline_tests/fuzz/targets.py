"""Three readers of foreign bytes: the id file, the subgraph's answer, the checkpoint.

Each target takes any bytes and raises only if a promise is broken: another exception than the documented one, or something
accepted that is not so. They are compared with plain readers written here.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path

import pandas as pd

from payout_pipeline.errors import InputError
from payout_pipeline.goldsky.answers import AnswerFault, BatchAnswer, SubgraphInfo, read_exactly
from payout_pipeline.goldsky.pin import Pin
from payout_pipeline.goldsky.queries import IdsQuery, check_answer
from payout_pipeline.ids.id_list import read_ids
from payout_pipeline.ids.text import ID_COLUMNS
from payout_pipeline.ledger.checkpoint import checkpoint_name, read_checkpoint
from payout_pipeline.payouts import InvalidVector, Vector, parse_payouts
from payout_pipeline.storage import open_store

_ID = re.compile(r"(0[xX])?([0-9a-fA-F]{64})")
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_PLACE = Path(tempfile.mkdtemp(prefix="fuzz-"))
ASKED = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4 for number in range(1, 6)]
PIN = Pin(1_000, "QmFuzz", "number")
INFO = SubgraphInfo("payouts", False, 1_000, None, "QmFuzz", False)


def _printable(refused: Exception) -> None:
    assert str(refused).replace("\n", "").isprintable(), ascii(str(refused))


def id_reader(data: bytes) -> None:
    """Any file is a list of distinct ids, exactly those of its lines, or a refusal; a printable one."""
    path = _PLACE / "ids.txt"
    path.write_bytes(data)
    try:
        found = read_ids(path)
    except InputError as refused:
        _printable(refused)
        return
    ids = found.ids()
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(_HEX.match(identity) for identity in ids)
    if (
        data[:4] == b"PAR1"
        or data[:2] in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff")
        or data[:4] in (b"\x00\x00\xfe\xff", b"\xff\xfe\x00\x00")
    ):
        return
    text = data.decode("utf-8-sig", errors="replace")  # a comment may hold any bytes
    assert ids == list(dict.fromkeys(map(_one_id, _texts_of(re.sub(r"\r\n|\r", "\n", text)))))


def _one_id(text: str) -> str:
    match = _ID.fullmatch(text.strip(" \t\x0b\x0c"))
    assert match, f"accepted {text!r}"
    return match[2].lower()


def _texts_of(text: str) -> list[str]:
    """What has to be ids: the strings of JSON, the cells of a column, or the lines."""
    lines = [line for line in text.split("\n") if line.partition("#")[0].strip(" \t\x0b\x0c")]
    first = lines[0].lstrip(" \t")
    if first.startswith("["):
        return [_text_of(value) for value in json.loads(text[text.index(lines[0]) :])]
    if first.startswith("{"):
        return [_text_of(json.loads(line)) for line in lines]
    if not _ID.search(first):  # a header
        separator = max(",;\t", key=first.count)
        table = csv.DictReader(text[text.index(lines[0]) :].split("\n"), delimiter=separator, skipinitialspace=True)
        name = next((name for name in table.fieldnames or () if name.strip() in ID_COLUMNS), None)
        assert name is not None, f"no header: {first!r}"
        if len(table.fieldnames or ()) > 1:
            return [row[name] for row in table]
        lines = lines[1:]
    return [re.sub(r"""^(["'])(.*)\1[ \t]*,?$""", r"\2", line.partition("#")[0].strip()) for line in lines]


def _text_of(value: object) -> str:
    if isinstance(value, dict):
        (value,) = (value[name] for name in ID_COLUMNS if name in value)
    assert isinstance(value, str)
    return value


def answer_parser(data: bytes) -> None:
    """Any JSON is refused, or taken for exactly what it says of ids that were asked for."""
    body = b'{"data":' + data + b"}"
    try:
        document = read_exactly(body)["data"]
    except (ValueError, RecursionError):
        return
    try:
        (found,), block = check_answer(document, [IdsQuery(ASKED, BatchAnswer())], PIN, INFO)
    except AnswerFault as refused:
        _printable(refused)
        return
    assert block == PIN.block_number
    assert document["_meta"]["deployment"] == PIN.deployment
    assert document["_meta"]["hasIndexingErrors"] is False
    rows = document["conditions"]
    assert ["0x" + identity for identity in found] == [row["id"] for row in rows]
    assert set(found) <= set(ASKED)
    for row, condition in zip(rows, found.values(), strict=True):
        # What is too long or no text at all is replaced by the reason why its vector is invalid.
        assert condition.payouts == row["payouts"] or isinstance(parse_payouts(condition.payouts), InvalidVector)
        _judge_vector(condition.payouts)


def _judge_vector(raw: object) -> None:
    vector = parse_payouts(raw)
    if vector is None:
        assert raw is None
        return
    if isinstance(vector, InvalidVector):
        assert vector.reason.replace("\n", "").isprintable()
        return
    assert isinstance(vector, Vector)
    assert isinstance(raw, list)
    assert sum(vector.numerators) == vector.denominator
    assert len(vector.numerators) == len(raw)
    assert all(0 <= numerator < 2**64 for numerator in vector.numerators)
    try:
        shares = [Fraction(Decimal(str(item))) for item in raw]
    except (InvalidOperation, ValueError) as error:
        raise AssertionError(f"accepted {raw!r}") from error
    total = sum(shares)
    for share, numerator in zip(shares, vector.numerators, strict=True):
        # graph-node keeps 34 digits; nothing that is accepted may be further from what was said than their rounding.
        assert abs(share / total - Fraction(numerator, vector.denominator)) < Fraction(1, 10**30), (raw, vector)


def checkpoint_reader(data: bytes) -> None:
    """Any file is a checkpoint with sensible numbers, or none, said in a printable line and kept aside."""
    store = open_store(str(_PLACE / "runtime"))
    name = checkpoint_name(1)
    store.write(name, data)
    said: list[str] = []
    checkpoint = read_checkpoint(store, 1, said.append, repair=True)
    if checkpoint is None:
        assert said
        assert all(line.isprintable() for line in said)
        for aside in (_PLACE / "runtime").glob(f"{name}.corrupt-*"):
            assert aside.read_bytes() == data
            aside.unlink()
        return
    document = json.loads(data)
    assert checkpoint.worker == 1 == document["workerNum"]
    numbers = (checkpoint.batches_processed, checkpoint.ids_processed, checkpoint.payouts_found, checkpoint.errors)
    assert all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    assert checkpoint.payouts_found <= checkpoint.ids_processed
    assert checkpoint.ids is None or checkpoint.ids_processed <= checkpoint.ids
    assert checkpoint.partition.isprintable()
    assert checkpoint.fingerprint.isprintable()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "id_reader": id_reader,
    "answer_parser": answer_parser,
    "checkpoint_reader": checkpoint_reader,
}


def seeds(target: str) -> list[bytes]:
    """Good inputs to start from."""
    if target == "id_reader":
        lines = "\n".join(ASKED)
        return [
            lines.encode(),
            ("\ufeff0x" + lines.replace("\n", "\r\n  0X") + "\r\n").encode(),
            ("# ids\n\n" + lines.upper() + " # last").encode(),
            lines.encode("utf-16"),
            (lines + "\n" + lines[:63] + "\ncondition_id,x\n").encode(),
            "\n".join(["condition_id", *(f'"0x{identity}",' for identity in ASKED)]).encode(),
            "\n".join(['slug;"conditionId"', *(f'"a ""b""; c";{identity}' for identity in ASKED)]).encode(),
            json.dumps(ASKED).encode(),
            (
                "# ids\n" + json.dumps([{"conditionId": identity, "volume": 1.5} for identity in ASKED], indent=1)
            ).encode(),
            "\n".join(json.dumps({"market_id": identity, "tags": [None]}) for identity in ASKED).encode(),
            _parquet(),
        ]
    if target == "answer_parser":
        meta = {"block": {"number": 1_000}, "deployment": "QmFuzz", "hasIndexingErrors": False}
        vectors: list[object] = [["0", "1"], ["0.54", "0.46"], ["0.3333333333333333333333333333333333"] * 3, None, []]
        rows = [{"id": "0x" + identity, "payouts": payouts} for identity, payouts in zip(ASKED, vectors, strict=True)]
        return [
            json.dumps({"_meta": meta, "conditions": rows}).encode(),
            json.dumps({"_meta": meta, "conditions": rows[:1]}).encode(),
            json.dumps({"_meta": meta, "conditions": []}).encode(),
            json.dumps(
                {"_meta": meta, "conditions": [{"id": "0x" + ASKED[0], "payouts": ["1e400", "-1", "NaN"]}]}
            ).encode(),
        ]
    counts = {"resolved": 5, "unresolved": 3, "absent": 2, "invalid": 0, "failed": 0}
    good = {
        "workerNum": 1, "batchesProcessed": 1, "lastBatchIndex": 0, "totalIdsProcessed": 10, "totalPayoutsFound": 5,
        "startTime": "2025-11-09T10:30:00.000Z", "lastSaveTime": "2025-11-09T10:31:00.000Z", "totalErrors": 0,
        "totalBatches": 2, "totalIds": 20, "statusCounts": counts, "partition": "worker_1_of_2", "blockNumber": 1_000,
        "deployment": "QmFuzz", "fingerprint": "ab" * 32, "version": 1, "state": "running",
    }  # fmt: skip
    return [json.dumps(good).encode(), _written(), json.dumps({**good, "totalIdsProcessed": -(10**30)}).encode()]


def _parquet() -> bytes:
    sink = io.BytesIO()
    pd.DataFrame({"condition_id": ASKED, "volume": 1.5}).to_parquet(sink)
    return sink.getvalue()


def _written() -> bytes:
    """A checkpoint as the pipeline writes it."""
    from payout_pipeline.ledger.checkpoint import Checkpoint

    moment = datetime(2025, 11, 9, 10, 30, tzinfo=timezone.utc)
    return Checkpoint(
        worker=1, batches_processed=1, last_batch_index=0, ids_processed=10, payouts_found=5,
        start_time=moment, last_save_time=moment, errors=0, batches=2, ids=20,
        counts={"resolved": 5, "unresolved": 3, "absent": 2, "invalid": 0, "failed": 0}, partition="worker_1_of_2",
        fingerprint="ab" * 32, block_number=1_000, deployment="QmFuzz",
    ).model_dump_json(by_alias=True).encode()  # fmt: skip
