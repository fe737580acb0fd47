"""Checkpoints of random numbers in any format and over any ranks, without a model or ModelOpt."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.expected import ExpectedTensor, expected_tensors
from pipeline.checkpoint.reader import numpy_dtype
from tests.unit.checkpoint.support import write_checkpoint

GROUPS = {"W4A16_AWQ": 128, "NF4": 64}


def drawn_checkpoint(
    directory: Path,
    algo: str,
    *,
    tp: int = 1,
    pp: int = 1,
    quantization: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Writes a checkpoint of 2 layers of 256 features.

    Args:
        directory: Where it goes.
        algo: Its ``quant_algo``, or ``NO_QUANT``.
        tp: Tensor-parallel ranks.
        pp: Pipeline ranks.
        quantization: Further keys of that section.
        changes: Of ``config.json``.
    """
    section: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None}
    if algo != "NO_QUANT":
        section |= {"quant_algo": algo, "exclude_modules": ["lm_head"]}
    if algo in GROUPS:
        section |= {"group_size": GROUPS[algo]}
    if algo == "W4A16_AWQ":
        section |= {"has_zero_point": False, "pre_quant_scale": True}
    settings = {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_size": 64,
        "vocab_size": 101,
        "max_position_embeddings": 128,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 10000.0,
        "use_parallel_embedding": True,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        "quantization": section | (quantization or {}),
        **changes,
    }
    checked = CheckpointConfig.from_dict(json.loads(json.dumps(settings)), str(directory))
    ranks = [
        {
            name: _values(name, tensor, checked, rank)
            for name, tensor in expected_tensors(checked, rank).items()
        }
        for rank in range(tp * pp)
    ]
    return write_checkpoint(directory, settings, *ranks)


def _values(
    name: str, tensor: ExpectedTensor, config: CheckpointConfig, rank: int
) -> np.ndarray[Any, Any]:
    dtype = numpy_dtype(tensor.dtypes[0])
    # Ranks of one layer have the same vectors; those of one rank have neighbours' numbers nowhere.
    shared = len(tensor.shape) == 1
    random = np.random.default_rng(
        [zlib.crc32(name.encode()), rank // config.tp_size if shared else rank]
    )
    if tensor.is_order:
        return random.permutation(tensor.shape[0]).astype(dtype)
    if name.endswith(".zero"):
        # (8 - zero point) * scale, of the scales that are drawn for the linear.
        scales = f"{name.removesuffix('.zero')}.weights_scaling_factor"
        drawn = _values(scales, expected_tensors(config, rank)[scales], config, rank)
        points = random.integers(0, 16, drawn.shape)
        return ((8 - points) * drawn.astype(dtype).astype(np.float32)).T.astype(dtype)
    if tensor.is_scale:
        return random.uniform(0.01, 0.02, tensor.shape).astype(dtype)
    if dtype.kind in "iu":
        return random.integers(0, 256, tensor.shape, dtype=np.uint8).view(dtype)
    return random.normal(size=tensor.shape).astype(dtype)
