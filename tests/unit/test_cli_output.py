"""How much the commands say: -v and -q, their helps, and what a shell offers behind them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline import errors
from pipeline.cli.complete import STAGES as COMPLETED
from pipeline.cli.help import CHOICES, EXAMPLES, PROGRAM
from pipeline.cli.main import app
from pipeline.formats import FORMATS
from pipeline.running.planner import STAGES
from pipeline.targets import TARGETS

from ..conftest import PROJECT

QUIET = ("-q", "--quiet")


def _cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the program, also those that only hold others."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("before", [True, False])
def test_a_quiet_plan_says_what_would_stop_a_run_and_nothing_else(
    before: bool, tmp_path: Path
) -> None:
    plan = ["plan", "configs/demo.yaml", "--build-dir", str(tmp_path)]
    quiet = ["-q", *plan] if before else [*plan, "--quiet"]
    assert _cli(*plan).stdout != ""
    fine = _cli(*quiet)
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "")
    stopped = _cli(*quiet, "--set", "evaluate.text=no.txt")
    assert stopped.returncode == 2
    (line,) = stopped.stdout.splitlines()
    assert line.startswith("this run would fail: ")
    wrong = _cli(*quiet, "--set", "compile.tensor_parallel=3")
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert wrong.stderr.startswith("error: ")


def test_a_run_says_nothing_as_usual_or_more(tmp_path: Path) -> None:
    run = ["run", "configs/demo.yaml", "--build-dir", str(tmp_path), "--until", "source"]
    quiet = _cli("-q", *run)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    (folder,) = (tmp_path / "store" / "source").iterdir()
    usual = _cli(*run, "--force", "source")
    assert usual.stderr.startswith("source: resolve the model snapshot (forced)\n")
    # What came of it, by hand: 256 x 1024 embeddings and four layers of the model's sizes.
    shown = re.fullmatch(
        rf"source      done    {folder.name[:12]}  +\d+\.\d s  "
        r"LlamaForCausalLM, 3\.7 M parameters, 7\.1 MiB\n",
        usual.stdout,
    )
    assert shown, usual.stdout
    more = _cli(*run, "-v", "--force", "source")
    assert folder.name in more.stdout.splitlines()[0]
    assert more.stdout.splitlines()[1] == f"  {folder}"
    assert re.search(
        r"^\d\d:\d\d:\d\d .*/config\.json (was copied|shares its blocks)$", more.stderr, re.M
    )


def test_verbose_does_not_turn_on_the_log_of_a_library() -> None:
    script = """
import atexit, logging, sys
def tell():
    info = [logging.getLogger(n).isEnabledFor(logging.INFO) for n in ("pipeline.x", "urllib3")]
    print(info, logging.getLogger().handlers, file=sys.stderr)
    logging.getLogger("pipeline.x").info("ours")
    logging.getLogger("urllib3").warning("theirs")
atexit.register(tell)
from pipeline.cli.main import main
main()
"""
    for words, told in ((["-v"], "[True, False] []"), ([], "[False, False] []")):
        done = subprocess.run(
            [sys.executable, "-c", script, *words, "schema"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        first, *rest = done.stderr.splitlines()
        assert first == told
        assert [line.split()[-1] for line in rest] == (["ours", "theirs"] if words else ["theirs"])


def test_verbose_and_quiet_exclude_each_other_wherever_they_stand() -> None:
    for words in (["-v", "-q", "schema"], ["-q", "schema", "--verbose"], ["schema", "-v", "-q"]):
        failed = _cli(*words)
        assert failed.returncode == 2
        assert failed.stderr == (
            "error: --verbose and --quiet exclude each other. Give one of them.\n"
        )


def test_options_that_exclude_each_other_are_refused_in_one_document() -> None:
    failed = _cli("-v", "-q", "schema", "--json")
    assert (failed.returncode, failed.stderr) == (2, "")
    assert json.loads(failed.stdout)["what"] == "--verbose and --quiet exclude each other"


def test_the_version_has_a_short_option() -> None:
    assert _cli("-V").stdout == _cli("--version").stdout != ""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_the_options_about_its_output(words: tuple[str, ...]) -> None:
    options = {option for parameter in COMMANDS[words].params for option in parameter.opts}
    wanted = {"--verbose", "-v", "--quiet", "-q", "--debug"}
    if words == ("store",):
        return  # it only holds others
    assert options >= (wanted | {"--json"} if words else wanted)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_examples_and_fits_a_terminal(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    root = COMMANDS[()].make_context(PROGRAM, ["schema"])
    context = root
    for index, word in enumerate(words):
        below = COMMANDS[words[: index + 1]]
        context = typer.Context(below, parent=context, info_name=word)
    COMMANDS[words].get_help(context)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "<bool>" not in shown
    assert not any(place in shown for place in CHOICES)
    assert shown.count(f"   {PROGRAM} ") >= len(EXAMPLES[" ".join(words)]) > 0


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_a_command_line(example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])
    command, context, rest = COMMANDS[()], None, words
    name = PROGRAM
    while True:
        context = command.make_context(name, list(rest), parent=context)
        if not hasattr(command, "commands"):
            break
        name, *rest = rest
        command = command.commands[name]
    for name in (value for value in words if value.startswith("configs/")):
        assert (PROJECT / name).is_file()


def test_helps_list_what_may_be_chosen() -> None:
    run, init = (_cli(name, "--help", COLUMNS="200").stdout for name in ("run", "init"))
    assert ", ".join(stage.name for stage in STAGES) in run
    assert ", ".join(FORMATS) in init
    assert ", ".join(TARGETS) in init


def test_the_help_has_every_exit_code() -> None:
    shown = _cli("--help").stdout
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PipelineError)
    }
    for code in codes:
        assert re.search(rf"^   {code}  +\w", shown, re.M), code
    assert "TRTLLM_PIPELINE_DEBUG" in shown


def test_the_stages_that_a_shell_offers_are_those_of_a_run() -> None:
    assert tuple(stage.name for stage in STAGES) == COMPLETED


# Bash itself asks, with the script that the program gives it.
ASK = """
eval "$(trtllm-pipeline --show-completion)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_trtllm_pipeline_completion trtllm-pipeline
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ru"], ["run"]),
        (["run", "configs/demo-i"], ["configs/demo-int8-sq.yaml"]),
        (["run", "configs/llama-3.1-70"], ["configs/llama-3.1-70b-fp8.yaml"]),
        (["run", "x", "--until", "re"], ["repository", "report"]),
        (["verify", "--only", "log_probs,bor"], ["log_probs,border"]),
        (
            ["compare", "x", "--formats", "fp8,int"],
            ["fp8,int8_sq", "fp8,int4_awq", "fp8,int4_gptq", "fp8,int8_wo"],
        ),
        (["init", "--target", ""], list(TARGETS)),
        (["store", "li"], ["list"]),
        (["-q", "do"], ["doctor"]),
    ],
)
def test_bash_completes(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    program = tmp_path / PROGRAM
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", PROGRAM, *typed],
        cwd=PROJECT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == offered
