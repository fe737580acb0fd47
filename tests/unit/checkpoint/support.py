"""Writes small TensorRT-LLM checkpoints without torch or ModelOpt."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SAFETENSORS_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}
HEADS, KV_HEADS, HEAD, HIDDEN, INNER, VOCAB, LAYERS = 4, 2, 64, 256, 384, 101, 2
QKV = (HEADS + 2 * KV_HEADS) * HEAD


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file with its tensors in the given order."""
    header, blobs, position = {}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": SAFETENSORS_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [position, position + len(blob)],
        }
        position += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def config(**changes: Any) -> dict[str, Any]:
    """``config.json`` of a two-layer float16 Llama."""
    found: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_size": HEAD,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 10000.0,
        "use_parallel_embedding": True,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }
    return found | changes


AWQ = {
    "quant_algo": "W4A16_AWQ",
    "kv_cache_quant_algo": None,
    "group_size": 128,
    "has_zero_point": False,
    "pre_quant_scale": True,
    "exclude_modules": ["lm_head"],
}
INT8 = {
    "quant_algo": "W8A8_SQ_PER_CHANNEL",
    "kv_cache_quant_algo": "INT8",
    "exclude_modules": ["lm_head"],
}


def float16_tensors() -> dict[str, np.ndarray]:
    """The tensors of ``config()``, written out by hand from TensorRT-LLM's table."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float16)

    tensors = {"transformer.vocab_embedding.weight": draw(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"transformer.layers.{layer}."
        tensors |= {
            f"{prefix}attention.qkv.weight": draw(QKV, HIDDEN),
            f"{prefix}attention.dense.weight": draw(HIDDEN, HEADS * HEAD),
            f"{prefix}mlp.fc.weight": draw(INNER, HIDDEN),
            f"{prefix}mlp.gate.weight": draw(INNER, HIDDEN),
            f"{prefix}mlp.proj.weight": draw(HIDDEN, INNER),
            f"{prefix}input_layernorm.weight": draw(HIDDEN),
            f"{prefix}post_layernorm.weight": draw(HIDDEN),
        }
    tensors |= {
        "transformer.ln_f.weight": draw(HIDDEN),
        "lm_head.weight": draw(VOCAB, HIDDEN),
    }
    return tensors


def int8_tensors() -> dict[str, np.ndarray]:
    """The same in W8A8_SQ_PER_CHANNEL with an INT8 KV cache."""
    random = np.random.default_rng(1)
    tensors = {}
    for name, array in float16_tensors().items():
        tensors[name] = array
        if array.ndim == 1 or not name.startswith("transformer.layers."):
            continue
        module = name.removesuffix(".weight")
        rows, columns = array.shape
        tensors[name] = random.integers(-127, 128, (rows, columns)).astype(np.int8)
        tensors[f"{module}.weights_scaling_factor"] = np.full(rows, 0.01, np.float32)
        tensors[f"{module}.activation_scaling_factor"] = np.full(1, 0.02, np.float32)
        tensors[f"{module}.prequant_scaling_factor"] = np.ones(columns, np.float16)
    for layer in range(LAYERS):
        name = f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"
        tensors[name] = np.full(1, 0.03, np.float32)
    return tensors


def write_checkpoint(
    directory: Path, settings: Mapping[str, Any], *ranks: Mapping[str, np.ndarray]
) -> Path:
    """A checkpoint directory with one file per given rank."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings))
    for rank, tensors in enumerate(ranks):
        write_safetensors(directory / f"rank{rank}.safetensors", tensors)
    return directory
