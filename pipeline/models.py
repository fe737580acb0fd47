"""What the pipeline knows about each model architecture, read from a Hugging Face ``config.json``.

Nothing here imports torch: ``plan`` and the pre-flight work from ``config.json`` alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import SourceError, UnsupportedError

QwenType = Literal["qwen2", "qwen3"]


@dataclass(frozen=True)
class Architecture:
    """What one Hugging Face architecture fixes, whatever its size.

    Attributes:
        name: The entry of ``architectures`` in ``config.json``.
        attention_bias: Whether q, k and v have biases when ``config.json`` does not say.
        qk_layernorm: Whether each q and k head is RMS-normalized before the rotation.
        qwen_type: TensorRT-LLM's ``qwen_type``; it switches q/k norms in ``QWenForCausalLM``.
    """

    name: str
    attention_bias: bool = False
    qk_layernorm: bool = False
    qwen_type: QwenType | None = None


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("LlamaForCausalLM"),
        Architecture("MistralForCausalLM"),
        Architecture("Qwen2ForCausalLM", attention_bias=True, qwen_type="qwen2"),
        Architecture("Qwen3ForCausalLM", qk_layernorm=True, qwen_type="qwen3"),
    )
}

# Rope types whose frequencies TensorRT-LLM and our graph compute from config.json alone.
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class LinearShape:
    """One linear of a decoder layer, as the TensorRT-LLM checkpoint names and fuses it.

    Attributes:
        name: ``attention.qkv``, ``attention.dense``, ``mlp.fc``, ``mlp.gate`` or ``mlp.proj``.
        out_features: Rows of the weight over all ranks.
        in_features: Columns of the weight over all ranks.
        split: What tensor parallelism cuts: ``column`` is out_features, ``row`` is in_features.
    """

    name: str
    out_features: int
    in_features: int
    split: Literal["column", "row"]


@dataclass(frozen=True)
class ModelFacts:
    """The facts of one model that every stage agrees on.

    Attributes:
        rotary_base: Rope theta.
        rotary_scaling: Hugging Face's ``rope_scaling`` with ``rope_type``; None for plain rope.
        sliding_window: Tokens each position attends to; None for full attention.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    hidden_act: str
    rotary_base: float
    rotary_scaling: dict[str, Any] | None
    attention_bias: bool
    mlp_bias: bool
    qk_layernorm: bool
    qwen_type: QwenType | None
    tie_word_embeddings: bool
    sliding_window: int | None

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """The quantizable linears of a decoder layer; gate_proj is ``fc``, up_proj is ``gate``."""
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        qkv = (heads + 2 * kv_heads) * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        return (
            LinearShape("attention.qkv", qkv, hidden, "column"),
            LinearShape("attention.dense", hidden, heads * self.head_size, "row"),
            LinearShape("mlp.fc", inner, hidden, "column"),
            LinearShape("mlp.gate", inner, hidden, "column"),
            LinearShape("mlp.proj", hidden, inner, "row"),
        )

    @property
    def longest_sequence(self) -> int:
        """Positions the rotary embedding is meant for, as TensorRT-LLM derives ``max_seq_len``.

        ``max_position_embeddings`` of a llama3-scaled model already counts the scaling; that of a
        linearly scaled one does not.
        """
        scaling = self.rotary_scaling
        if scaling is None or scaling["rope_type"] != "linear":
            return self.max_position_embeddings
        return int(self.max_position_embeddings * float(scaling["factor"]))

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> ModelFacts:
        """Reads a Hugging Face ``config.json``, of transformers 4 or 5.

        Args:
            config: The parsed file.
            where: Its path, for error messages.

        Raises:
            SourceError: A required key is missing or has the wrong type.
            UnsupportedError: The architecture or one of its features is not supported.
        """
        architecture = _architecture(config, where)
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            base, scaling = _rope(config, where)
            facts = cls(
                architecture=architecture.name,
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or hidden // heads),
                vocab_size=int(config["vocab_size"]),
                max_position_embeddings=int(config["max_position_embeddings"]),
                norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
                hidden_act=str(config.get("hidden_act", "silu")),
                rotary_base=base,
                rotary_scaling=scaling,
                attention_bias=bool(config.get("attention_bias", architecture.attention_bias)),
                mlp_bias=bool(config.get("mlp_bias", False)),
                qk_layernorm=architecture.qk_layernorm,
                qwen_type=architecture.qwen_type,
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                sliding_window=_sliding_window(config),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                "config.json is not a complete model configuration",
                where=where,
                why=f"{type(error).__name__}: {error}",
                fix="Use the directory that save_pretrained() or the Hub wrote, unchanged",
            ) from error
        _refuse_unsupported_features(facts, where)
        return facts

    @classmethod
    def from_directory(cls, directory: Path) -> ModelFacts:
        """Reads ``directory/config.json``.

        Raises:
            SourceError: The file is missing or is not JSON.
            UnsupportedError: See :meth:`from_config`.
        """
        path = directory / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SourceError(
                "there is no config.json",
                where=str(directory),
                why="A Hugging Face checkpoint is a directory with config.json and *.safetensors",
                fix="Point model.source at such a directory or at a Hub id",
            ) from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SourceError(
                "config.json cannot be read", where=str(path), why=str(error)
            ) from error
        if not isinstance(config, dict):
            raise SourceError("config.json is not a JSON object", where=str(path))
        return cls.from_config(config, str(path))


def _architecture(config: dict[str, Any], where: str) -> Architecture:
    names = config.get("architectures") or ["none"]
    name = str(names[0])
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"architecture {name} is not supported",
            where=where,
            fix=f"Supported architectures: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[name]


def _rope(config: dict[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(parameters.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    rope_type = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    if rope_type not in ROPE_TYPES:
        raise UnsupportedError(
            f"rope scaling of type {rope_type} is not supported",
            where=where,
            fix=f"Supported rope types: {', '.join(ROPE_TYPES)}",
        )
    if rope_type == "default":
        return base, None
    return base, {"rope_type": rope_type, **parameters}


def _sliding_window(config: dict[str, Any]) -> int | None:
    # Qwen2 configurations carry a window that use_sliding_window leaves switched off.
    if not config.get("use_sliding_window", True) or not config.get("sliding_window"):
        return None
    return int(config["sliding_window"])


def _refuse_unsupported_features(facts: ModelFacts, where: str) -> None:
    reasons = []
    if facts.hidden_act != "silu":
        reasons.append(f"hidden_act is {facts.hidden_act}, only silu is supported")
    if facts.mlp_bias:
        reasons.append("mlp_bias is true; biased MLP linears are not in the checkpoint contract")
    if facts.attention_bias and facts.qwen_type != "qwen2":
        # Llama's attention_bias also puts a bias on o_proj, which the Qwen2 layout does not have.
        reasons.append("attention_bias is true; only Qwen2 attention biases are supported")
    if facts.num_attention_heads % facts.num_key_value_heads:
        reasons.append("num_attention_heads is not a multiple of num_key_value_heads")
    if reasons:
        raise UnsupportedError(
            f"{facts.architecture} cannot be used", where=where, why="; ".join(reasons)
        )
