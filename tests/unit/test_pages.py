"""Every block of every page is of a known kind, and what is typed in it is there.

What runs is run by ``tests/e2e/test_pages.py`` and ``tests/e2e/test_gpu_page.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import ValidationError

from pipeline.cli.main import app
from pipeline.recipe.schema import Recipe

from ..conftest import PROJECT
from ..pages import (
    DATA,
    PAGES,
    RUN,
    Block,
    arguments,
    as_shown,
    blocks,
    blocks_of,
    commands,
    programs,
)

ALL = [block for page in PAGES for block in blocks(page)]
# What is called on the pages beside the project's own programs, its scripts and make.
KNOWN = {
    *(".", "[", "aiperf", "bash", "cat", "cd", "cp", "curl", "cut", "docker", "du", "echo"),
    *(
        "export",
        "git",
        "grep",
        "head",
        "hf",
        "jq",
        "journalctl",
        "kill",
        "kubectl",
        "ls",
        "mkdir",
        "node",
        "npm",
    ),
    *(
        "npx",
        "nvidia-smi",
        "openssl",
        "pip",
        "pre-commit",
        "python",
        "python3",
        "rm",
        "rsync",
        "scp",
        "sed",
    ),
    *("sh", "source", "ssh", "sudo", "systemctl", "tail", "tar", "test", "time", "true", "unset"),
    *("chmod", "ln", "ray", "serve", "uv", "wait", "wget", "ollama", "vllm"),
}
SHELL = {"for", "do", "done", "if", "then", "else", "fi", "while"}
FOLDERS = ("configs", "examples", "scripts", "benchmarks", "docker", "client")
WORKFLOWS = {"github-workflow": "vendor.github-workflows", "gitlab-ci": "vendor.gitlab-ci"}


def test_the_pages_are_found() -> None:
    assert {"README.md", "client/README.md", "docs/gpu.md", "SECURITY.md"} <= set(PAGES)
    assert len([block for block in ALL if block.runs]) > 30


@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_block_is_of_a_known_kind(block: Block) -> None:
    known = block.kind in (*RUN, *DATA) or (not block.kind and block.not_run)
    assert known, (
        f"{block}: say what this block is: {', '.join(('sh', 'console', 'python', *DATA))}; or put "
        "<!-- not run: REASON --> before it"
    )
    if block.kind in DATA and not block.not_run:
        typed = re.search(r"^(\$ |(trtllm-pipeline|pip|curl|make) )", block.text, re.MULTILINE)
        assert not typed, f"{block}: a command in a block that is not run: {typed[0]}"
    if block.kind == "console":
        assert block.text.startswith("$ "), f"{block}: a session begins with a command"
    if block.not_run is not None:
        assert len(block.not_run) > 10, f"{block}: why is it not run?"
        named = re.findall(r"tests/[\w/]+\.py", block.not_run)
        assert [path for path in named if not (PROJECT / path).is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_an_indented_block(page: str) -> None:
    """Markdown takes four spaces behind an empty line for a block, too."""
    text = re.sub(r"^( *)```.*?^\1```$", "", (PROJECT / page).read_text(), flags=re.M | re.S)
    assert re.findall(r"(?<=\n\n) {4,}(?![-*\d|]).*", text) == []


def typed(block: Block) -> list[str]:
    """Its commands; those of a record that names no kind are told by the program."""
    if block.kind:
        return [command for command, _ in block.steps]
    return [line for line in block.text.splitlines() if line.startswith("trtllm-pipeline ")]


TYPED = [
    pytest.param(block, command, id=f"{block}-{command.splitlines()[0][:60]}")
    for block in ALL
    for command in typed(block)
]


@pytest.mark.parametrize(("block", "command"), TYPED)
def test_what_is_typed_is_there(block: Block, command: str) -> None:
    """Options are read by the command line, up to where it would do something."""
    for program, *rest in programs(command):
        given = arguments(rest)
        name = re.sub(r"^\.venv[\w-]*/bin/", "", program)
        if name == "trtllm-pipeline":
            understood(given, fails=_refused(block, command))
        elif name == "make":
            makefile = (PROJECT / "Makefile").read_text()
            targets = [word for word in given if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), command
        elif name.partition("/")[0] in FOLDERS:
            assert os.access(PROJECT / name, os.X_OK), name
        else:
            assert "$" in name or name in KNOWN | SHELL, f"{block}: {name} is unknown"
        for word in given:
            made = (PROJECT / f"{word}.example").exists()
            if word.partition("/")[0] in FOLDERS and not set(word) & set("*$") and not made:
                assert (PROJECT / word).exists(), f"{block}: there is no {word}"


def _refused(block: Block, command: str) -> bool:
    """Whether a session shows that a command is one that is not understood."""
    return any(
        typed == command and (shown or "").startswith("error:") for typed, shown in block.steps
    )


@cache
def command_line() -> Any:
    """The commands of the program, as Typer makes them of its functions."""
    return typer.main.get_command(app)


def understood(words: list[str], *, fails: bool = False) -> None:
    found = command_line()
    try:
        while words and hasattr(found, "get_command") and not words[0].startswith("-"):
            name, *words = words
            found = found.get_command(None, name)
            assert found, name
        if "--help" not in words and "--version" not in words and not hasattr(found, "commands"):
            found.make_context(found.name, list(words))
    except Exception:
        if not fails:
            raise


def test_a_wrong_option_is_found() -> None:
    understood(["store", "list"])
    with pytest.raises(Exception, match="--forse"):
        understood(["run", "configs/demo.yaml", "--forse", "bench"])
    with pytest.raises(AssertionError, match="lst"):
        understood(["store", "lst"])


def test_commands_are_told_apart() -> None:
    text = """# a remark
