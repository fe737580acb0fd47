"""docs/install.md: the variables are those that are read, extras and versions those there are."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import rich.console
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.targets.handed_on import PREFIXES
from tests.conftest import PROJECT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PAGE = (PROJECT / "docs" / "install.md").read_text(encoding="utf-8")
PACKAGES = {"pipeline": PROJECT / "pipeline", "trtllm_client": PROJECT / "client/trtllm_client"}
READS = {"get", "pop", "setdefault", "getenv"}


def table_of_variables() -> set[str]:
    table = PAGE.partition("## Environment variables")[2].partition("\n\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@functools.cache
def variables_read() -> frozenset[str]:
    """Each variable that our code reads by a name of its own."""
    return frozenset(_variables_read())


def _variables_read() -> Iterator[str]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((package, *(part for part in parts if part != "__init__")))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield from names_read(node, module)


def names_read(node: ast.AST, module: str) -> Iterator[str]:
    """A constant, or a constant of the module, that a mapping called environ is asked for."""
    if isinstance(node, ast.Subscript):
        asked, key = node.value, node.slice
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in READS
        and node.args
    ):
        asked, key = node.func.value, node.args[0]
        if node.func.attr == "getenv":
            asked = node.func
    else:
        return
    if not re.search(r"\benviron$|getenv$", ast.unparse(asked)):
        return
    if isinstance(key, ast.Constant):
        yield str(key.value)
    elif isinstance(key, ast.Name) and key.id.isupper():
        yield str(getattr(importlib.import_module(module), key.id))


def test_every_variable_that_is_read_is_in_the_table() -> None:
    read = variables_read()
    assert {"TRTLLM_PIPELINE_DEBUG", "TRTLLM_PIPELINE_ENV", "GRPC_VERBOSITY"} <= read
    # Typer's own, which its completion scripts set.
    assert sorted(read - table_of_variables()) == ["_TRTLLM_PIPELINE_COMPLETE"]


def test_every_variable_of_the_table_is_read_by_somebody() -> None:
    libraries = (huggingface_hub.constants, rich.console, shutil, tempfile)
    theirs = "".join(map(inspect.getsource, libraries))
    # The token is asked for beside the constants.
    utils = Path(inspect.getfile(huggingface_hub.constants)).parent / "utils" / "_auth.py"
    theirs += utils.read_text(encoding="utf-8")
    theirs_alone = table_of_variables() - variables_read()
    unread = [name for name in theirs_alone if not re.search(rf"[\"']{name}[\"']", theirs)]
    assert unread == []


def test_what_reaches_a_container_by_itself_is_listed() -> None:
    (sentence,) = re.findall(r"Beginning with (.*?), a variable", PAGE, re.DOTALL)
    assert re.findall(r"`(\w+)`", sentence) == list(PREFIXES)


def test_extras_and_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for found in re.findall(r"'\.\[([\w,]+)\]'", PAGE) for extra in found.split(",")}
    assert named <= project["optional-dependencies"].keys()
    assert {"cpu", "quantize"} <= named
    assert project["requires-python"] == ">=3.10,<3.13"
    assert "Python 3.10, 3.11 or 3.12" in PAGE
    pins = re.findall(r"(\w+) (\d+\.\d+\.\d+)", PAGE)
    extras = project["optional-dependencies"]
    assert len(pins) >= 2
    assert {f"{name}=={version}" for name, version in pins} <= {*extras["quantize"], *extras["cpu"]}


def test_what_doctor_prints_is_what_the_page_shows() -> None:
    shown = re.search(
        r"^```console\n\$ trtllm-pipeline (doctor .*)\n((?s:.*?))^```$", PAGE, re.MULTILINE
    )
    assert shown
    done = CliRunner().invoke(app, shown[1].split())
    assert done.exit_code == 0, done.stdout
    lines = ["(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
             for line in shown[2].splitlines()]  # fmt: skip
    assert re.fullmatch("".join(lines), done.stdout), done.stdout


def test_pip_is_given_what_is_there() -> None:
    """Folders of this project with extras that they have, wheels that are built, known options."""
    lines = re.findall(r"(?:^|`)(?:[\w./]*/)?pip ((?:install|wheel) [^`\n]+)", PAGE, re.MULTILINE)
    assert len(lines) >= 7
    projects = {
        folder: tomllib.loads((PROJECT / folder / "pyproject.toml").read_text("utf-8"))["project"]
        for folder in (".", "client")
    }
    built = {f"wheels/{project['name'].replace('-', '_')}-*.whl" for project in projects.values()}
    options = {"--constraint": "constraints.txt", "--wheel-dir": "wheels", "--no-deps": None}
    for line in lines:
        words = iter(shlex.split(line)[1:])
        for word in words:
            if word in options:
                assert options[word] in (None, next(words) if options[word] else None)
            elif word not in built:
                folder, _, extras = word.rstrip("]").partition("[")
                project = projects[folder.removeprefix("./")]
                known = project.get("optional-dependencies", {})
                assert set(filter(None, extras.split(","))) <= known.keys(), word


def test_targets_of_make_are_there() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"`make (\w+)`", PAGE)
    assert {"demo", "test", "eval"} == set(named)
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in named)


def test_files_and_links_are_there() -> None:
    for name in re.findall(r"\]\(([\w.]+)\)", PAGE):
        assert (PROJECT / "docs" / name).is_file(), name
    for name in re.findall(r"(?:^|`)(scripts/[\w-]+)", PAGE, re.MULTILINE):
        assert (PROJECT / name).is_file(), name
