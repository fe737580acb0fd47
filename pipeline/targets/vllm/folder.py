"""Writes a checkpoint as the Hugging Face folder that vLLM and transformers read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.checkpoint import Checkpoint
from pipeline.errors import CompileError, SourceError
from pipeline.formats import NO_QUANT
from pipeline.models.config_json import read_config
from pipeline.progress import Progress
from pipeline.targets.vllm.layouts import (
    COMPRESSED,
    HEAD,
    LAYOUTS,
    PORTABLE,
    Layout,
    Whole,
    exactly,
)

if TYPE_CHECKING:
    from pipeline.checkpoint.folding import Matrix
    from pipeline.checkpoint.layout import Array, Layer, Weights

SHARD_BYTES = 4 << 30
"""The most of one weight file, tensors that are larger alone excepted."""
# What config.json says of the source's own files: its code, its place and its quantization.
_OF_THE_SOURCE = ("auto_map", "_name_or_path", "quantization_config", "transformers_weights")
_DTYPE_KEYS = ("torch_dtype", "dtype")


def write_folder(
    checkpoint: Checkpoint,
    source: Path,
    output: Path,
    layout: str | None,
    progress: Progress,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes weights, ``config.json``, tokenizer, generation config, chat template and licence.

    Args:
        checkpoint: Of any tensor and pipeline parallelism.
        source: The snapshot that it was made of.
        output: An empty directory.
        layout: The name of one of :data:`LAYOUTS`; None for a checkpoint in floating point.
        progress: Where the layers are counted.
        shard_bytes: The most of one weight file.

    Returns:
        The bytes of the weight files.

    Raises:
        CompileError: A linear does not fit the layout, or a file cannot be written.
        SourceError: The snapshot's ``config.json`` cannot be read.
    """
    from pipeline.targets.weight_files import WeightFiles, copy_companions

    weights = checkpoint.weights()
    tied = _is_tied(checkpoint, weights)
    chosen = None if layout is None else LAYOUTS[checkpoint.config.quantization.algo][layout]
    plain = () if chosen is None else _plain(checkpoint, weights, chosen)
    config = _config(checkpoint, source, chosen, plain=plain, tied=tied)
    try:
        with progress.task("writing the folder", len(weights.layers)) as task:
            shards = WeightFiles(output, shard_bytes)
            for name, tensor in _ends(weights, tied=tied):
                shards.add(name, tensor)
            for number, layer in enumerate(weights.layers):
                for name, tensor in _layer(number, layer, checkpoint, chosen):
                    shards.add(name, tensor)
                task.advance()
            size = shards.close()
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (output / "config.json").write_text(f"{text}\n", encoding="utf-8")
        copy_companions(source, output)
    except OSError as error:
        raise CompileError(
            "the folder for vLLM cannot be written",
            where=str(output),
            why=error.strerror,
            fix="Make sure that the disk has room for a folder as large as the checkpoint",
        ) from error
    return size


def _is_tied(checkpoint: Checkpoint, weights: Weights) -> bool:
    """Whether the head is the embedding, so that the folder needs no tensor of it."""
    import numpy as np

    if not checkpoint.facts.tie_word_embeddings:
        return False
    ours, theirs = weights.lm_head.weight, weights.vocab_embedding
    return ours.shape == theirs.shape and np.array_equal(ours, theirs)


def _config(
    checkpoint: Checkpoint,
    source: Path,
    layout: Layout | None,
    *,
    plain: tuple[str, ...],
    tied: bool,
) -> dict[str, Any]:
    config = read_config(source, SourceError, "A Hugging Face checkpoint has one")
    for key in _OF_THE_SOURCE:
        config.pop(key, None)
    for key in [key for key in _DTYPE_KEYS if key in config] or _DTYPE_KEYS[:1]:
        config[key] = checkpoint.config.dtype
    config["tie_word_embeddings"] = tied
    if layout is not None:
        stored = checkpoint.config.quantization
        config["quantization_config"] = layout.configuration(
            Whole(stored.group_size, stored.zero_points, stored.input_order, plain)
        )
    return config


def _ends(weights: Weights, *, tied: bool) -> Iterator[tuple[str, Array]]:
    yield "model.embed_tokens.weight", weights.vocab_embedding
    yield "model.norm.weight", weights.ln_f
    if not tied:
        yield f"{HEAD}.weight", weights.lm_head.weight


def _layer(
    number: int, layer: Layer, checkpoint: Checkpoint, layout: Layout | None
) -> Iterator[tuple[str, Array]]:
    from pipeline.checkpoint.folding import fold

    folded = fold(layer, checkpoint.facts, codes_alone=False)
    prefix = f"model.layers.{number}."
    for name, reason in folded.left.items():
        raise CompileError(
            f"{prefix}{name} has pre-quant scales that no folder for vLLM has a place for",
            where=str(checkpoint.directory),
            why=reason,
            fix=PORTABLE,
        )
    dtype = checkpoint.config.dtype
    for name, norm in folded.norms.items():
        yield f"{prefix}{name}.weight", exactly(norm, dtype, f"{prefix}{name}", PORTABLE)
    for name, matrix in folded.linears.items():
        named = replace(matrix, name=f"{prefix}{name}")
        for last, tensor in _linear(named, dtype, layout).items():
            yield f"{prefix}{name}.{last}", tensor
        if matrix.bias is not None:
            bias = exactly(matrix.bias, dtype, f"{prefix}{name}.bias", PORTABLE)
            yield f"{prefix}{name}.bias", bias


def _linear(matrix: Matrix, dtype: str, layout: Layout | None) -> dict[str, Array]:
    if layout is not None and matrix.algo != NO_QUANT:
        return layout.tensors(matrix, dtype)
    return {"weight": exactly(matrix.weight, dtype, f"{matrix.name}.weight", PORTABLE)}


def _plain(checkpoint: Checkpoint, weights: Weights, layout: Layout) -> tuple[str, ...]:
    """The linears of a quantized checkpoint that are in floating point, by transformers' names.

    Raises:
        CompileError: The layout has no place for them, or vLLM makes one matrix of one and another
            that is quantized.
    """
    found: list[str] = []
    for number, layer in enumerate(weights.layers):
        for shape in checkpoint.facts.linears:
            if layer.linear(shape.name).algo == NO_QUANT:
                found += [f"model.layers.{number}.{name}" for name, _ in shape.source]
        if (layer.fc.algo == NO_QUANT) != (layer.gate.algo == NO_QUANT):
            raise CompileError(
                f"one of gate_proj and up_proj of layer {number} is quantized, the other is not",
                where=str(checkpoint.directory),
                why="vLLM makes one matrix of both, which has one format",
                fix="Quantize both or neither, or take another compile.target",
            )
    if found and not layout.mixed:
        raise CompileError(
            f"{found[0]} is in floating point, and the layout says of no linear that it is",
            where="compile.vllm.layout",
            fix=COMPRESSED,
        )
    return tuple(found)