echo one   # and why
curl localhost \\
    -d '{"a":
 1}'

cat > file <<EOF
echo two
EOF
PYTHONPATH=. python x.py && make demo | head -3 > out
"""
    assert commands(text) == [
        "echo one   # and why",
        "curl localhost \\\n    -d '{\"a\":\n 1}'",
        "cat > file <<EOF\necho two\nEOF",
        "PYTHONPATH=. python x.py && make demo | head -3 > out",
    ]
    *_, last = commands(text)
    called = [arguments(words) for words in programs(last)]
    assert called == [["python", "x.py"], ["make", "demo"], ["head", "-3"]]


def test_a_reason_belongs_to_the_block_behind_it() -> None:
    text = """<!-- not run: takes an hour -->
```sh
make one
```

<!-- a remark -->
```sh
make two
```

<!-- not run: needs a GPU
and docker -->

```sh
make three
```
"""
    found = [(block.text.strip(), block.not_run) for block in blocks_of(text, "page.md")]
    assert found == [
        ("make one", "takes an hour"),
        ("make two", None),
        ("make three", "needs a GPU\nand docker"),
    ]


def test_what_is_shown_is_compared() -> None:
    assert as_shown("a\n...\nd ... f\n", "a\nb\nc\nd e f\n")
    assert as_shown("...\nb\n", "b\n")
    assert as_shown("an error of\nthree lines\n", "an\nerror of three lines\n")
    assert not as_shown("a\n", "a\nb\n")
    assert not as_shown("a\n...\nc\n", "a\nb\n")
    assert not as_shown("a ... c\n", "a b\nc d c e\n")


def test_a_long_output_that_is_another_is_told_at_once() -> None:
    """Of 24 gaps and 4,000 lines, of which the last is not the one of the page."""
    printed = "".join(f"line {number} of many, each with some words\n" for number in range(4000))
    shown = "...\nline ... words\n" * 24
    assert as_shown(shown, printed)
    assert not as_shown(shown + "the end\n", printed)


FRAGMENTS = [block for block in ALL if block.kind == "yaml" and not block.not_run]


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
def test_a_file_on_a_page_is_a_file_of_its_kind(block: Block, tmp_path: Path) -> None:
    """A recipe, or a part of one, has keys that are there; what is for others has their schema."""
    file = tmp_path / "block.yml"
    file.write_text(block.text)
    kind = block.about.partition(" ")[0]
    if kind in WORKFLOWS:
        checker = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
        if checker is None:
            pytest.skip("check-jsonschema is not installed here (Python 3.11 or later)")
        command = [checker, "--builtin-schema", WORKFLOWS[kind], str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        typed = _scripts(yaml.safe_load(block.text))
        assert any("trtllm-pipeline" in line for line in typed)
        for line in typed:
            for name, *rest in programs(line):
                if name.removeprefix(".venv/bin/") == "trtllm-pipeline":
                    understood(arguments(rest))
    elif kind == "compose":
        assert "services" in yaml.safe_load(block.text)
    else:
        assert unknown_keys(yaml.safe_load(block.text)) == []


def _scripts(found: Any) -> list[str]:
    """The command lines of a workflow."""
    if isinstance(found, list):
        return [line for value in found for line in _scripts(value)]
    if not isinstance(found, dict):
        return []
    lines = [found["run"]] if isinstance(found.get("run"), str) else []
    lines += [
        line for key in ("script", "before_script") for line in found.get(key, []) if key in found
    ]
    inside = [line for value in found.values() for line in _scripts(value)]
    return [command for line in lines for command in commands(line)] + inside


def unknown_keys(found: dict[str, Any]) -> list[str]:
    """The keys of a part of a recipe that no recipe has, and values of a wrong type."""
    try:
        Recipe.model_validate(found)
    except ValidationError as error:
        return [
            ".".join(map(str, one["loc"])) for one in error.errors() if one["type"] != "missing"
        ]
    return []


def test_a_key_that_no_recipe_has_is_found() -> None:
    assert unknown_keys({"serve": {"max_queue_sise": 1}}) == ["serve.max_queue_sise"]
    assert unknown_keys({"serve": {"max_queue_size": 1}}) == []


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "json" and not b.not_run], ids=str)
def test_json_on_a_page_can_be_read(block: Block) -> None:
    lines = block.text.splitlines() if block.about == "lines" else [block.text]
    assert all(isinstance(json.loads(line), dict | list) for line in lines)


@pytest.mark.parametrize("page", ["README.md", "docs/gpu.md", "examples/README.md"])
def test_the_shell_is_told_of_the_command_before_it_is_typed(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    first = re.search(r"^(\$ )?trtllm-pipeline ", text, re.MULTILINE)
    assert first
    assert ". .venv/bin/activate" in text[: first.start()]
