"""Failures with one cause put together: what went wrong, what it affects, and the command that repairs it.

A wrong endpoint leaves 26 checks without a pass; for the reader that is one message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from payout_pipeline.checks.catalogue import ASSETS, VIEW
from payout_pipeline.checks.history import QUIET, CheckStatus, State
from payout_pipeline.ids.chunks import PARTITION_KEY, worker_numbers, worker_of_key
from payout_pipeline.scrub import scrub
from payout_pipeline.verdict import NO_ANSWER, Severity
from payout_pipeline.words import counted

if TYPE_CHECKING:
    import dagster as dg

_ORDER = (State.FAILED, State.NOT_MADE, State.NEVER, State.OUTDATED, State.RUNNING)
_ROOTS = (State.FAILED, State.NOT_MADE, State.NEVER, State.RUNNING)
_NO_RESULT = (State.NEVER, State.NOT_MADE, State.OUTDATED)
_BY_NAME = 2
_WORKERS_OPTION = re.compile(r" --workers [\d,]+")
_REPAIR = re.compile(r"\s*\n?To repair it: ")
#: Reasons why a result does not count that new checks alone do not mend: the data is of other ids, or gone.
_NEEDS_A_RUN = re.compile(r"\binput\b|\bis gone\b")
#: What ClickHouse was asked for when it refused; the same fault may meet several checks.
_DOING = re.compile(r"\AClickHouse, .*?: (?=code \d|no answer)")
#: What differs between two workers with the same fault: names, ids, numbers.
_PARTICULARS = re.compile(r"worker_\d+_of_\d+|--workers [\d,]+|\b[0-9a-f]{8,}\b|\d[\d,.]*")


@dataclass(frozen=True, slots=True)
class Cause:
    """What one fault has to say for all checks that it keeps from passing.

    ``statuses`` are its own, ``consequences`` those of checks further down that could not be made, or do not count,
    because of it, and ``further`` the faults of their runs. ``text`` is the fault of the run, or the reason why results
    do not count; empty where the checks speak for themselves.
    """

    state: State
    blocks: bool
    statuses: tuple[CheckStatus, ...]
    text: str
    repair: str
    consequences: tuple[CheckStatus, ...] = ()
    further: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """ERROR where the backfill is no success because of it."""
        return Severity.ERROR if self.blocks else Severity.WARN

    @property
    def partitions(self) -> tuple[str, ...]:
        """The workers that it concerns."""
        return tuple(sorted({status.partition for status in self.statuses if status.partition is not None}))

    @property
    def title(self) -> str:
        """What happened to which checks of which workers."""
        names = list(dict.fromkeys(status.info.name for status in self.statuses))
        assets = list(dict.fromkeys(status.info.asset for status in self.statuses))
        what = names[0] if len(names) == 1 else counted(len(self.statuses), "check")
        where = [*assets, *_few(self.partitions)]
        return f"{what} {self.state.value} ({', '.join(where)})"

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences to print: the cause, or what each check found, each once."""
        own = [self.text] if self.text else [_found(status, self.statuses) for status in self.statuses]
        return tuple(dict.fromkeys([*own, *self.further]))


def _few(keys: Sequence[str], most: int = 4) -> list[str]:
    return list(keys) if len(keys) <= most else [f"{len(keys)} workers"]


def _found(status: CheckStatus, among: Sequence[CheckStatus]) -> str:
    """The sentence of a check, with its name where several checks share a cause."""
    said = status.verdict.description if status.verdict is not None else status.reason
    return f"{status.info.name}: {said}" if len({other.info.name for other in among}) > 1 else said


def find_causes(statuses: Sequence[CheckStatus], failure_of: Callable[[str], str]) -> list[Cause]:
    """The causes behind everything that did not pass, worst first; none where no check has run at all.

    Args:
        statuses: of all checks, in the order of the catalogue.
        failure_of: the message with which the run of an id failed, empty where there is none.
    """
    trouble = [status for status in statuses if status.state not in QUIET]
    if all(status.state is State.NEVER for status in statuses):
        return []
    failures = {s.run_id: failure_of(s.run_id) for s in trouble if s.state is State.NOT_MADE and s.run_id}
    by_key: dict[tuple[object, ...], list[CheckStatus]] = {}
    for status in trouble:
        by_key.setdefault(_key(status, failures), []).append(status)
    groups = list(by_key.values())
    # A check further down without a result of its own belongs to the fault further up that explains it.
    roots = sorted((i for i, group in enumerate(groups) if _is_root(group)), key=lambda i: _depth(groups[i]))
    own: list[list[CheckStatus]] = [[] for _ in groups]
    below: list[list[CheckStatus]] = [[] for _ in groups]
    for index, group in enumerate(groups):
        for status in group:
            root = next((i for i in roots if i != index and _explains(groups[i], status)), None)
            (own[index] if root is None else below[root]).append(status)
    causes = [_cause(mine, theirs, failures) for mine, theirs in zip(own, below, strict=True) if mine]
    return sorted(causes, key=lambda cause: (not cause.blocks, _ORDER.index(cause.state)))


def _key(status: CheckStatus, failures: dict[str, str]) -> tuple[object, ...]:
    """Equal for statuses with the same cause: failed checks share a repair, others what kept them from a result."""
    if status.state is State.FAILED:
        repair = status.verdict.repair if status.verdict is not None else ""
        if unanswered := _unanswered(status):
            return (status.state, general(_DOING.sub("", unanswered)))
        return (status.state, status.blocks_success, general(repair) or status.info.name)
    if status.state is State.NOT_MADE:
        return (status.state, general(failures.get(status.run_id, "") or status.reason))
    if status.state is State.NEVER:
        return (status.state, status.partition is None)
    return (status.state, general(status.reason))


