"""README and docs/: every command in them is a real one, what is cheap is run, and every name in them exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from payout_pipeline.cli import main
from payout_pipeline.definitions import build_defs
from payout_pipeline.ids.chunks import worker_of_key
from payout_pipeline.settings import VARIABLES, Settings, load_settings
from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.running import REPOSITORY, Place

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAMS = ("payout-pipeline", "dagster", "make", "python")
ID = "ab" * 32
#: What stands for something of the reader's.
PLACEHOLDERS = {
    "ID": ID,
    "ID…": ID,
    "FILE": "report.html",
    "FILE.csv": "data/conditions.csv",
    "P": "0",
    "N": "1",
    "…": "deploy/celery/workspace.yaml",
    "/opt/payout/home/workspace.yaml": "deploy/celery/workspace.yaml",
}


@dataclass(frozen=True)
class Command:
    """A command of a document, as typed: ``words`` begin with the program, placeholders are filled in."""

    where: str
    words: tuple[str, ...]
    in_a_block: bool

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def line(self) -> str:
        return shlex.join(self.words)


def _typed(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line whose program is one of ours; options in brackets count as given."""
    for part in re.sub(r"\[(--[^\]]*)\]", r"\1", text).split(" && "):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue  # prose with an apostrophe
        while words and ("=" in words[0] or words[:4] == ["docker", "compose", "exec", "code"]):
            words = words[4:] if words[0] == "docker" else words[1:]
        if len(words) > 1 and Path(words[0]).name in PROGRAMS:
            yield (Path(words[0]).name, *(PLACEHOLDERS.get(word, word) for word in words[1:]))


def _commands() -> list[Command]:
    found: list[Command] = []
    for document in DOCUMENTS:
        fenced = False
        for number, line in enumerate(document.read_text().splitlines(), 1):
            if line.startswith("```"):
                fenced = not fenced
                continue
            in_a_block = fenced or line.startswith("    ")
            for text in [line] if in_a_block else re.findall(r"`([^`]+)`", line):
                found += [Command(f"{document.name}:{number}", words, in_a_block) for words in _typed(text)]
    return found


COMMANDS = _commands()


def of(program: str) -> list[Command]:
    """The commands of a program, each once."""
    return list({command.words: command for command in COMMANDS if command.program == program}.values())


def name_of(command: Command) -> str:
    return f"{command.where} {' '.join(command.words)}"


def test_the_commands_are_found() -> None:
    lines = {command.line for command in COMMANDS}
    assert {"payout-pipeline doctor", "make demo", "payout-pipeline backfill --workers 1,3"} <= lines
    assert len(of("payout-pipeline")) >= 12
    assert len(of("dagster")) >= 4
    assert len(of("make")) >= 10
    assert len(of("python")) >= 2


# ------------------------------------------------------------------------------------------------- they are real commands


def parsed(group: click.Command, command: Command) -> click.Context | None:
    """The leaf command with its options as click accepts them; None where prose names the command without any."""
    found, words = group, list(command.words[1:])
    while isinstance(found, click.Group) and words:
        context = click.Context(found)
        found = found.get_command(context, words[0]) or pytest.fail(f"{command.where}: no command {words[0]}")
        words = words[1:]
    if not words and not command.in_a_block:
        return None
    assert not isinstance(found, click.Group), f"{command.where}: {command.line} is no whole command"
    return found.make_context(found.name, words)


@pytest.fixture
def _in_a_place_with_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/conditions.csv").write_text("condition_id,payouts,resolved_at\n")
    shutil.copytree(REPOSITORY / "deploy/celery", tmp_path / "deploy/celery")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_a_place_with_the_files")
@pytest.mark.parametrize("command", of("payout-pipeline"), ids=name_of)
def test_a_command_of_ours_has_these_options(command: Command) -> None:
    parsed(main, command)


