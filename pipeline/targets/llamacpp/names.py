"""llama.cpp's names of architectures and tensors, and the order of its rotary pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class Family:
    """What llama.cpp makes of an architecture.

    Attributes:
        name: ``general.architecture``.
        in_pairs: Whether it rotates neighbouring rows of q and k, where Hugging Face rotates those
            half a head apart.
        seventy: What makes it call a model of 80 layers 70B, which its mixtures ask for:
            ``grouped`` is fewer heads of keys and values than of queries; None is nothing.
    """

    name: str
    in_pairs: bool
    seventy: Literal["grouped", "always"] | None

    def is_seventy(self, facts: ModelFacts) -> bool:
        """Says whether llama.cpp calls a model of this family 70B, as ``load_hparams`` does."""
        if self.seventy is None or facts.num_hidden_layers != _SEVENTY:
            return False
        grouped = facts.num_key_value_heads < facts.num_attention_heads
        return grouped or self.seventy == "always"


FAMILIES = {
    "LlamaForCausalLM": Family("llama", in_pairs=True, seventy="grouped"),
    "MistralForCausalLM": Family("llama", in_pairs=True, seventy="grouped"),
    "Qwen2ForCausalLM": Family("qwen2", in_pairs=False, seventy="always"),
    "Qwen3ForCausalLM": Family("qwen3", in_pairs=False, seventy=None),
}


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
