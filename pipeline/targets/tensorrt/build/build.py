"""Builds a TensorRT-LLM engine from a checkpoint, with ``trtllm-build``.

This was written against the recorded contract of TensorRT-LLM 1.2.1 and is tested with a double of
``trtllm-build`` that follows the same contract; it has not run on a GPU.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from pipeline.checkpoint import CheckpointConfig
from pipeline.errors import CompileError
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.targets.base import LOG_NAME
from pipeline.targets.tensorrt.build.checks import (
    check_machine,
    check_same_model,
    other_model,
    predict_here,
)
from pipeline.targets.tensorrt.build.command import Build, command_for
from pipeline.targets.tensorrt.build.engine import (
    check_ranks,
    checkpoint_digest,
    compare,
    read_config,
    refuse_changed_service,
    world_size,
    write_manifest,
)
from pipeline.targets.tensorrt.build.failures import diagnose
from pipeline.targets.tensorrt.build.log import BuildLog
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
    engine_tools,
    inspect_machine,
    toolkit,
)
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.process import run_logged
from pipeline.targets.tensorrt.toolchain import check_tensorrt_llm

# trtllm-build sets it from the number of ranks, whatever it is asked for.
UNPREDICTED = "nccl_plugin"


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
    pretrained = CheckpointConfig.from_directory(checkpoint)
    wanted = BuildConfig.from_recipe(recipe)
    if longest_window is not None:
        wanted = wanted.for_evaluation(longest_window)
    tools, machine = toolkit(), inspect_machine()
    check_tensorrt_llm(tools.tensorrt_llm)
    cache = (timing or timing_folder(output)) / cache_name(tools, machine)
    build = Build(checkpoint.absolute(), output.absolute(), wanted)
    check_machine(machine, pretrained.world_size, build, tools)
    lend_cache(cache, output)
    command = command_for(build, tools)
    prediction = predict_here(recipe, wanted, pretrained, machine)
    predicted = prediction.config
    if unlike := other_model(recipe, machine):
        progress.note(unlike)

    progress.note(f"running {shlex.join(command)}")
    ranks = pretrained.world_size
    with progress.task(f"building {ranks} engine{'s'[: ranks > 1]}", ranks) as task:
        log = BuildLog(progress, task, ranks)
        environ = {**os.environ, **DEVICE_ORDER}
        ending = run_logged(command, output / LOG_NAME, log, environ, directory=output)
    if ending.returncode:
        failure = diagnose(ending.tail, ending.returncode)
        kept = keep_log(output / LOG_NAME, cache.parent)
        said = (
            f" It said: {failure.line}" if failure.line and failure.line not in failure.why else ""
        )
        raise CompileError(
            "trtllm-build failed",
            where=str(kept),
            why=f"{failure.why}.{said}",
            fix=failure.fix,
        )
    keep_cache(output, cache)

    try:
        config = read_config(output)
        engine_bytes = check_ranks(output, world_size(config))
        check_same_model(config, pretrained, tools, output)
        differences = compare(config["build_config"], _expected(predicted))
        refuse_changed_service(differences, output)
    except CompileError:
        kept = keep_log(output / LOG_NAME, cache.parent)
        progress.note(f"the log of this build is kept in {kept}")
        raise
    for difference in differences:
        progress.note(f"the engine's {difference}")

    gpu = machine.gpus[0]
    write_manifest(
        output,
        {
            "target": "tensorrt",
            "gpu": {"name": gpu.name, "sm": gpu.sm, "memory_mib": gpu.memory_mib},
            "driver": machine.driver,
            "tensorrt_llm": config["version"],
            "tensorrt": tools.tensorrt,
            "cuda": tools.cuda,
            "container": tools.image
            and {"image": tools.image, "digest": image_digest(tools.image)},
            "checkpoint": checkpoint_digest(checkpoint),
            "world_size": ranks,
            "flags": wanted.flags(),
            "key": engine_tools(),
        },
    )
    return {
        "target": "tensorrt",
        "quant_algo": pretrained.quantization.algo,
        "kv_cache_quant_algo": pretrained.quantization.kv_cache_algo,
        "engine_bytes": engine_bytes,
        "world_size": ranks,
        "max_batch_size": config["build_config"]["max_batch_size"],
        "max_seq_len": config["build_config"]["max_seq_len"],
        "build_config": predicted.as_dict(),
        "gpu": gpu.name,
        "sm": gpu.sm,
        "tensorrt_llm": config["version"],
        "kv_cache_reuse": prediction.kv_cache_reuse,
        "chunked_context": prediction.chunked_context,
        "differences": [str(difference) for difference in differences],
        "warnings": log.warnings,
    }


def _expected(predicted: BuildConfig) -> dict[str, Any]:
    options = predicted.as_dict()
    del options["plugin_config"][UNPREDICTED]
    return options