@pytest.mark.usefixtures("_in_a_place_with_the_files")
@pytest.mark.parametrize("command", of("dagster"), ids=name_of)
def test_a_command_of_dagster_has_these_options_and_the_names_in_it_exist(command: Command) -> None:
    from dagster._cli import create_dagster_cli

    context = parsed(create_dagster_cli(), command)
    if context is None:
        return
    definitions = build_defs()
    given = context.params
    if selected := given.get("select"):
        assets = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
        assert set(selected.split(",")) <= assets
    if job := given.get("job_name"):
        assert job in {found.name for found in definitions.resolve_all_job_defs()}
    for key in (given.get("partition") or given.get("partitions") or "").split(","):
        assert not key or worker_of_key(key)
    if modules := given.get("module_name"):
        assert modules in ("payout_pipeline.definitions", ("payout_pipeline.definitions",))


@pytest.mark.parametrize("command", of("make"), ids=name_of)
def test_a_target_of_make_exists_with_its_variables(command: Command) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for word in command.words[1:]:
        name, _, value = word.partition("=")
        pattern = rf"^{name} \?=" if value or word.endswith("=") else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"{command.where}: {word}"


@pytest.mark.parametrize("command", of("python"), ids=name_of)
def test_a_module_of_python_exists_with_its_options(command: Command) -> None:
    assert command.words[1] == "-m"
    module = importlib.util.find_spec(command.words[2])
    assert module is not None
    assert module.origin is not None
    source = Path(module.origin).read_text()
    for option in [word for word in command.words[3:] if word.startswith("-")]:
        assert f'"{option}"' in source


# ---------------------------------------------------------------------------------------------------------- they are run


