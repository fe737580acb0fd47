"""A test double of ``trtllm-build`` 1.2: arguments, loading, overrides, engine directory.

It builds no engine: each ``rankN.engine`` is a text that says so. The environment chooses the
machine it pretends to be on:

* ``TRTLLM_BUILD_DOUBLE_SM``       compute capability times ten, 90 unless set
* ``TRTLLM_BUILD_DOUBLE_GPUS``     number of GPUs, 1 unless set
* ``TRTLLM_BUILD_DOUBLE_VERSION``  the version it reports, 1.2.1 unless set
* ``TRTLLM_BUILD_DOUBLE_FAIL``     a failure of :mod:`trtllm_build.replays`, after loading
* ``TRTLLM_BUILD_DOUBLE_SABOTAGE`` ``option=json`` changed in the configuration it writes, or
  ``skip-rank`` to leave the last engine out
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from copy import deepcopy
from pathlib import Path
from typing import Any

from . import arguments as command_line
from . import checkpoint, overrides
from .replays import replay

PLACEHOLDER = "This is not a TensorRT engine. A test double of trtllm-build wrote it for rank {}.\n"
VERSION = os.environ.get("TRTLLM_BUILD_DOUBLE_VERSION", "1.2.1")
SM = int(os.environ.get("TRTLLM_BUILD_DOUBLE_SM", "90"))
GPUS = int(os.environ.get("TRTLLM_BUILD_DOUBLE_GPUS", "1"))


def log(level: str, text: str) -> None:
    """Prints a line in the form of TensorRT-LLM's logger."""
    print(f"[11/23/2026-12:00:00] [TRT-LLM] [{level}] {text}", flush=True)


def main() -> int:
    """Runs the command; the exit code is that of the process."""
    arguments = command_line.parser().parse_args()
    print(f"[TensorRT-LLM] TensorRT LLM version: {VERSION}", flush=True)
    log("I", f"CUDA_DEVICE_ORDER={os.environ.get('CUDA_DEVICE_ORDER')}")
    if GPUS == 0:
        print("ValueError: max_workers must be greater than 0", file=sys.stderr)
        return 1
    try:
        return _build(arguments)
    except Exception:  # noqa: BLE001 - as the real tool: a traceback and exit code 1
        traceback.print_exc()
        return 1


def _build(arguments: Any) -> int:
    if arguments.gather_context_logits and arguments.max_draft_len > 0:
        raise RuntimeError("Gather context logits is not support with draft len > 0. ")
    directory, output = Path(arguments.checkpoint_dir), Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    config = checkpoint.read_config(directory, log)
    if arguments.logits_dtype:
        config["logits_dtype"] = arguments.logits_dtype
    if arguments.multiple_profiles == "enable" and arguments.opt_num_tokens is not None:
        raise RuntimeError("multiple_profiles is enabled, while opt_num_tokens is set.")
    if arguments.input_timing_cache:
        cache = Path(arguments.input_timing_cache).read_bytes()
        log("I", f"Read {len(cache)} bytes of timing cache from {arguments.input_timing_cache}")
    plugins = command_line.plugin_config(arguments, config["dtype"])
    overrides.validate_plugins(plugins, SM)
    for name, value in plugins.items():
        log("I", f"Set PluginConfig.{name} to {value}.")
    written: dict[str, Any] = {}
    world_size = config["mapping"]["world_size"]
    failure = os.environ.get("TRTLLM_BUILD_DOUBLE_FAIL")
    for rank in range(world_size):
        checkpoint.load(directory, config, rank, log)
        if failure:
            return replay(failure)
        build = build_config(arguments, deepcopy(plugins))
        overrides.apply(build, config, SM, log)
        _log_rank(build, rank)
        if rank == 0:
            written = build
        if arguments.dry_run or _skipped(rank, world_size):
            continue
        path = output / f"rank{rank}.engine"
        log("I", f"Serializing engine to {path}...")
        path.write_text(PLACEHOLDER.format(rank))
        log("I", "Engine serialized. Total time: 00:00:00")
    Path(arguments.output_timing_cache).write_text("placeholder of a timing cache\n")
    log("I", f"Timing cache serialized to {arguments.output_timing_cache}")
    _write(output, config, written)
    log("I", "Total time of building all engines: 00:00:01")
    return 0


def build_config(arguments: Any, plugins: dict[str, Any]) -> dict[str, Any]:
    """``BuildConfig`` as it is written, before any override."""
    values = vars(arguments)
    cache_type = values["kv_cache_type"]
    if cache_type is None:
        cache_type = "PAGED"
    plugins["paged_kv_cache"] = cache_type == "PAGED"
    names = (
        "max_input_len",
        "max_seq_len",
        "max_batch_size",
        "max_beam_width",
        "max_num_tokens",
        "opt_num_tokens",
        "max_prompt_embedding_table_size",
        "gather_context_logits",
        "gather_generation_logits",
        "profiling_verbosity",
        "enable_debug_output",
        "max_draft_len",
        "input_timing_cache",
        "output_timing_cache",
        "weight_sparsity",
        "weight_streaming",
        "max_encoder_input_len",
        "monitor_memory",
    )
    return {
        **{name: values[name] for name in names},
        "opt_batch_size": 8,
        "kv_cache_type": cache_type,
        "strongly_typed": True,
        "force_num_profiles": None,
        "speculative_decoding_mode": command_line.SPECULATION[values["speculative_decoding_mode"]],
        "use_refit": False,
        "lora_config": _lora_config(values, plugins),
        "use_strip_plan": values["strip_plan"],
        "use_mrope": False,
        "plugin_config": plugins,
    }


def _lora_config(values: dict[str, Any], plugins: dict[str, Any]) -> dict[str, Any]:
    """Without the plugin the options are not read."""
    config: dict[str, Any] = {"lora_dir": [], "lora_ckpt_source": "hf", "max_lora_rank": 64}
    config["lora_target_modules"] = []
    if plugins["lora_plugin"] is not None:
        config["max_lora_rank"] = values["max_lora_rank"]
        config["lora_target_modules"] = values["lora_target_modules"] or []
    return config


def _log_rank(build: dict[str, Any], rank: int) -> None:
    log("I", f"Set nccl_plugin to {build['plugin_config']['nccl_plugin']}.")
    log("I", "Total time of constructing network from module object 0.1 seconds")
    log("I", f"Build TensorRT engine Unnamed Network {rank}")
    print("[TRT] [I] Engine generation completed in 0.1 seconds.", flush=True)
    log("I", f"Total time of building Unnamed Network {rank}: 00:00:00")


def _skipped(rank: int, world_size: int) -> bool:
    sabotage = os.environ.get("TRTLLM_BUILD_DOUBLE_SABOTAGE")
    return sabotage == "skip-rank" and rank == world_size - 1


def _write(output: Path, config: dict[str, Any], build: dict[str, Any]) -> None:
    sabotage = os.environ.get("TRTLLM_BUILD_DOUBLE_SABOTAGE", "")
    name, equals, value = sabotage.partition("=")
    if equals:
        section, _, option = name.rpartition(".")
        (build[section] if section else build)[option] = json.loads(value)
    engine = {"version": VERSION, "pretrained_config": config, "build_config": build}
    (output / "config.json").write_text(json.dumps(engine, indent=4))
