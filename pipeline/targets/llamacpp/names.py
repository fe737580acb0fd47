"""llama.cpp's names of architectures and tensors, and the order of its rotary pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.architectures import Gguf
from pipeline.models.facts import ModelFacts

Array = npt.NDArray[Any]

EMBEDDING, HEAD, LAST_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
ROPE_FACTORS = "rope_freqs.weight"
LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""By transformers' name within a layer."""
NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
ROTATED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Linears whose rows are rotated, and the fact that says how many heads they have."""

_SEVENTY = 80


def family_of(facts: ModelFacts) -> Gguf:
    """Returns what llama.cpp makes of a model's architecture, which it has to know."""
    found = facts.family.gguf
    assert found is not None
    return found


def is_seventy(facts: ModelFacts) -> bool:
    """Says whether llama.cpp calls a model 70B, as ``load_hparams`` does."""
    kind = family_of(facts).seventy
    if kind is None or facts.num_hidden_layers != _SEVENTY:
        return False
    return kind == "always" or facts.num_key_value_heads < facts.num_attention_heads


def block(layer: int, name: str, kind: str = "weight") -> str:
    """Names a tensor of a layer, such as ``blk.0.attn_q.weight``."""
    return f"blk.{layer}.{name}.{kind}"


def to_pairs(rows: Array, heads: int) -> Array:
    """Puts the two rows that are rotated together next to each other.

    Args:
        rows: [heads * head size, ...], the halves of each head one after the other.
        heads: Of q or k.

    Returns:
        The same shape, in pairs.
    """
    half = rows.shape[0] // heads // 2
    pairs = rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows.shape))


def to_halves(rows: Array, heads: int) -> Array:
    """Undoes :func:`to_pairs`."""
    half = rows.shape[0] // heads // 2
    halves = rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows.shape))
