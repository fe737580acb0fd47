"""Writes an export for vLLM: the folder, what serves it, and what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.checkpoint import Checkpoint, open_checkpoint
from pipeline.errors import CompileError
from pipeline.formats import ALGOS
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.vllm.commands import FOLDER, Served, write_compose, write_repository
from pipeline.targets.vllm.folder import write_folder
from pipeline.targets.vllm.readme import notes, readme
from pipeline.targets.vllm.refusals import layout_of


def write_export(
    checkpoint: Path, source: Path, recipe: Recipe, output: Path, progress: Progress
) -> dict[str, Any]:
    """Writes all of it; see :meth:`pipeline.targets.vllm.target.VllmTarget.compile`."""
    opened = open_checkpoint(checkpoint)
    quantization = opened.config.quantization
    if quantization.kv_cache_algo is not None:
        raise CompileError(
            f"an {quantization.kv_cache_algo} KV cache is not written for vLLM",
            where=str(checkpoint),
            fix="Quantize again with quantize.kv_cache: null",
        )
    layout, served = layout_of(recipe), Served.of(recipe)
    folder = output / FOLDER
    folder.mkdir()
    size = write_folder(opened, source, folder, layout, progress)
    said = notes(quantization.algo, gated=_gate_differs(opened))
    for note in said:
        progress.note(f"{note}.")
    write_repository(served, output)
    write_compose(output)
    (output / "README.md").write_text(
        readme(served, quantization.algo, layout, said), encoding="utf-8"
    )
    config = {
        "version": __version__,
        "target": "vllm",
        "layout": layout,
        "engine_arguments": served.arguments(),
        "pretrained_config": dict(opened.config.raw),
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (output / "config.json").write_text(f"{text}\n", encoding="utf-8")
    return {
        "target": "vllm",
        "quant_algo": quantization.algo,
        "layout": layout,
        "engine_bytes": size,
        "max_batch_size": recipe.compile.max_batch_size,
        "max_seq_len": recipe.compile.max_seq_len,
    }


def _gate_differs(checkpoint: Checkpoint) -> bool:
    """Whether FP8 matrices that vLLM makes one of have scales of their own."""
    if ALGOS[checkpoint.config.quantization.algo].scales != "tensor":
        return False
    return any(
        gate.weights_scaling_factor != up.weights_scaling_factor
        for gate, up in ((layer.fc, layer.gate) for layer in checkpoint.weights().layers)
    )
