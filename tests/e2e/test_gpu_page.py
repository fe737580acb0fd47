"""docs/gpu.md is a session on two machines, each in a folder of its own.

Blocks that say ``console laptop`` and ``console box`` are run in the page's order; the box has the
doubles of a GPU. What is printed has to be what the page says, where ``...`` stands for anything;
in a command, for what that machine printed last.
"""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from tests.conftest import PROJECT
from tests.doubles.trtllm_build.machine import BIN
from tests.pages import Machine, as_shown, blocks, program

PAGE = (PROJECT / "docs" / "gpu.md").read_text(encoding="utf-8")
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
        shutil.copytree(PROJECT / "configs", folder / "configs")
        for text in ("calibration.jsonl", "heldout.jsonl"):
            shutil.copy(PROJECT / "examples" / "tiny_llama" / "data" / text, folder / "configs")
        (folder / "examples").symlink_to(PROJECT / "examples")
        program(
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
    large = root / "laptop" / "Llama-3.1-8B-Instruct"
    large.mkdir()
    shutil.copy(PROJECT / "tests" / "data" / "llama-3.1-8b.json", large / "config.json")
    program(root / "laptop-bin/scp", SCP)
    for double in ("nvidia-smi", "docker"):
        (root / "box-bin" / double).symlink_to(BIN / double)
    (root / "box-bin/python3").symlink_to(sys.executable)
    return made


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


@pytest.mark.timeout(600)
def test_the_page_is_a_session_that_can_be_had(machines: dict[str, Machine]) -> None:
    sessions = [block for block in blocks("docs/gpu.md") if block.runs]
    assert {block.about for block in sessions} == {"laptop", "box"}
    said = dict.fromkeys(machines, "")
    commands = 0
    for block in sessions:
        where = block.about
        for command, shown in block.steps:
            printed = machines[where](as_typed(command, said[where]))
            said[where] += printed
            assert as_shown(shown or "", printed), (
                f"{where}: {command}\n{printed}\n--- shown:\n{shown}"
            )
            commands += 1
            if "--until quantize" in command:  # a checkpoint of another recipe is in the store, too
                machines[where](f"{OTHER_RECIPE} --until quantize")
                assert machines[where].code == 0
    assert commands > 10
    # The two machines share nothing but what was copied.
    assert not (machines["box"].folder / "build").exists()


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
