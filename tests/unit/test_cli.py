"""The command line's surface: start-up, help, errors, streams."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import PROJECT

HEAVY = ("torch", "transformers", "modelopt", "openvino", "numpy", "tritonclient", "grpc", "rich")


ENVIRONMENT = {**os.environ, "COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1"}


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )


def _cli(*arguments: str | bytes) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _shell(redirected: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command with streams that only a shell can make; ``$@`` stands for it."""
    return subprocess.run(
        ["sh", "-c", redirected, "sh", sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.cli.main",
        "pipeline.api",
        "pipeline.running.planner",
        "pipeline.running.runner",
        "pipeline.recipe.docs",
        "pipeline.scaffold.draft",
    ],
)
def test_start_up_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = set(_python("-c", code).stdout.split())
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


WITHOUT_TRITONCLIENT = """
import sys
for absent in ("tritonclient", "grpc"):
    sys.modules[absent] = None
from pipeline.cli.main import main
main()
"""


def test_a_plan_looks_at_what_verify_found_without_tritonclient() -> None:
    script = WITHOUT_TRITONCLIENT.partition("from pipeline")[0] + (
        "from pathlib import Path\n"
        "from pipeline.stages.verify import check\n"
        "from pipeline.store.artifact import Artifact\n"
        "check(None, Artifact('verify', 'k', 'd', Path(), {'checks': [{'status': 'passed'}]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("plan", "configs/demo.yaml", "--json"), 0),
        (("generate", "--url", "127.0.0.1:1", "--json", "Hi"), 3),
        (("verify", "--url", "127.0.0.1:1", "--json"), 3),
        (("bench", "--url", "127.0.0.1:1", "--json"), 3),
    ],
)
def test_only_commands_that_talk_to_a_server_need_tritonclient(
    arguments: tuple[str, ...], code: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITONCLIENT, *arguments],
        cwd=PROJECT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        error = json.loads(done.stdout)
        assert error["error"] == "MissingDependencyError"
        assert "tritonclient" in error["why"]
        assert "pip install ./client '.[client]'" in error["fix"]


