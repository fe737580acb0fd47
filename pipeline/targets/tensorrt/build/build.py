"""Builds a TensorRT-LLM engine from a checkpoint, with ``trtllm-build``.

This was written against the recorded contract of TensorRT-LLM 1.2.1 and is tested with a double of
``trtllm-build`` that follows the same contract; it has not run on a GPU.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import CheckpointConfig
from pipeline.errors import CompileError
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import LOG_NAME
from pipeline.targets.tensorrt.build.checks import check_machine, other_model, predict_here
from pipeline.targets.tensorrt.build.command import Build, command_for
from pipeline.targets.tensorrt.build.engine import checkpoint_digest, write_manifest
from pipeline.targets.tensorrt.build.failures import explain_failure
from pipeline.targets.tensorrt.build.log import BuildLog
from pipeline.targets.tensorrt.build.result import Result, check_result
from pipeline.targets.tensorrt.build.timing_cache import (
    cache_name,
    keep_cache,
    keep_log,
    lend_cache,
    timing_folder,
)
from pipeline.targets.tensorrt.docker import image_digest
from pipeline.targets.tensorrt.environment import (
    DEVICE_ORDER,
    Machine,
    Toolkit,
    engine_tools,
    inspect_machine,
    toolkit,
)
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.preview import Effective
from pipeline.targets.tensorrt.process import run_logged
from pipeline.targets.tensorrt.toolchain import check_tensorrt_llm


@dataclass(frozen=True)
class _Job:
    """One build: what is asked for, what this machine has, and what should come of it."""

    build: Build
    pretrained: CheckpointConfig
    tools: Toolkit
    machine: Machine
    command: list[str]
    prediction: Effective
    cache: Path

    @property
    def ranks(self) -> int:
        return self.pretrained.world_size

    def keep_log(self) -> Path:
        """Saves the log of a failure, whose directory is about to be removed."""
        return keep_log(self.build.output / LOG_NAME, self.cache.parent)


def build_engine(
    checkpoint: Path,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    *,
    timing: Path | None = None,
    longest_window: int | None = None,
) -> dict[str, Any]:
    """Writes ``rankN.engine``, ``config.json``, ``engine.json`` and ``build.log``.

    The log names directories of this machine; the repository leaves it behind in the store.

    Args:
        checkpoint: A validated TensorRT-LLM checkpoint directory.
        recipe: ``compile`` gives sizes and options.
        output: An empty directory.
        progress: Where the ranks are counted and TensorRT-LLM's telling warnings are noted.
        timing: Folder of timing caches; None is ``timing`` in the store that ``output`` is in.
        longest_window: Tokens of the longest prompt whose logits are gathered, for perplexity. Such
            an engine reuses no KV blocks and is not one to serve. None builds the one to serve.

    Returns:
        JSON values: ``target``, ``quant_algo``, ``engine_bytes``, ``world_size``, the effective
        ``build_config``, ``gpu``, ``sm``, ``kv_cache_reuse``, ``chunked_context``, ``differences``
        and ``warnings``.

    Raises:
        UnsupportedError: There is no GPU, GPUs differ, or TensorRT-LLM is another version.
        MissingDependencyError: Neither TensorRT-LLM nor Docker is installed.
        CompileError: The build failed, with the cause; or the engine is not what was predicted.
    """
    wanted = BuildConfig.from_recipe(recipe)
    if longest_window is not None:
        wanted = wanted.for_evaluation(longest_window)
    build = Build(checkpoint.absolute(), output.absolute(), wanted)
    job = _prepare(build, recipe, timing or timing_folder(output))
    if unlike := other_model(recipe, job.machine):
        progress.note(unlike)
    warnings = _run(job, progress)
    result = _check_result(job, progress)
    _write_manifest(job, result)
    gpu = job.machine.gpus[0]
    return {**result.facts(gpu=gpu.name, sm=gpu.sm), "warnings": warnings}


def _prepare(build: Build, recipe: Recipe, timing: Path) -> _Job:
    """Refuses what this machine cannot build, and lends the build its timing cache."""
    pretrained = CheckpointConfig.from_directory(build.checkpoint)
    tools, machine = toolkit(), inspect_machine()
    check_tensorrt_llm(tools.tensorrt_llm)
    check_machine(machine, pretrained.world_size, recipe)
    cache = timing / cache_name(tools, machine)
    lend_cache(cache, build.output)
    command = command_for(build, tools, recipe)
    prediction = predict_here(recipe, build.config, pretrained, machine.gpus[0].model)
    return _Job(build, pretrained, tools, machine, command, prediction, cache)


def _run(job: _Job, progress: Progress) -> list[str]:
    """Runs ``trtllm-build`` and returns its telling warnings.

    Raises:
        CompileError: It failed, with the cause.
    """
    output, ranks = job.build.output, job.ranks
    progress.note(f"running {shlex.join(job.command)}")
    with progress.task(f"building {ranks} engine{'s'[: ranks > 1]}", ranks) as task:
        log = BuildLog(progress, task, ranks)
        environ = {**os.environ, **DEVICE_ORDER}
        ending = run_logged(job.command, output / LOG_NAME, log, environ, directory=output)
    if ending.returncode:
        failure = explain_failure(ending.tail, ending.returncode)
        kept = job.keep_log()
        said = (
            f" It said: {failure.line}" if failure.line and failure.line not in failure.why else ""
        )
        raise CompileError(
            "trtllm-build failed",
            where=str(kept),
            why=f"{failure.why}.{said}",
            fix=failure.fix,
        )
    keep_cache(output, job.cache)
    return log.warnings


def _check_result(job: _Job, progress: Progress) -> Result:
    """Holds the engine that was written against the checkpoint and the prediction.

    Raises:
        CompileError: It is not what was predicted; the log is kept.
    """
    try:
        result = check_result(
            job.build.output, job.pretrained, job.prediction, job.tools.tensorrt_llm
        )
    except CompileError:
        progress.note(f"the log of this build is kept in {job.keep_log()}")
        raise
    for difference in result.differences:
        progress.note(f"the engine's {difference}")
    return result


def _write_manifest(job: _Job, result: Result) -> None:
    """Writes ``engine.json``: what the engine is bound to."""
    tools, gpu = job.tools, job.machine.gpus[0]
    image = tools.image and {"image": tools.image, "digest": image_digest(tools.image)}
    write_manifest(
        job.build.output,
        {
            "target": "tensorrt",
            "gpu": {"name": gpu.name, "sm": gpu.sm, "memory_mib": gpu.memory_mib},
            "driver": job.machine.driver,
            "tensorrt_llm": result.config["version"],
            "tensorrt": tools.tensorrt,
            "cuda": tools.cuda,
            "container": image,
            "checkpoint": checkpoint_digest(job.build.checkpoint),
            "world_size": job.ranks,
            "flags": job.build.config.flags(),
            "key": engine_tools(),
        },
    )
