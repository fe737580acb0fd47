"""Writes a stored checkpoint as ModelOpt's "unified" Hugging Face folder.

The layout is that of ``export_hf_checkpoint`` in ModelOpt 0.37: Hugging Face's names, the codes and
scales of the TensorRT-LLM checkpoint as they are, ``hf_quant_config.json`` beside ``config.json``.
INT4 keeps two rows in a byte, so the rows of q, k and v are cut in pairs. Tensors leave one layer
at a time, so a model larger than the memory can be written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint import open_checkpoint
from pipeline.checkpoint.checkpoint import Checkpoint
from pipeline.checkpoint.layout import PACKED_ALGOS, Array, Layer, Linear
from pipeline.errors import CompileError
from pipeline.formats import NO_QUANT, W4A8_AWQ, W4A16_AWQ
from pipeline.models.architectures import QKV
from pipeline.models.config_json import read_config
from pipeline.progress import Progress
from pipeline.targets.weight_files import WeightFiles, copy_companions

QUANT_CONFIG = "hf_quant_config.json"
SHARD_BYTES = 4 << 30
FUSED = (QKV, "mlp.fc", "mlp.gate")
"""What TensorRT-LLM computes as one linear each: q, k and v; gate and up."""
Tensors = dict[str, Array]


def write_unified(
    checkpoint: Path,
    source: Path,
    output: Path,
    progress: Progress,
    *,
    fused: bool,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Fills a folder.

    Args:
        checkpoint: A validated TensorRT-LLM checkpoint of any parallelism.
        source: The snapshot with config.json and the tokenizer.
        output: An empty directory.
        progress: Where the layers are counted.
        fused: Whether the reader has one linear for q, k and v and one for gate and up, as
            TensorRT-LLM has; it reads no pre-quant scale there for weight-only INT4, and one for
            both of them otherwise.
        shard_bytes: The largest file of weights.

    Returns:
        ``quant_algo``, ``bytes`` of the weights, and ``files`` of them.

    Raises:
        CheckpointError: The checkpoint is not complete.
        CompileError: Linears that the reader fuses have scales that it does not read.
    """
    opened = open_checkpoint(checkpoint)
    shards = WeightFiles(output, shard_bytes)
    weights = opened.weights()
    with progress.task("writing the layers", len(weights.layers)) as task:
        shards.add("model.embed_tokens.weight", weights.vocab_embedding)
        for number, layer in enumerate(weights.layers):
            prefix = f"model.layers.{number}."
            for name, value in _layer(opened, layer, fused=fused, where=checkpoint).items():
                shards.add(f"{prefix}{name}", value)
            task.advance()
        shards.add("model.norm.weight", weights.ln_f)
        if not opened.facts.tie_word_embeddings:
            shards.add("lm_head.weight", weights.lm_head.weight)
    size = shards.close()
    _write_config(opened, source, output)
    copy_companions(source, output)
    return {
        "quant_algo": opened.config.quantization.algo,
        "bytes": size,
        "files": shards.count,
    }


def quantization_section(opened: Checkpoint) -> dict[str, Any] | None:
    """Returns ``quantization`` of hf_quant_config.json; None for a model that is not quantized."""
    quantization = opened.config.quantization
    if quantization.algo == NO_QUANT:
        return None
    section: dict[str, Any] = {
        "quant_algo": quantization.algo,
        "kv_cache_quant_algo": quantization.kv_cache_algo,
    }
    if quantization.group_size is not None:
        raw = opened.config.raw.get("quantization") or {}
        section |= {
            "group_size": quantization.group_size,
            "has_zero_point": bool(raw.get("has_zero_point")),
            "pre_quant_scale": True,
        }
    return {**section, "exclude_modules": list(quantization.exclude_modules) or ["lm_head"]}


def _layer(opened: Checkpoint, layer: Layer, *, fused: bool, where: Path) -> Tensors:
    """The tensors of a layer by Hugging Face's names."""
    if fused:
        _refuse_own_scales(layer, where)
    norms = {row.source: layer.norm(row.checkpoint) for row in opened.facts.family.norms}
    tensors: Tensors = {f"{name}.weight": value for name, value in norms.items()}
    for shape in opened.facts.linears:
        linear, start = layer.linear(shape.name), 0
        unread = fused and linear.algo == W4A16_AWQ and shape.name in FUSED
        for part, rows in shape.source:
            cut = _rows(linear, start, start + rows)
            for key, value in _tensors(cut, keeps_prequant=not unread).items():
                tensors[f"{part}.{key}"] = value
            start += rows
    if layer.kv_cache_scaling_factor is not None:
        shared = np.asarray(layer.kv_cache_scaling_factor, np.float32)
        tensors["self_attn.k_proj.k_scale"] = tensors["self_attn.v_proj.v_scale"] = shared
    return tensors


