"""Runs the smoke test and the evaluation where the engine can run.

In place where TensorRT-LLM is installed, else in the container that the engine's manifest names.
Several ranks run under ``mpirun``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import MissingDependencyError, StageError
from pipeline.reading.json_text import read_json
from pipeline.store.digests import digest_of
from pipeline.targets.tensorrt.build.engine import read_config, world_size
from pipeline.targets.tensorrt.build.failures import explain_failure
from pipeline.targets.tensorrt.build.timing_cache import keep_log
from pipeline.targets.tensorrt.docker import bind, docker_run
from pipeline.targets.tensorrt.environment import DEVICE_ORDER, another_pythons, toolkit
from pipeline.targets.tensorrt.process import run_logged
from pipeline.targets.tensorrt.serve.container import MPIRUN
from pipeline.targets.tensorrt.trial import script_perplexity, script_smoke

INSIDE = Path("/job")

# Loading a 70B engine from a slow disk takes minutes, and scoring 100,000 tokens on it as long.
# What takes an hour is a rank that waits for another one forever.
TIMEOUT_S = 3600.0

# No token ends a sequence: an engine knows nothing of its tokenizer.
NO_END = -1
PAD = 0


def run_smoke(
    engine: Path,
    prompts: list[list[int]],
    logs: Path,
    *,
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    lookahead: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Generates greedily on an engine.

    Args:
        engine: An engine directory.
        prompts: Token ids.
        logs: Where the log of a failure is kept.
        max_new_tokens: Generated per prompt, at most.
        end_id: Ends a sequence; :data:`NO_END` for none.
        pad_id: Pads outputs.
        lookahead: The three sizes of lookahead decoding; None for an engine without.

    Returns:
        ``new_tokens``, ``seconds`` and ``problems``; see
        :mod:`pipeline.targets.tensorrt.trial.script_smoke`.

    Raises:
        MissingDependencyError: Neither TensorRT-LLM nor Docker is installed.
        StageError: The script failed, with the cause, or did not end.
    """
    request = {
        "prompts": prompts,
        "max_new_tokens": max_new_tokens,
        "end_id": end_id,
        "pad_id": pad_id,
        "lookahead": None if lookahead is None else list(lookahead),
    }
    return run_script(Path(script_smoke.__file__), engine, request, logs)


def run_evaluation(
    engine: Path, windows: list[list[int]], logs: Path, *, end_id: int, pad_id: int
) -> dict[str, Any]:
    """Measures the perplexity of an engine that gathers context logits.

    Args:
        engine: A directory of :func:`pipeline.targets.tensorrt.build.build.build_engine` with
            ``longest_window``.
        windows: Token ids; the first of each window is context only.
        logs: Where the log of a failure is kept.
        end_id: Ends a sequence.
        pad_id: Pads outputs.

    Returns:
        ``perplexity``, ``tokens``, ``nll``, ``seconds`` and ``by_window``; see
        :mod:`pipeline.targets.tensorrt.trial.script_perplexity`.

    Raises:
        MissingDependencyError: Neither TensorRT-LLM nor Docker is installed.
        StageError: The script failed, with the cause, or did not end.
    """
    request = {"windows": windows, "end_id": end_id, "pad_id": pad_id}
    return run_script(Path(script_perplexity.__file__), engine, request, logs)


def run_script(
    script: Path, engine: Path, request: Mapping[str, Any], logs: Path
) -> dict[str, Any]:
    """Runs one of the two scripts and reads its result; keeps its log in ``logs`` if it fails.

    Raises:
        MissingDependencyError: Neither TensorRT-LLM nor Docker is installed.
        StageError: It failed, with the cause, or did not end.
    """
    ranks = world_size(read_config(engine))
    with tempfile.TemporaryDirectory(prefix="trtllm-engine-") as name:
        work = Path(name)
        image = toolkit().image
        seen = engine.resolve() if image is None else Path("/engine")
        shutil.copyfile(script, work / script.name)
        content = json.dumps({**request, "engine": str(seen)})
        (work / "request.json").write_text(content, encoding="utf-8")
        command = script_command(work, script.name, engine, ranks, image)
        log = work / f"{script.stem}.log"
        environ = {**os.environ, **DEVICE_ORDER}
        ending = run_logged(command, log, lambda _line: None, environ, timeout_s=TIMEOUT_S)
        result = work / "result.json"
        if ending.timed_out:
            raise StageError(
                f"{script.stem} did not end on the engine within {TIMEOUT_S:.0f} seconds",
                where=str(keep_log(log, logs)),
                why="It hangs; ranks that cannot reach each other through NCCL wait forever",
                fix="Look at the log, nvidia-smi and nvidia-smi topo -m; NCCL_DEBUG=INFO says what "
                "NCCL waits for, and NCCL_P2P_DISABLE=1 avoids a broken link between GPUs",
            )
        if ending.returncode or not result.is_file():
            failure = explain_failure(ending.tail, ending.returncode)
            raise StageError(
                f"{script.stem} failed on the engine",
                where=str(keep_log(log, logs)),
                why=failure.why + (f". It said: {failure.line}" if failure.line else ""),
                fix=failure.fix,
            )
        return dict(read_json(result))


def script_command(
    work: Path, script: str, engine: Path, ranks: int, image: str | None
) -> list[str]:
    """Returns the command, word by word, that runs a script of a work folder.

    Args:
        work: Holds the script and ``request.json``; receives ``result.json``.
        script: Its file name.
        engine: The engine directory; mounted read-only in a container.
        ranks: Processes, one GPU each.
        image: The container to run it in; None runs it in place.

    Raises:
        MissingDependencyError: Docker or mpirun is needed and not installed.
        UnsupportedError: Docker cannot mount the engine's path.
    """
    base = work if image is None else INSIDE
    python = sys.executable if image is None else "python3"
    command = [python, *(str(base / name) for name in (script, "request.json", "result.json"))]
    if ranks > 1:
        command = [*MPIRUN, "-n", str(ranks), *command]
    if image is None:
        if shutil.which(command[0]) is None:
            raise MissingDependencyError(
                f"{command[0]} is not on the PATH",
                why=f"An engine of {ranks} ranks runs under it",
                fix="Install Open MPI, or run inside the container",
            )
        return command
    if shutil.which("docker") is None:
        if other := another_pythons():
            raise other
        raise MissingDependencyError(
            "neither TensorRT-LLM nor Docker is installed here",
            why="An engine runs only with the TensorRT it was built with",
            fix="Run this pipeline on the GPU machine",
        )
    mounts = [bind(work, str(INSIDE)), bind(engine, "/engine", readonly=True)]
    user = f"{os.getuid()}:{os.getgid()}"
    name = f"trtllm-engine-{digest_of(str(work))[:12]}"
    return [*docker_run(name, user, mounts, str(INSIDE)), image, *command]
