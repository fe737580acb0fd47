"""Finds the Python that has lm-eval, and lets it do a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline._version import __version__
from pipeline.errors import MissingDependencyError, PipelineError, StageError, UsageError, cause
from pipeline.harness.job import Job

# What it prints tells which of both is there, and whether this project is of the same version.
_PROBE = """
import importlib.util as u
found = [u.find_spec(name) is not None for name in ("lm_eval", "pipeline")]
version = __import__("pipeline._version")._version.__version__ if found[1] else None
print(__import__("json").dumps([*found, version]))
"""
NO_FOREIGN_CODE = {"HF_DATASETS_TRUST_REMOTE_CODE": "0"}
"""No data set brings code that runs, whatever the shell has set; from version 4 on, ``datasets``
has none of it at all."""
INSTALL = (
    "Install it once, in a checkout of this project: `make eval`, or `pip install ./client "
    "'.[eval]'` into an environment of its own, and name that one's Python with --python"
)


def default_python() -> Path:
    """Returns the Python of the environment that ``scripts/install-eval`` makes beside this one."""
    prefix = Path(sys.prefix)
    return prefix.with_name(f"{prefix.name}-eval") / "bin" / "python"


def find_python(named: Path | None) -> Path:
    """Returns the Python that has lm-eval and this project.

    Args:
        named: The one that the user names; None takes that of :func:`default_python`.

    Raises:
        UsageError: The named one is no program.
        MissingDependencyError: There is none, or it has no lm-eval, or another version of this
            project.
    """
    python = named or default_python()
    if not os.access(python, os.X_OK) or python.is_dir():
        if named:
            raise UsageError("this is no Python that can be run", where=str(named), fix=INSTALL)
        raise MissingDependencyError("lm-eval is not installed", where=str(python), fix=INSTALL)
    try:
        probed = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=60
        )
        lm_eval, ours, version = json.loads(probed.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise UsageError(
            "this is no Python that can be run", where=str(python), why=_why(error), fix=INSTALL
        ) from error
    if not lm_eval or not ours:
        missing = "lm-eval" if not lm_eval else "this project"
        raise MissingDependencyError(
            f"{missing} is not installed in that environment", where=str(python), fix=INSTALL
        )
    if version != __version__:
        raise MissingDependencyError(
            f"that environment has version {version} of this project, not {__version__}",
            where=str(python),
            fix="Install this version there again, as the first time",
        )
    return python


def _why(error: Exception) -> str:
    """What a Python that was probed said, without the program that it was given."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"It did not answer within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or "").strip().splitlines()
        return said[-1] if said else f"It ended with exit code {error.returncode}"
    return str(error)


def evaluate(job: Job, python: Path) -> dict[str, Any]:
    """Lets lm-eval do a job, in a process of the other environment.

    Args:
        job: What to do.
        python: As :func:`find_python` returns it. What lm-eval reports goes to stderr.

    Returns:
        lm-eval's ``results``, ``versions``, ``n-shot`` and ``n-samples``, by task.

    Raises:
        PipelineError: What the process met, such as a task that is not there.
        StageError: The process failed otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "job.json", Path(folder) / "found.json"
        job.write(given)
        done = subprocess.run(
            [python, "-m", "pipeline.harness", given, found],
            stdout=sys.stderr,
            check=False,
            env={**os.environ, **NO_FOREIGN_CODE},
        )
        if done.returncode or not found.is_file():
            raise StageError(
                f"lm-eval ended with exit code {done.returncode}",
                where=str(python),
                why="Its own words are above",
                fix="Correct what they name; --limit 2 shows soon whether it works",
            )
        return _answered(found, python)


def _answered(found: Path, python: Path) -> dict[str, Any]:
    try:
        answer = json.loads(found.read_text(encoding="utf-8"))
        if error := answer.get("error"):
            raise _as_ours(error)
        if not answer["results"]:
            raise ValueError("no task has a result")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            "what lm-eval found cannot be read",
            where=str(python),
            why=cause(error),
            fix=INSTALL,
        ) from error
    result: dict[str, Any] = answer
    return result


def _as_ours(error: dict[str, Any]) -> PipelineError:
    kind = getattr(errors, error["kind"])
    ours: PipelineError = kind(
        error["what"], where=error["where"], why=error["why"], fix=error["fix"]
    )
    return ours