class Finished:
    """A finished backfill of 200 ids with embedded ClickHouse; each command gets a copy of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        data = generate(200, 7, directory / "data")
        self.server = SubgraphServer(SubgraphConfig(conditions=data.conditions))
        self.ids = data.ids.name

    def place(self, directory: Path) -> Place:
        return Place(directory, self.server.url, directory / "data" / self.ids)

    def copy(self, directory: Path) -> Place:
        shutil.copytree(self.directory, directory, symlinks=True)
        return self.place(directory)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    found = Finished(tmp_path_factory.mktemp("finished"))
    with found.server:
        done = found.place(found.directory).run("backfill")
        assert done.returncode == 0, done.stdout
        yield found


def to_run() -> list[Command]:
    """Of commands that differ only in their options the one with the most.

    Not run here: make's targets (the suites themselves, and the demo, which has a test), the server that goes on, and what needs
    a cluster.
    """
    found = [command for command in of("payout-pipeline") if command.words[1] != "subgraph"]
    found += [c for c in of("dagster") if c.words[1:3] == ("asset", "materialize") and len(c.words) > 3]
    return [command for command in found if not any(set(command.words) < set(other.words) for other in found)]


@pytest.mark.slow
@pytest.mark.parametrize("command", to_run(), ids=name_of)
def test_a_command_does_what_it_is_there_for(finished: Finished, tmp_path: Path, command: Command) -> None:
    place = finished.copy(tmp_path / "place")
    environment = place.environment
    if "condition_ids" in command.words:  # which is materialized only where the ids come from a query
        environment = {**environment, "CONDITION_IDS_QUERY": "SELECT lower(hex(SHA256('a')))"}
        del environment["CONDITION_IDS_FILE"]

    done = subprocess.run(
        ["/bin/sh", "-c", command.line],
        cwd=place.directory,
        env=environment,
        input="y\n",  # reset asks
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or command.program == "dagster"
    assert "Traceback" not in done.stderr
    assert "--html" not in command.words or (place.directory / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in of("payout-pipeline") if c.words[1] == "subgraph"], ids=name_of)
def test_the_subgraph_serves_until_it_is_stopped(finished: Finished, tmp_path: Path, command: Command) -> None:
    place = finished.copy(tmp_path / "place")
    process = place.start(*command.words[1:])
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
    finally:
        process.terminate()
        began = time.monotonic()
        process.wait(20)
    assert time.monotonic() - began < 10


# ----------------------------------------------------------------------------------------------------------- the variables

# What other programs read, and what belongs to the tests.
FOREIGN = {
    "DAGSTER_HOME",
    "DAGSTER_POSTGRES_PASSWORD",
    "CELERY_BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "CLICKHOUSE_TEST_URL",
    "STEP_UP_FOR_RETRY",
}
_VARIABLE = re.compile(r"(?<![\w.])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w.])")
_ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]*) \| [^|]*\|$", re.MULTILINE)
_NO_DEFAULT = re.compile(r"none.*|as clickhouse-connect")
EXAMPLE = REPOSITORY / ".env.example"


def variables_of_the_readme() -> list[tuple[str, str]]:
    """Variable and default of each row of the table; ``_USER`` stands for ``CLICKHOUSE_USER``."""
    table = (REPOSITORY / "README.md").read_text().partition("| variable | default | meaning |")[2].partition("\n\n")[0]
    found: list[tuple[str, str]] = []
    for cell, default in _ROW.findall(table):
        names = re.findall(r"`(\w+)`", cell)
        prefix = names[0].partition("_")[0]
        found += [(f"{prefix}{name}" if name.startswith("_") else name, default.strip()) for name in names]
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_in_a_document_is_one(document: Path) -> None:
    assert set(_VARIABLE.findall(document.read_text())) - set(VARIABLES.values()) - FOREIGN == set()


def test_the_table_of_the_readme_has_every_variable_once_with_its_default() -> None:
    found = variables_of_the_readme()

    assert sorted(name for name, _ in found) == sorted(VARIABLES.values())
    given = {
        name: default.strip("`")
        for name, default in found
        if not _NO_DEFAULT.fullmatch(default) and name != "GOLDSKY_ENDPOINT"
    }
    assert load_settings(given).model_dump() == Settings().model_dump()
    without = {VARIABLES[field] for field, value in Settings().model_dump().items() if value is None}
    assert {name for name, default in found if _NO_DEFAULT.fullmatch(default)} == without


def test_the_example_of_an_env_file_has_every_variable_with_a_line_of_meaning_and_its_default() -> None:
    lines = EXAMPLE.read_text().splitlines()
    given = {line[1:].partition("=")[0]: (at, line.partition("=")[2]) for at, line in enumerate(lines) if "=" in line}

    assert sorted(given) == sorted(VARIABLES.values())
    for name, (at, _) in given.items():
        assert lines[at] == f"#{name}={given[name][1]}"
        assert lines[at - 1].startswith("# "), f"{name} has no line of meaning"
    assert load_settings({name: value for name, (_, value) in given.items()}).model_dump() == Settings().model_dump()


# --------------------------------------------------------------------------------------------------------------- the names

_SOURCES = ("payout_pipeline", "payout_pipeline_tests", "tools", "benchmarks", "deploy")
# Of ClickHouse and of Dagster; they do not occur in our sources.
_OTHERS = {"max_bytes_before_external_group_by"}


@pytest.fixture(scope="module")
def source_words() -> set[str]:
    files = [
        path for room in _SOURCES for path in (REPOSITORY / room).rglob("*") if path.suffix in (".py", ".sql", ".yaml")
    ]
    files += [REPOSITORY / name for name in ("dagster.yaml", "Makefile", "pyproject.toml")]
    names = {path.name for path in files} | {path.stem for path in files}
    return names.union(*(re.findall(r"\w+", path.read_text()) for path in files if path != Path(__file__)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_in_a_document_occurs_in_the_sources(document: Path, source_words: set[str]) -> None:
    names = set(re.findall(r"`([a-z]\w*_\w+(?:\.py)?)`", document.read_text()))

    assert sorted(names - source_words - _OTHERS) == []


@pytest.mark.parametrize("document", [*DOCUMENTS, REPOSITORY / "CHANGELOG.md"], ids=lambda path: path.name)
def test_every_link_within_the_documents_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
