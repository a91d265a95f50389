"""The shape of the code: Dagster by its public interface only, imports one way, no file that is too long to read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "payout_pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))
_PRIVATE = re.compile(r"^\s*(from|import) (dagster\._|dagster_shared|dagster\.\w+\._)", re.MULTILINE)
#: These are Dagster's side of the house; everything else is plain functions that know nothing of it.
_DAGSTER = {
    "definitions.py",
    "alert_sensors.py",
    "jobs.py",
    "refresh.py",
    "partitions.py",
    "resources.py",
    "faults.py",
    "assets",
    "checks",
}
_COMMANDS = {"backfill.py", "verify.py", "commands", "report"}  # import it inside of functions


def test_no_module_imports_a_private_part_of_dagster() -> None:
    assert [str(path) for path in FILES if _PRIVATE.search(path.read_text())] == []


def test_domain_code_does_not_import_dagster() -> None:
    outside = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in _DAGSTER | _COMMANDS]
    assert [
        str(path) for path in outside if re.search(r"^\s*(from|import) dagster\b", path.read_text(), re.MULTILINE)
    ] == []


def test_imports_have_no_circle() -> None:
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    graph = {name: {m for m in _imported(path, names) if m != name} for name, path in names.items()}

    def reaches(start: str, goal: str) -> bool:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for module in graph[todo.pop()] - seen:
                if module == goal:
                    return True
                seen.add(module)
                todo.append(module)
        return False

    assert sorted((a, b) for a in graph for b in graph[a] if reaches(b, a)) == []


def _imported(path: Path, names: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {part if part in names else node.module for part in parts}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    assert path.read_text().count("\n") <= 500
