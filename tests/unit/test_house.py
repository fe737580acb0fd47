"""The house stays built: between the rooms of ``pipeline/`` imports run one way.

A room is a folder of ``pipeline/`` or a module at its root. What counts is every import that the
source text has, also those inside functions and those for the type checker alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.running.planner import STAGES

PACKAGE = Path(__file__).parents[2] / "pipeline"
Arrow = tuple[str, str]
# What every room may need, and what no room can hold: the package itself, its API, the servers.
MOST_LOOSE = 12


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by dotted name; a folder has the name of its ``__init__.py``."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                if below in known:
                    yield below
                elif base in known:
                    yield base


def room(name: str) -> str:
    """``pipeline.triton.config`` is in ``triton``, ``pipeline.errors`` in ``errors``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def arrows(package: Path) -> dict[Arrow, list[str]]:
    """Which room imports which, with the files that do."""
    known = modules(package)
    found: dict[Arrow, list[str]] = {}
    for name, path in known.items():
        for other in imported(name, path, known):
            here, there = room(name), room(other)
            if here != there:
                found.setdefault((here, there), []).append(f"{name} imports {other}")
    return found


def circles(graph: set[Arrow]) -> list[set[str]]:
    """Groups of rooms each of which reaches every other one of its group."""
    reach: dict[str, set[str]] = {here: set() for arrow in graph for here in arrow}
    for here, reached in reach.items():
        waiting = [here]
        while waiting:
            last = waiting.pop()
            new = {there for start, there in graph if start == last} - reached
            reached.update(new)
            waiting += new
    groups: list[set[str]] = []
    for here, reached in sorted(reach.items()):
        group = {there for there in reached if here in reach[there]}
        if here in reached and group not in groups:
            groups.append(group)
    return groups


def test_imports_between_rooms_run_one_way() -> None:
    found = arrows(PACKAGE)
    for group in circles(set(found)):
        inside = [
            line
            for (here, there), lines in sorted(found.items())
            if {here, there} <= group
            for line in lines
        ]
        pytest.fail(f"{', '.join(sorted(group))} import each other:\n" + "\n".join(inside))


def test_few_modules_lie_loose_at_the_root() -> None:
    loose = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(loose) <= MOST_LOOSE, f"one of these belongs in a room: {', '.join(loose)}"


def test_the_runner_knows_no_stage_by_name() -> None:
    tree = ast.parse((PACKAGE / "running" / "runner.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert texts.isdisjoint(stage.name for stage in STAGES)


@pytest.mark.parametrize(
    "text",
    [
        "import p.b",
        "from p.b import thing",
        "from p import b",
        "from . import b",
        "from .b import thing",
        "def work():\n    from p.b.deep import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import thing",
        "class Late:\n    def work(self):\n        import p.b.deep",
    ],
)
def test_every_kind_of_import_is_seen(text: str, tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "b").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "b" / "__init__.py").touch()
    (package / "b" / "deep.py").write_text("from p.a import other\n")
    (package / "a.py").write_text(text)
    assert circles(set(arrows(package))) == [{"a", "b"}]
    (package / "a.py").write_text("import os\n# from p.b import thing\ntext = 'import p.b'\n")
    assert circles(set(arrows(package))) == []


def test_a_long_circle_is_one_group_and_a_line_is_none() -> None:
    line = {("a", "b"), ("b", "c"), ("c", "d")}
    assert circles(line) == []
    assert circles(line | {("c", "a")}) == [{"a", "b", "c"}]
    assert circles(line | {("b", "a"), ("d", "c")}) == [{"a", "b"}, {"c", "d"}]
