"""What every command has in common: its line in the list of commands, and how it answers wrong usage."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from payout_pipeline.cli import main
from payout_pipeline.commands import COMMANDS


def test_the_list_of_commands_has_whole_sentences_at_80_columns() -> None:
    found = CliRunner().invoke(main, ["--help"], terminal_width=80)
    assert found.exit_code == 0
    assert "..." not in found.output.partition("Commands:")[2]
    for name in ("backfill", "demo", "subgraph", *(command.name for command in COMMANDS)):
        assert f"\n  {name} " in found.output


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_a_wrong_variable_is_one_message_and_exit_2(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYOUT_WORKERS", "many")
    arguments = {"query": ["0" * 64], "sql": ["SELECT 1"]}.get(command, [])
    found = CliRunner().invoke(main, [command, *arguments])
    assert found.exit_code == 2
    assert "PAYOUT_WORKERS" in found.output
    assert "Traceback" not in found.output


@pytest.mark.parametrize("home", ["~/dagster", "relative", "/does/not/exist"])
@pytest.mark.parametrize("command", ["doctor", "report", "verify"])
def test_a_wrong_dagster_home_is_one_line_and_exit_2(command: str, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", home)
    found = CliRunner().invoke(main, [command])
    assert found.exit_code == 2
    (line,) = found.output.splitlines()
    assert f"DAGSTER_HOME is {home!r}" in line