def cause_key(status: CheckStatus) -> str:
    """Equal for failed checks with the same cause, also at another time."""
    return str(_key(status, {})[-1])


def _unanswered(status: CheckStatus) -> str:
    """The fault because of which the check has no answer, such as a database that is down; empty where it has one."""
    return status.verdict.description if status.verdict is not None and status.verdict.actual == NO_ANSWER else ""


def general(text: str) -> str:
    """``text`` without what differs between two workers."""
    return _PARTICULARS.sub("#", text)


def distinct(sentences: Sequence[str]) -> list[str]:
    """Of sentences that differ only in workers, ids and numbers, the first."""
    return list({general(sentence): sentence for sentence in reversed(sentences)}.values())[::-1]


def _cause(group: list[CheckStatus], below: list[CheckStatus], failures: dict[str, str]) -> Cause:
    first = group[0]
    text, repair = "", ""
    if first.state is State.FAILED:
        repair = first.verdict.repair.removeprefix("To repair it: ") if first.verdict is not None else ""
        text = _unanswered(first) if len(group) > 1 else ""
    elif first.state is State.NOT_MADE:
        text, repair = split_repair(failures.get(first.run_id, "") or first.reason)
    else:
        text = first.reason
    further = {failures.get(s.run_id, ""): s.info.asset for s in below if s.state is State.NOT_MADE}
    cause = Cause(
        first.state,
        any(status.blocks_success for status in group),
        tuple(group),
        text,
        "",
        tuple(below),
        tuple(
            f"{asset}: {split_repair(said)[0]}"
            for said, asset in further.items()
            if said and split_repair(said)[0] != text
        ),
    )
    return replace(cause, repair=for_all(repair, cause.partitions) or _command(cause))


def split_repair(text: str) -> tuple[str, str]:
    """A fault's message and its repair."""
    match = _REPAIR.search(text)
    return (text[: match.start()], text[match.end() :]) if match else (text, "")


def for_all(repair: str, partitions: Sequence[str]) -> str:
    """The repair of the first worker, for all workers that have the same fault."""
    if len(partitions) < 2:
        return repair
    return _WORKERS_OPTION.sub(workers_option(partitions), PARTITION_KEY.sub(", ".join(_few(partitions)), repair))


def workers_option(partitions: Sequence[str]) -> str:
    """`` --workers 1,3``; empty where these are all workers, or none is named."""
    if not partitions or len(partitions) == worker_of_key(partitions[0])[1]:
        return ""
    return f" --workers {worker_numbers(partitions)}"


def _command(cause: Cause) -> str:
    """What to run where the cause does not say so itself."""
    if cause.state is State.RUNNING:
        return "Wait for it, then ask for the report again."
    if cause.state is State.OUTDATED and not _NEEDS_A_RUN.search(cause.text):
        return "payout-pipeline verify (makes all checks again)"
    return f"payout-pipeline backfill{workers_option(cause.partitions)}"


def _is_root(group: Sequence[CheckStatus]) -> bool:
    """Whether the trouble of this group can keep checks further down from being made."""
    first = group[0]
    blocks = any(status.blocks_success for status in group)
    return blocks and first.partition is not None and first.state in _ROOTS


def _depth(group: Sequence[CheckStatus]) -> tuple[int, int]:
    return min(ASSETS.index(status.info.asset) for status in group), _ORDER.index(group[0].state)


def _explains(root: Sequence[CheckStatus], status: CheckStatus) -> bool:
    """Whether ``status`` is what it is because of ``root``, which lies further up."""
    if status.info.name == "all_workers_complete" and status.state is State.FAILED:
        return True
    if status.state not in _NO_RESULT or ASSETS.index(status.info.asset) <= _depth(root)[0]:
        return False
    return status.info.asset == VIEW or any(status.partition == own.partition for own in root)


def fault_of_run(instance: dg.DagsterInstance, run_id: str) -> tuple[str, str]:
    """The class of the fault by which a run failed, empty where it was none of the pipeline's own, and its message.

    The message is empty where a check stopped the run, or nothing is known.
    """
    import dagster as dg

    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED}
    events = [
        record.event_log_entry.dagster_event for record in instance.get_records_for_run(run_id, of_type=kinds).records
    ]
    steps = [event.step_failure_data for event in events if event is not None and event.is_step_failure]
    for data in steps:
        own = data.user_failure_data
        text = (own.description if own is not None else None) or _innermost(data.error)
        if text:
            return str(own.metadata["kind"].value) if own is not None and "kind" in own.metadata else "", scrub(text)
    return "", "" if steps else scrub("\n".join(event.message or "" for event in events if event is not None))


def _innermost(error: Any) -> str:
    """The message of the exception that was raised first, without its class and without the library's around it."""
    while error is not None and error.cause is not None:
        error = error.cause
    if error is None or error.cls_name == "DagsterAssetCheckFailedError":
        return ""
    return re.sub(rf"^([\w.]*\.)?{re.escape(error.cls_name or '')}: ", "", str(error.message)).strip()


def affected(statuses: Sequence[CheckStatus]) -> str:
    """``stored_equals_fetched, vw_resolutions_truth (13 checks)``: a few checks by name, many by their asset."""
    by_asset: dict[str, list[str]] = {}
    for status in statuses:
        by_asset.setdefault(status.info.asset, []).append(status.info.name)
    parts: list[str] = []
    for asset, names in by_asset.items():
        few = list(dict.fromkeys(names))
        parts += few if len(few) <= _BY_NAME else [f"{asset} ({counted(len(names), 'check')})"]
    return ", ".join(parts)
