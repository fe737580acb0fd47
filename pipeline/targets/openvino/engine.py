"""Writes the engine directory of the CPU target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.checkpoint import open_checkpoint
from pipeline.errors import CompileError
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.openvino.constants import LeftOut
from pipeline.targets.openvino.graph import build_model
from pipeline.targets.openvino.options import build_config, runtime_properties
from pipeline.targets.openvino.saving import save

MODEL_NAME = "openvino_model"


def write_engine(
    checkpoint: Path, recipe: Recipe, output: Path, progress: Progress
) -> dict[str, Any]:
    """Builds and saves the graph of a checkpoint; see :meth:`OpenVinoTarget.compile`."""
    opened = open_checkpoint(checkpoint)
    quantization = opened.config.quantization
    if quantization.kv_cache_algo is not None:
        raise CompileError(
            f"the CPU target does not execute an {quantization.kv_cache_algo} KV cache",
            where=str(checkpoint),
            fix="Quantize again with quantize.kv_cache: null",
        )
    weights, left_out = opened.weights(), LeftOut()
    with progress.task("building the graph", len(weights.layers)) as task:
        model = build_model(weights, opened.facts, task.advance, left_out)
    path = output / f"{MODEL_NAME}.xml"
    with progress.task("saving the engine", len(left_out)) as task:
        save(model, path, left_out, release=opened.release, written=task.advance)
    properties = runtime_properties(recipe)
    config = {
        "version": __version__,
        "target": "openvino",
        "pretrained_config": dict(opened.config.raw),
        "build_config": build_config(recipe),
        "runtime": properties,
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (output / "config.json").write_text(f"{text}\n", encoding="utf-8")
    return {
        "target": "openvino",
        "quant_algo": quantization.algo,
        "engine_bytes": path.with_suffix(".bin").stat().st_size,
        "max_batch_size": recipe.compile.max_batch_size,
        "max_seq_len": recipe.compile.max_seq_len,
        "runtime": properties,
    }
