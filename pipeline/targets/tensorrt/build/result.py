"""Holds an engine directory against the checkpoint and the prediction, wherever it was built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import CheckpointConfig
from pipeline.targets.tensorrt.build.checks import check_same_model
from pipeline.targets.tensorrt.build.engine import (
    OVERRIDDEN,
    Difference,
    Reason,
    check_ranks,
    compare,
    read_config,
    refuse_changed_service,
    world_size,
)
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.preview import Effective

# trtllm-build sets it from the number of ranks, whatever it is asked for.
UNPREDICTED = "nccl_plugin"


@dataclass(frozen=True)
class Result:
    """An engine that is the one that was predicted.

    Attributes:
        config: Its ``config.json``.
        engine_bytes: The size of all ranks.
        differences: Where it is otherwise than predicted, without a change of its service.
        pretrained: The checkpoint's configuration.
        prediction: What was predicted.
    """

    config: dict[str, Any]
    engine_bytes: int
    differences: list[Difference]
    pretrained: CheckpointConfig
    prediction: Effective

    def facts(self, *, gpu: str, sm: int) -> dict[str, Any]:
        """Returns what later stages and the report are told about the engine, as JSON values.

        Args:
            gpu: The name of the GPU that it was built on.
            sm: Its compute capability times ten.
        """
        quantization, sizes = self.pretrained.quantization, self.config["build_config"]
        return {
            "target": "tensorrt",
            "quant_algo": quantization.algo,
            "kv_cache_quant_algo": quantization.kv_cache_algo,
            "engine_bytes": self.engine_bytes,
            "world_size": self.pretrained.world_size,
            "max_batch_size": sizes["max_batch_size"],
            "max_seq_len": sizes["max_seq_len"],
            "build_config": self.prediction.config.as_dict(),
            "gpu": gpu,
            "sm": sm,
            "tensorrt_llm": self.config["version"],
            "kv_cache_reuse": self.prediction.kv_cache_reuse,
            "chunked_context": self.prediction.chunked_context,
            "differences": [str(difference) for difference in self.differences],
        }


def check_result(
    directory: Path,
    pretrained: CheckpointConfig,
    prediction: Effective,
    tensorrt_llm: str,
    reason: Reason = OVERRIDDEN,
) -> Result:
    """Reads an engine directory and compares it with what it should be.

    Args:
        directory: ``config.json`` and one ``rankN.engine`` per rank.
        pretrained: The checkpoint that it should be of.
        prediction: What ``trtllm-build`` was predicted to make of the recipe.
        tensorrt_llm: The version that it should be built with.
        reason: How other options come to be in it, and what to do then.

    Raises:
        CompileError: A file is missing, or the engine is another one.
    """
    config = read_config(directory)
    check_same_model(config, pretrained, tensorrt_llm, directory)
    engine_bytes = check_ranks(directory, world_size(config))
    differences = compare(config["build_config"], _expected(prediction.config))
    refuse_changed_service(differences, directory, reason)
    return Result(config, engine_bytes, differences, pretrained, prediction)


def _expected(predicted: BuildConfig) -> dict[str, Any]:
    options = predicted.as_dict()
    del options["plugin_config"][UNPREDICTED]
    return options
