"""What the pipeline knows about each model architecture, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

QwenType = Literal["qwen2", "qwen3"]


@dataclass(frozen=True)
class Architecture:
    """What one Hugging Face architecture fixes, whatever its size.

    Attributes:
        name: The entry of ``architectures`` in ``config.json``.
        defaults: What transformers takes for a key that ``config.json`` leaves out. Null has the
            same meaning as in the file: to be derived from other keys, or none.
        attention_bias: The ``attention_bias`` that is supported.
        windows: Which layers ``sliding_window`` applies to.
        qk_layernorm: Whether each q and k head is RMS-normalized before the rotation.
        qwen_type: TensorRT-LLM's ``qwen_type``; it switches q/k norms in ``QWenForCausalLM``.
    """

    name: str
    defaults: Mapping[str, Any]
    attention_bias: bool = False
    windows: Literal["none", "all", "some"] = "none"
    qk_layernorm: bool = False
    qwen_type: QwenType | None = None


# Sizes have defaults in transformers too, those of one certain model; a file without them is not
# taken for that model.
_LLAMA_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("LlamaForCausalLM", _LLAMA_DEFAULTS),
        Architecture(
            "MistralForCausalLM",
            _LLAMA_DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
            windows="all",
        ),
        Architecture(
            "Qwen2ForCausalLM",
            # Not a key of Qwen2's: its q, k and v have biases whatever the file says.
            _QWEN_DEFAULTS | {"attention_bias": True},
            attention_bias=True,
            windows="some",
            qwen_type="qwen2",
        ),
        Architecture(
            "Qwen3ForCausalLM",
            _QWEN_DEFAULTS | {"head_dim": 128},
            windows="some",
            qk_layernorm=True,
            qwen_type="qwen3",
        ),
    )
}
