"""The pages of the project: their fenced blocks, what is typed in them, what they show.

A block's first word says what becomes of it:

* ``sh``: commands, which must end with 0
* ``console``: lines that begin with ``$`` are typed, the others are what is printed; ``...`` stands
  for anything, alone in its line for any lines. A second word names the machine.
* ``python``: a program, which must end with 0
* ``text output``: what the block before it prints, as in ``console``
* any other of ``DATA``: read, not run

A comment ``<!-- not run: REASON -->`` in the line before a block leaves it out. Its commands are
still read by the command line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.conftest import PROJECT

PAGES = tuple(
    path.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "client/*.md", "docs/*.md", "examples/**/*.md", "benchmarks/*.md")
    for path in sorted(PROJECT.glob(pattern))
)
RUN = ("sh", "console", "python")
DATA = ("text", "yaml", "json", "ini", "js", "html", "nginx")
PORTS = {8000: "http", 8001: "grpc", 8002: "metrics"}
OPENAI = (9000, "openai")
"""The port of a gateway beside a server, where a command asks for one."""
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file, from the project's root.
        line: The number of its first line.
        kind: The first word behind the fence.
        about: The words behind that.
        text: What is in it.
        not_run: Why it is left out; None where it is not.
    """

    page: str
    line: int
    kind: str
    about: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.kind in RUN and self.not_run is None

    @cached_property
    def steps(self) -> list[tuple[str, str | None]]:
        """Each command with what is shown of its output; None where nothing is said of that."""
        if self.kind == "sh":
            return [(command, None) for command in commands(self.text)]
        if self.kind == "console":
            found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", self.text, re.MULTILINE)
            return [(command, shown) for command, shown in found]
        return []


def blocks(page: str) -> list[Block]:
    """Every block of a page, in order."""
    return blocks_of((PROJECT / page).read_text(encoding="utf-8"), page)


def blocks_of(text: str, page: str) -> list[Block]:
    """Every block of a page's text, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        kind, _, about = match["info"].strip().partition(" ")
        reason = _NOT_RUN.search(before)
        inside = "".join(
            line.removeprefix(match["indent"]) for line in match["text"].splitlines(True)
        )
        found.append(Block(page, before.count("\n") + 1, kind, about, inside, reason and reason[1]))
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell script, with the lines that belong to each."""
    found, lines = [], ""
    for line in text.splitlines(True):
        lines += line
        if not lines.strip() or (line.startswith("#") and lines == line):
            lines = ""
        elif not _goes_on(lines):
            found.append(lines.rstrip("\n"))
            lines = ""
    return [*found, lines.rstrip("\n")] if lines.strip() else found


def _goes_on(lines: str) -> bool:
    """Whether the shell would ask for another line."""
    if lines.rstrip("\n").endswith("\\"):
        return True
    # It warns of a here-document without an end, and ends with 0.
    read = subprocess.run(["bash", "-n"], input=lines, capture_output=True, text=True, check=False)
    return read.stderr != ""


def programs(command: str) -> Iterator[list[str]]:
    """The words of each program that a command line calls, without what is set for it."""
    joined = command.replace("\\\n", " ")
    lexer = shlex.shlex(joined, posix=True, punctuation_chars="&;|()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&;|()"):
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        elif set(word) <= set("<>") and words:
            words.append(word)
        else:
            words.append(word)


def arguments(words: Sequence[str]) -> list[str]:
    """The words of a program without its redirections."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and set(word) > set() and set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


def as_shown(shown: str, printed: str) -> bool:
    """Whether an output is what a page shows, wherever lines are broken.

    One regular expression would try every way to share the output among the ``...`` of a page, and
    need hours to find that there is none.
    """
    words = [match.span() for match in re.finditer(r"\S+", printed)]
    begins = [
        at == 0 or "\n" in printed[words[at - 1][1] : words[at][0]] for at in range(len(words))
    ]
    # How many words of the output what was read of the page can have taken.
    taken = {0}
    for line in shown.splitlines():
        if line.strip() == "...":
            least = min(taken)
            ends = {at for at, begin in enumerate(begins) if begin and at >= least}
            taken |= ends | {len(words)}
            continue
        for word in line.split():
            taken = {end for at in taken for end in _ends(word, printed, words, at)}
            if not taken:
                return False
    return len(words) in taken


def _ends(word: str, printed: str, words: Sequence[tuple[int, int]], at: int) -> Iterator[int]:
    """Behind which words of the output one of the page can end that begins at the given one."""
    if "..." not in word:
        if at < len(words) and printed[slice(*words[at])] == word:
            yield at + 1
        return
    if not word.strip("."):
        yield at
    pattern = re.compile(".*".join(map(re.escape, word.split("..."))))
    for end in range(at + 1, len(words) + 1):
        text = printed[words[at][0] : words[end - 1][1]]
        if "\n" in text:
            return
        if pattern.fullmatch(text):
            yield end


@dataclass
class Machine:
    """A folder and an environment in which commands are typed.

    Attributes:
        folder: Where they run.
        environment: All of their variables.
        code: How the last one ended.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 0

    def __call__(self, command: str) -> str:
        """What a command prints, and its error, without the progress that a terminal shows."""
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
        error = re.search(r"^(?:error:|curl: |Traceback).*", done.stderr, re.MULTILINE | re.DOTALL)
        told = error or '"exit_code": ' in done.stdout
        assert not done.returncode or told, done.stdout + done.stderr
        return done.stdout + (error[0] if error else "")


def program(path: Path, text: str) -> None:
    """Writes an executable file."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def typing_in(folder: Path, home: Path) -> Machine:
    """A folder in which the project's programs can be typed, as in an installed environment.

    Args:
        folder: Where they run; ``.venv`` is made in it.
        home: What the environment says is the user's own folder.
    """
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    program(tools / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program(tools / "trtllm-pipeline", f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    (tools / "activate").write_text("")
    return Machine(
        folder,
        {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(home),
            "PYTHONPATH": f"{PROJECT}:{PROJECT / 'client'}",
            "COLUMNS": "100",
            "LC_ALL": "C.UTF-8",
        },
    )


@contextmanager
def started(command: str, machine: Machine) -> Iterator[dict[str, int]]:
    """The ports, by name, of the server that ``trtllm-pipeline serve`` starts."""
    names = [*PORTS.values()]
    ports = " ".join(f"--{name}-port 0" for name in names)
    port, name = OPENAI
    if f"--{name}" in command:
        command = command.replace(f"--{name} {port}", f"--{name} 0")
        names.append(name)
    log = "" if "--log" in command else "--log served.log"
    typed = shlex.join(shlex.split(command, comments=True))
    with subprocess.Popen(
        ["bash", "-c", f"exec {typed} {ports} {log} --json"],
        cwd=machine.folder,
        env=machine.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            # One document; what the server has to say later is not for here.
            addresses = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
            yield {name: int(re.findall(r":(\d+)", addresses[name])[-1]) for name in names}
        finally:
            process.terminate()
            assert process.wait(60) == 0