def _refuse_own_scales(layer: Layer, where: Path) -> None:
    """Refuses scales for which linears that are computed as one have no room."""
    fc, gate = layer.fc, layer.gate
    for linear in (layer.qkv, fc, gate):
        scale = linear.prequant_scaling_factor
        if linear.algo == W4A16_AWQ and scale is not None and not (scale == 1).all():
            raise CompileError(
                f"{linear.name} has pre-quant scales",
                where=str(where),
                why="TensorRT-LLM's PyTorch backend reads none for weight-only INT4 where it "
                "computes several linears as one",
                fix="Quantize with quantize.portable: true, which moves them away",
            )
    pairs: Mapping[str, tuple[Any, Any]] = {
        "pre-quant scales": (fc.prequant_scaling_factor, gate.prequant_scaling_factor),
        "activation scales": (fc.activation_scaling_factor, gate.activation_scaling_factor),
        "scales of the float8 stage": (fc.weights_scaling_factor_2, gate.weights_scaling_factor_2),
    }
    for what, (left, right) in pairs.items():
        if fc.algo == W4A8_AWQ and not np.array_equal(left, right):
            raise CompileError(
                f"{fc.name} and {gate.name} have {what} of their own",
                where=str(where),
                why="TensorRT-LLM's PyTorch backend computes them as one linear, which has room "
                "for one",
                fix="Choose another format, or serve compile.target: tensorrt",
            )


def _rows(linear: Linear, start: int, stop: int) -> Linear:
    """Some rows of a linear."""
    if (start, stop) == (0, linear.out_features):
        return linear
    packed = slice(start // 2, stop // 2) if linear.algo in PACKED_ALGOS else slice(start, stop)
    scale = linear.weights_scaling_factor
    if scale is not None and scale.size > 1:
        scale = scale[start:stop]
    return Linear(
        linear.name,
        linear.algo,
        linear.weight[packed],
        scale,
        linear.prequant_scaling_factor,
        linear.activation_scaling_factor,
        linear.weights_scaling_factor_2,
        None if linear.bias is None else linear.bias[start:stop],
    )


def _tensors(linear: Linear, *, keeps_prequant: bool) -> Tensors:
    """The tensors of one linear by the keys of ModelOpt's unified checkpoints."""
    weight = linear.weight.view(np.uint8) if linear.algo in PACKED_ALGOS else linear.weight
    tensors: Tensors = {"weight": weight}
    scale = linear.weights_scaling_factor
    if scale is not None:
        tensors["weight_scale"] = scale.reshape(()) if scale.size == 1 else scale
    for key, number in (
        ("weight_scale_2", linear.weights_scaling_factor_2),
        ("input_scale", linear.activation_scaling_factor),
    ):
        if number is not None:
            tensors[key] = np.asarray(number, np.float32)
    if keeps_prequant and linear.prequant_scaling_factor is not None:
        tensors["pre_quant_scale"] = linear.prequant_scaling_factor
    if linear.bias is not None:
        tensors["bias"] = linear.bias
    return tensors


def _write_config(opened: Checkpoint, source: Path, output: Path) -> None:
    config = dict(read_config(source, CompileError, "The source has config.json"))
    config.pop("quantization_config", None)
    # What it is called since transformers 4.56, whose files TensorRT-LLM's reads either way.
    config.pop("dtype", None)
    config["torch_dtype"] = opened.config.dtype
    section = quantization_section(opened)
    if section is not None:
        producer = {"name": "modelopt", "version": _producer(opened)}
        _write_json(output / QUANT_CONFIG, {"producer": producer, "quantization": section})
    _write_json(output / "config.json", config)


def _producer(opened: Checkpoint) -> str:
    return str((opened.config.raw.get("producer") or {}).get("version", ""))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(f"{json.dumps(content, indent=2, ensure_ascii=False)}\n", encoding="utf-8")