def test_a_plan_without_the_texts_says_what_would_stop_a_run(tmp_path: Path) -> None:
    arguments = ("plan", "configs/demo.yaml", "--build-dir", str(tmp_path), "--set")
    done = _cli(*arguments, "evaluate.text=no.txt", "--json")
    assert done.returncode == 2
    plan = json.loads(done.stdout)
    assert plan["stages"][0]["status"] == "run"
    assert plan["obstacle"]["what"] == "no.txt: there is no such text file"
    assert plan["obstacle"]["where"] == "--set evaluate.text=no.txt (evaluate.text)"
    shown = _cli(*arguments, "evaluate.text=no.txt")
    assert "this run would fail: " in shown.stdout
    assert (shown.returncode, shown.stderr) == (2, "")
    good = _cli(*arguments, "name=x", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["obstacle"] is None


def test_a_plan_takes_the_price_as_compare_does(tmp_path: Path) -> None:
    arguments = ("plan", "configs/demo.yaml", "--build-dir", str(tmp_path), "--json")
    plan = json.loads(_cli(*arguments, "--price", "3.6", "--utilization", "0.25").stdout)
    for row in plan["roofline"]["formats"]:
        # 3.6 an hour is a thousandth a second, of which a quarter is used.
        assert row["cost_per_million"] == pytest.approx(1e3 / 0.25 / row["together"])
    (refused,) = [_cli(*arguments, "--price", "-1")]
    assert refused.returncode == 2
    assert "cost.price_per_hour" in refused.stdout


@pytest.mark.parametrize("command", ["run", "plan", "compare", "lm-eval"])
def test_no_line_of_a_help_is_broken_early(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = [line.strip() for line in _cli(command, "--help").stdout.split("╭")[0].splitlines()]
    # A line that follows another directly means that the other one was full.
    for line, after in itertools.pairwise(told):
        if line and after and "[OPTIONS]" not in line:
            assert len(f"{line} {after.split()[0]}") > 65


def test_help_names_every_command() -> None:
    text = _python("-m", "pipeline", "--help").stdout
    for command in (
        "run plan serve generate verify bench compare lm-eval doctor store".split()  # noqa: SIM905
    ):
        assert re.search(rf"\b{command}\b", text), command


def test_the_version() -> None:
    from pipeline import __version__

    assert _python("-m", "pipeline", "--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "name"),
    [([], "recipe.schema.json"), (["--json"], "recipe.schema.json"), (["--markdown"], "recipe.md")],
)
def test_schema_prints_the_files_of_docs(arguments: list[str], name: str) -> None:
    done = _cli("schema", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (PROJECT / "docs" / name).read_text(encoding="utf-8")


def test_schema_is_either_a_page_or_json() -> None:
    done = _cli("schema", "--markdown", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["what"] == "--markdown does not print JSON"


MISUSES = [
    (["nope"], "trtllm-pipeline: no such command 'nope'"),
    (["run"], "trtllm-pipeline run: missing argument"),
    (["run", "x.yaml", "--forse", "a"], "no such option: --forse"),
    (["run", "x.yaml", "--until"], "--until"),
    (["run", "x.yaml", "y.yaml"], "y.yaml"),
    (["serve", "x", "--grpc-port", "many"], "--grpc-port"),
    (["serve", "x", "--grpc-port", "99999"], "--grpc-port must be between 0 and 65535"),
    (["serve", "x", "--grpc-port", "8002"], "--grpc-port and --metrics-port are the same: 8002"),
    (
        ["serve", "x", "--grpc-port", "8000", "--http-port", "8000"],
        "--grpc-port and --http-port are the same: 8000",
    ),
    (["serve", "x", "--log", "no/such/triton.log"], "no/such/triton.log: the folder of this"),
    (["verify", "--url", "h:1", "--junit", "no/such/x.xml"], "no/such/x.xml: the folder of"),
    (["verify", "--url", "h:1", "--junit", "tests"], "tests: this is a folder"),
    (["verify", "--url", "h:99999"], "not a server address"),
    (["verify", "--url", "h:1", "--repository", "x"], "--url and --repository exclude each other"),
    (["bench"], "say where the server is"),
    (["bench", "--url", "h:1", "--header", "secret"], "--header needs NAME=VALUE"),
    (["bench", "--repository", "x", "--tls-root", "y"], "has no TLS"),
    (["generate", "hi", "--url", "h:1", "--timeout", "0"], "timeout must be above 0 seconds"),
    (["generate", "-", "--url", "h:1"], "standard input: prompt is empty"),
    (["store", "nope"], "trtllm-pipeline store: no such command 'nope'"),
    (["store", "list", "--build-dir", "no/such"], "no/such: there is no such build directory"),
    (["store", "verify", "--build-dir", "tests"], "tests: this directory holds no artifact store"),
    (["store", "prune", "--build-dir", "tests"], "tests: this directory holds no artifact store"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISUSES)
def test_a_misuse_is_one_paragraph_with_exit_code_2(arguments: list[str], expected: str) -> None:
    failed = _cli(*arguments)
    assert failed.returncode == 2, failed.stderr
    assert failed.stdout == ""
    *progress, error = failed.stderr.splitlines()
    assert error.startswith("error: ")
    assert expected in error
    assert all(line.endswith(" ...") for line in progress)
    assert not Path(PROJECT, "no").exists()


@pytest.mark.parametrize(("arguments", "expected"), MISUSES[:4] + MISUSES[-3:])
def test_a_misuse_is_one_json_document_when_asked_for(arguments: list[str], expected: str) -> None:
    # In front of the arguments, where an option without its value does not swallow it.
    words = 2 if arguments[0] == "store" else 1
    failed = _cli(*arguments[:words], "--json", *arguments[words:])
    assert failed.returncode == 2
    assert failed.stderr == ""
    error = json.loads(failed.stdout)
    assert error["exit_code"] == 2
    assert expected in f"{error['where']}: {error['what']}"


@pytest.mark.parametrize("arguments", [[], ["store"]])
def test_nothing_at_all_shows_the_help(arguments: list[str]) -> None:
    done = _cli(*arguments)
    assert done.returncode == 2
    assert done.stderr == ""
    assert "Usage: trtllm-pipeline" in done.stdout


def test_an_argument_that_is_no_text_can_be_told_as_json() -> None:
    failed = _cli("run", b"caf\xe9.yaml", "--json")
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["where"] == "caf\udce9.yaml"


@pytest.mark.parametrize("command", [["doctor"], ["doctor", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command],
            cwd=PROJECT,
            env=ENVIRONMENT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_an_error() -> None:
    failed = _shell('exec "$@" >/dev/full', "doctor")
    assert failed.returncode == 5
    assert failed.stderr == "error: the output cannot be written. No space left on device.\n"
    # The error of a command is more than the error of its output.
    assert _shell('exec "$@" >/dev/full 2>&1', "run", "x.yaml", "--json").returncode == 2


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_an_error_that_nobody_hears_has_its_exit_code(closed: str) -> None:
    failed = _shell(f'exec "$@" {closed}', "run", "x.yaml")
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", "")


def test_a_closed_standard_input_is_an_empty_prompt() -> None:
    failed = _shell('exec "$@" <&-', "generate", "-", "--url", "127.0.0.1:1")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: standard input: prompt is empty")


def test_a_damaged_store_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "store" / "source" / ("a" * 64)).mkdir(parents=True)
    failed = _cli("store", "verify", "--json", "--build-dir", str(tmp_path))
    assert failed.returncode == 5
    document = json.loads(failed.stdout)
    assert document["error"] == "StoreError"
    assert [Path(damage["path"]).name for damage in document["damaged"]] == ["a" * 64]
