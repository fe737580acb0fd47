"""Where lm-eval is looked for, and what is said when it is not there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import MissingDependencyError, StageError, UnsupportedError, UsageError
from pipeline.harness.job import Job
from pipeline.harness.launch import default_python, evaluate, find_python

from ..conftest import PROJECT

JOB = Job("s", "c", None, False, ("a", "b"), 3, None, None, 10, 20)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_default_is_beside_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/somewhere/.venv")
    assert default_python() == Path("/somewhere/.venv-eval/bin/python")
    with pytest.raises(MissingDependencyError, match="lm-eval is not installed") as found:
        find_python(None)
    assert "make eval" in (found.value.fix or "")
    assert "eval:" in (PROJECT / "Makefile").read_text()


def test_an_environment_without_lm_eval_is_refused() -> None:
    """This one has none, and must not: what it brings breaks ModelOpt."""
    with pytest.raises(MissingDependencyError, match="lm-eval is not installed in that env"):
        find_python(Path(sys.executable))


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("[true, false, null]", MissingDependencyError, "this project is not installed"),
        ('[true, true, "0.0.1"]', MissingDependencyError, "version 0.0.1 of this project, not"),
        ("nonsense", UsageError, "no Python that can be run"),
        ("null", UsageError, "no Python that can be run"),
        ("5", UsageError, "no Python that can be run"),
        ("[true]", UsageError, "no Python that can be run"),
    ],
)
def test_what_the_other_python_says_counts(
    tmp_path: Path, said: str, error: type[Exception], words: str
) -> None:
    python = script(tmp_path / "python", f"echo '{said}'")
    with pytest.raises(error, match=words):
        find_python(python)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo first >&2; echo 'No module named x' >&2; exit 1", "No module named x"),
        ("exit 3", "It ended with exit code 3"),
        ("printf '\\377'", "invalid start byte"),
    ],
)
def test_a_python_that_fails_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as found:
        find_python(script(tmp_path / "python", text))
    assert "find_spec" not in str(found.value)


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="no Python that can be run"):
            find_python(path)


def test_the_job_arrives_and_what_comes_back_is_returned(tmp_path: Path) -> None:
    kept = tmp_path / "job.json"
    python = script(tmp_path / "python", f'cp "$3" {kept}; echo \'{{"results": 1}}\' > "$4"')
    assert evaluate(JOB, python) == {"results": 1}
    assert Job.read(kept) == JOB


def test_an_error_for_people_is_raised_here(tmp_path: Path) -> None:
    error = {"kind": "UnsupportedError", "what": "no", "where": "w", "why": None, "fix": "f"}
    text = json.dumps({"error": error})
    python = script(tmp_path / "python", f"echo '{text}' > \"$4\"")
    with pytest.raises(UnsupportedError, match="no") as found:
        evaluate(JOB, python)
    assert (found.value.where, found.value.fix, found.value.exit_code) == ("w", "f", 3)


def test_a_process_that_dies_is_a_failed_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="lm-eval ended with exit code 7"):
        evaluate(JOB, script(tmp_path / "python", "exit 7"))


def test_a_process_that_dies_late_has_found_nothing(tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'echo \'{"results": 1}\' > "$4"; exit 9')
    with pytest.raises(StageError, match="lm-eval ended with exit code 9"):
        evaluate(JOB, python)


@pytest.mark.parametrize(
    "said", ["", "{", "null", "[1]", "{}", '{"results": {}}', '{"error": "no"}', '{"error": {}}']
)
def test_an_answer_that_is_none_is_a_failed_stage(tmp_path: Path, said: str) -> None:
    python = script(tmp_path / "python", f"echo '{said}' > \"$4\"")
    with pytest.raises(StageError, match="what lm-eval found cannot be read"):
        evaluate(JOB, python)


def test_nothing_is_read_by_a_shell_and_no_data_set_runs_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", "1")
    kept, pwned = tmp_path / "job.json", tmp_path / "pwned"
    text = f'cp "$3" {kept}; echo "{{\\"results\\": \\"$HF_DATASETS_TRUST_REMOTE_CODE\\"}}" > "$4"'
    hostile = replace(JOB, tasks=(f"$(touch {pwned})", f"`touch {pwned}`", f"a; touch {pwned}"))
    assert evaluate(hostile, script(tmp_path / "python", text)) == {"results": "0"}
    assert Job.read(kept) == hostile
    assert not pwned.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--model", "checkpont", "--tasks", "x"),
            "neither source, nor checkpoint, nor an",
        ),
        (("--model", "source", "--tasks", " , "), "--tasks names no task"),
        (
            ("--model", "source", "--tasks", "a", "--header", "authorization=secret"),
            "computed here, and connects to nothing",
        ),
        (
            ("--model", "checkpoint", "--tasks", "a", "--tls-root", "authority.pem"),
            "Leave --header and the TLS options out",
        ),
        (
            ("--model", "localhost:8001", "--tasks", "a", "--header", "secret"),
            "--header needs NAME=VALUE",
        ),
        (
            ("--model", "grpcs://localhost:8001", "--tasks", "a", "--tls-root", "nothing.pem"),
            "nothing.pem: the TLS file cannot be read",
        ),
        (
            ("--model", "localhost:8001", "--tasks", "a", "--timeout", "-1"),
            "timeout",
        ),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["trtllm-pipeline", "lm-eval", "r.yaml", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert words in " ".join(capfd.readouterr().err.split())
