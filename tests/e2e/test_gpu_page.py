"""docs/gpu.md: every command of it is run, or at least understood, as the page prints it.

Blocks that say ``console laptop`` and ``console box`` are run in the page's order, each machine in
a folder of its own; the box has the doubles of a GPU. What is printed has to be what the page says,
where ``...`` stands for anything; in a command, for what that machine printed last. Commands of the
other blocks are parsed and not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer

from pipeline.cli.main import app
from tests.conftest import PROJECT
from tests.doubles.trtllm_build.machine import BIN

PAGE = (PROJECT / "docs" / "gpu.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S+) ?(\S*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OTHER_RECIPE = "trtllm-pipeline run configs/demo-float16.yaml"
TOOLS = (
    *("bash", "cat", "cp", "cut", "df", "dirname", "env", "id", "ls", "mkdir", "mv", "realpath"),
    *("rm", "sed", "sh", "sha256sum", "sort", "tee", "timeout", "tr"),
)
# Copies between the folders of the two machines, wherever it is called from.
SCP = """#!/bin/sh
shift
[ "$1" = -r ] && shift
for last; do :; done
to=$(echo "$last" | sed "s|^box:|$BOX/|")
from=$(echo "$1" | sed "s|^box:|$BOX/|")
cp -r "$from" "$to"
"""


@dataclass
class Machine:
    """A folder with a PATH."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 0

    def __call__(self, command: str) -> str:
        """What a command prints, standard error last but for the progress that a terminal shows."""
        if command == "echo $?":
            return f"{self.code}\n"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        self.code = done.returncode
        errors = [line for line in done.stderr.splitlines(True) if line.startswith("error:")]
        assert not done.returncode or errors, done.stderr
        return done.stdout + "".join(errors)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Machine]:
    root = tmp_path_factory.mktemp("page")
    made = {}
    for name in ("laptop", "box"):
        folder, programs = root / name, root / f"{name}-bin"
        folder.mkdir()
        programs.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool, path="/usr/bin:/bin")
            assert found, tool
            (programs / tool).symlink_to(found)
        for shared in ("configs", "examples"):
            (folder / shared).symlink_to(PROJECT / shared)
        _program(
            programs / "trtllm-pipeline", f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n'
        )
        environment = {
            "PATH": str(programs),
            "HOME": str(folder),
            "BOX": str(root / "box"),
            "PYTHONPATH": f"{PROJECT}:{PROJECT / 'client'}",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            "LC_ALL": "C.UTF-8",
            "TRTLLM_BUILD_DOUBLE_SM": "89",
        }
        made[name] = Machine(folder, environment)
    _program(root / "laptop-bin/scp", SCP)
    for double in ("nvidia-smi", "docker"):
        (root / "box-bin" / double).symlink_to(BIN / double)
    (root / "box-bin/python3").symlink_to(sys.executable)
    return made


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def as_shown(shown: str, printed: str) -> bool:
    """Whether an output is what a page shows; ``...`` is anything, alone in its line any lines."""
    pattern = ""
    for line in shown.splitlines():
        pattern += (
            r"(?:.*\n)*?"
            if line == "..."
            else ".*".join(map(re.escape, line.split("..."))) + r"[ \t]*\n"
        )
    return re.fullmatch(pattern, printed) is not None


def as_typed(command: str, printed: str) -> str:
    """A command in which the words with ``...`` are the ones that were printed, the last ones."""
    words = []
    for word in command.split(" "):
        pattern = r"\S*".join(map(re.escape, word.split("...")))
        words.append(re.findall(pattern, printed)[-1] if "..." in word else word)
    return " ".join(words)


def test_what_is_left_out_of_a_command_is_what_was_printed() -> None:
    assert as_typed("cp a/... b", "made: a/b1\nmade: a/c2\n") == "cp a/c2 b"
    assert as_typed("ls a", "") == "ls a"


def test_what_is_shown_is_compared() -> None:
    assert as_shown("a\n...\nd ... f\n", "a\nb\nc\nd e f\n")
    assert as_shown("...\nb\n", "b\n")
    assert not as_shown("a\n", "a\nb\n")
    assert not as_shown("a\n...\nc\n", "a\nb\n")


@pytest.mark.timeout(600)
def test_the_page_is_a_session_that_can_be_had(machines: dict[str, Machine]) -> None:
    sessions = [(where, text) for kind, where, text in BLOCKS if kind == "console"]
    assert {where for where, _ in sessions} == {"laptop", "box"}
    said = dict.fromkeys(machines, "")
    commands = 0
    for where, text in sessions:
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            printed = machines[where](as_typed(command, said[where]))
            said[where] += printed
            assert as_shown(shown, printed), f"{where}: {command}\n{printed}\n--- shown:\n{shown}"
            commands += 1
            if "--until quantize" in command:  # a checkpoint of another recipe is in the store, too
                machines[where](f"{OTHER_RECIPE} --until quantize")
                assert machines[where].code == 0
    assert commands > 10
    # The two machines share nothing but what was copied.
    assert not (machines["box"].folder / "build").exists()


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {kind for kind, _, _ in BLOCKS} == {"console", "sh", "text"}


PARSED = [line for kind, _, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("line", PARSED)
def test_a_command_that_is_not_run_is_understood(line: str) -> None:
    program, *arguments = [word for word in shlex.split(line) if word != "PIP_EXTRA_INDEX_URL="]
    if program == "trtllm-pipeline":
        name, *options = arguments
        command = typer.main.get_command(app).get_command(None, name)  # type: ignore[attr-defined]
        assert command, name
        command.make_context(name, options)
        recipes = [word for word in options if word.endswith(".yaml")]
        assert all((PROJECT / recipe).is_file() for recipe in recipes)
    elif program == "make":
        makefile = (PROJECT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)
    elif program.startswith("scripts/"):
        assert os.access(PROJECT / program, os.X_OK)
        # Without CUDA it stops before any part; a wrong option would be exit code 2.
        known = [word for word in arguments if word != "cpu" and not word.startswith("build/")]
        text = (PROJECT / "scripts/gpu_check/__main__.py").read_text()
        assert all(f'"{word}"' in text for word in known if word.startswith("--"))
    else:
        known = ("curl", "nvidia-smi", "docker", "git", "cd", ".", ".venv/bin/python")
        assert program in known, line


@pytest.mark.parametrize("page", ["README.md", "docs/gpu.md", "examples/README.md"])
def test_the_shell_is_told_of_the_command_before_it_is_typed(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    first = re.search(r"^(\$ )?trtllm-pipeline ", text, re.MULTILINE)
    assert first
    assert ". .venv/bin/activate" in text[: first.start()]


def test_what_has_not_been_run_is_one_list() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    here = _bullets(PAGE, "## What has not been run on a GPU")
    there = _bullets(readme, "## What has not been run")
    assert len(here) > 2
    assert [bullet for bullet in here if bullet not in there] == []
    assert [b for b in there if re.search(r"GPU|CUDA", b) and b not in here] == []
    assert "docs/gpu.md" in readme


def _bullets(text: str, heading: str) -> list[str]:
    section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return [" ".join(bullet.split()) for bullet in re.split(r"^- ", section, flags=re.M)[1:]]
