"""Every command and every program of the pages is run, in the order of its page.

Each page has a folder of its own, with the project's files and a finished build of the demo, and
servers on ports of their own in the place of 8000 to 8002. What is not run says so on the page;
``docs/gpu.md``, which needs two machines, has a test of its own.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..conftest import DEMO_MODEL, PROJECT
from ..pages import (
    OPENAI,
    PAGES,
    PORTS,
    Block,
    Machine,
    as_shown,
    blocks,
    programs,
    started,
    typing_in,
)
from .conftest import Cli

ELSEWHERE = {"docs/gpu.md"}
RUN = [
    page for page in PAGES if page not in ELSEWHERE and any(block.runs for block in blocks(page))
]
# What a reader has, or puts something else for.
DATA = PROJECT / "examples" / "tiny_llama" / "data"
PROMPTS = "Once upon a time\nOne day, a small dog\nLily had a red ball.\n"
DEMO_SERVER = "trtllm-pipeline serve build/tiny-llama-int4-awq/repository"
PORT = re.compile(r"\b(localhost|127\.0\.0\.1):(800[012]|9000)\b")
NAMES = {**PORTS, OPENAI[0]: OPENAI[1]}

pytestmark = pytest.mark.timeout(600)


@dataclass
class Servers:
    """Servers that pages started, by what they serve."""

    running: dict[str, dict[str, int]] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def ports(self, command: str, machine: Machine) -> dict[str, int]:
        """The ports of the server that a command starts; one of the same artifact runs already."""
        words = shlex.split(command, comments=True)[2:]
        folder = machine.folder / next(word for word in words if not word.startswith("-"))
        folder = folder / "repository" if (folder / "repository").is_dir() else folder
        key = json.loads((folder / "artifact.json").read_text())["key"]
        key += " with a gateway" * ("--openai" in words)
        if key not in self.running:
            self.running[key] = self.stack.enter_context(started(command, machine))
        return self.running[key]


@pytest.fixture(scope="module")
def store(cli: Cli, demo: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store that made the demo, which pages may add to."""
    store = tmp_path_factory.mktemp("pages") / "store"
    subprocess.run(["cp", "-a", str(cli.build / "store"), str(store)], check=True)
    return store


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    found = Servers()
    with found.stack:
        yield found


@pytest.fixture
def machine(store: Path, demo: dict[str, Any], tmp_path: Path) -> Machine:
    """A checkout with a finished demo, as its owner has it in front of them.

    The demo is the page's own: what one page makes of it is no other page's beginning.
    """
    folder = tmp_path / "checkout"
    (folder / "build").mkdir(parents=True)
    (folder / "build" / "store").symlink_to(store)
    outputs = Path(demo["outputs"])
    subprocess.run(["cp", "-a", str(outputs), str(folder / "build" / outputs.name)], check=True)
    for name in ("configs", "examples", "benchmarks", "client", "docker", "Makefile"):
        (folder / name).symlink_to(PROJECT / name)
    shutil.copytree(DEMO_MODEL, folder / "MODEL_DIR")
    shutil.copy(DATA / "calibration.jsonl", folder / "mine.jsonl")
    (folder / "my-prompts.txt").write_text(PROMPTS)
    return typing_in(folder, tmp_path)


@pytest.mark.parametrize("page", RUN)
def test_a_page_can_be_followed(page: str, machine: Machine, servers: Servers) -> None:
    ports: dict[str, int] = {}
    said = ""

    def elsewhere(text: str) -> str:
        """A text with the ports of the server that this page has."""
        nonlocal ports
        if PORT.search(text) and not ports:
            ports = servers.ports(DEMO_SERVER, machine)
        return PORT.sub(lambda match: f"{match[1]}:{ports[NAMES[int(match[2])]]}", text)

    def here(text: str) -> str:
        """A text with the ports that the page names."""
        back = {str(ports[name]): str(shown) for shown, name in NAMES.items() if name in ports}
        return re.sub(r"\b\d{4,5}\b", lambda match: back.get(match[0], match[0]), text)

    for block in blocks(page):
        started = time.monotonic()
        if block.runs and block.kind == "python":
            said = here(_ran(elsewhere(block.text), block, machine))
        elif (block.kind, block.about) == ("text", "output"):
            assert as_shown(block.text, said), f"{block}: printed\n{said}"
        for command, shown in block.steps if block.runs else ():
            if _serves(command) and not (shown or "").startswith("error:"):
                ports = servers.ports(command, machine)
                continue
            said = here(machine(elsewhere(command)))
            if shown is None:
                assert machine.code == 0, f"{block}: {command}\n{said}"
                # curl ends with 0 whatever it was answered.
                assert '{"error"' not in said, f"{block}: {command}\n{said}"
            else:
                assert as_shown(shown, said), f"{block}: {command}\n{said}\n--- shown:\n{shown}"
        if block.runs:
            print(f"{block}: {time.monotonic() - started:.1f} s")


def _serves(command: str) -> bool:
    """Whether a command goes on until it is stopped."""
    words = next(programs(command), [])
    asked = [word for word in words if word.startswith("--print") or word == "--help"]
    return words[:2] == ["trtllm-pipeline", "serve"] and not asked


def _ran(code: str, block: Block, machine: Machine) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=machine.folder,
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return done.stdout
