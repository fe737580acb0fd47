"""``config.json`` of a TensorRT-LLM checkpoint, as far as it decides tensors and arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.quantization import NO_QUANT, Quantization
from pipeline.errors import CheckpointError, SourceError, UnsupportedError
from pipeline.models import ModelFacts

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class CheckpointConfig:
    """A checked ``config.json``.

    Attributes:
        facts: The model, exactly as the source's ``config.json`` would state it.
        dtype: ``float16``, ``bfloat16`` or ``float32``: everything that is not quantized.
        tp_size: Ranks that share each layer.
        pp_size: Groups of ranks that hold consecutive layers.
        use_parallel_embedding: Whether the embedding is cut over the tensor-parallel ranks.
        embedding_sharding_dim: 0 cuts it by token, 1 by feature.
        raw: The file as parsed.
    """

    facts: ModelFacts
    dtype: str
    quantization: Quantization
    tp_size: int
    pp_size: int
    use_parallel_embedding: bool
    embedding_sharding_dim: int
    raw: Mapping[str, Any]

    @property
    def world_size(self) -> int:
        """Number of rank files; rank = tp_rank + tp_size * pp_rank."""
        return self.tp_size * self.pp_size

    @property
    def layers_per_rank(self) -> int:
        """Decoder layers in each rank file, numbered from 0."""
        return self.facts.num_hidden_layers // self.pp_size

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> CheckpointConfig:
        """Checks a parsed ``config.json``.

        Args:
            config: The parsed file.
            where: Its path, for error messages.

        Raises:
            CheckpointError: A key is missing or contradicts another.
            UnsupportedError: The architecture, format or a feature is not supported.
        """
        facts = _facts(config, where)
        dtype = config.get("dtype")
        if dtype not in DTYPES:
            raise CheckpointError(
                f"dtype is {dtype!r}", where=where, fix=f"Use one of {', '.join(DTYPES)}"
            )
        tp_size, pp_size = _mapping(config, where)
        if facts.num_hidden_layers % pp_size:
            raise CheckpointError(
                f"{facts.num_hidden_layers} layers cannot be divided over pp_size {pp_size}",
                where=where,
                why="TensorRT-LLM gives every pipeline rank the same number of layers",
            )
        _check_heads(facts, tp_size, where)
        quantization = Quantization.from_dict(config.get("quantization") or {}, where)
        if quantization.algo_of("lm_head") != NO_QUANT:
            raise UnsupportedError(
                "lm_head is quantized",
                where=where,
                fix="Add lm_head to quantization.exclude_modules and export it in floating point",
            )
        return cls(
            facts=facts,
            dtype=dtype,
            quantization=quantization,
            tp_size=tp_size,
            pp_size=pp_size,
            use_parallel_embedding=bool(config.get("use_parallel_embedding", False)),
            embedding_sharding_dim=int(config.get("embedding_sharding_dim", 0)),
            raw=dict(config),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> CheckpointConfig:
        """Reads ``directory/config.json``.

        Raises:
            CheckpointError: The file is missing, is not JSON, or see :meth:`from_dict`.
        """
        path = directory / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                "there is no config.json",
                where=str(directory),
                why="A checkpoint is a directory with config.json and rankN.safetensors",
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(
                "config.json cannot be read", where=str(path), why=str(error)
            ) from error
        if not isinstance(config, dict):
            raise CheckpointError("config.json is not a JSON object", where=str(path))
        return cls.from_dict(config, str(path))


def _facts(config: Mapping[str, Any], where: str) -> ModelFacts:
    architecture = str(config.get("architecture"))
    required = ["rotary_base", "norm_epsilon", "vocab_size", "head_size", "max_position_embeddings"]
    if architecture.startswith("Qwen"):
        required += ["qwen_type", "attn_bias", "seq_length"]
    missing = [key for key in required if key not in config]
    if missing:
        raise CheckpointError(
            f"{', '.join(missing)} is missing",
            where=where,
            why="TensorRT-LLM would take its own default without a word",
            fix="Export the checkpoint again with trtllm-pipeline run",
        )
    rope = config.get("rotary_scaling")
    source_form = {
        **{key: config[key] for key in _SAME_NAMES if key in config},
        "architectures": [architecture],
        "head_dim": config["head_size"],
        "rms_norm_eps": config["norm_epsilon"],
        "rope_theta": config["rotary_base"],
        "rope_scaling": rope,
        "attention_bias": config.get("attn_bias", False),
        "tie_word_embeddings": bool(
            config.get("tie_word_embeddings") or config.get("share_embedding_table")
        ),
    }
    try:
        facts = ModelFacts.from_config(source_form, where)
    except SourceError as error:
        raise CheckpointError(
            "config.json is not a complete TensorRT-LLM configuration", where=where, why=error.why
        ) from error
    if facts.qwen_type != config.get("qwen_type"):
        raise CheckpointError(
            f"qwen_type is {config.get('qwen_type')!r} for {architecture}",
            where=where,
            why="TensorRT-LLM switches the q/k norms by it",
        )
    return facts


_SAME_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "mlp_bias",
    "sliding_window",
)


def _mapping(config: Mapping[str, Any], where: str) -> tuple[int, int]:
    mapping = config.get("mapping") or {}
    tp_size, pp_size = int(mapping.get("tp_size", 1)), int(mapping.get("pp_size", 1))
    world_size = int(mapping.get("world_size", tp_size * pp_size))
    if min(tp_size, pp_size) < 1 or world_size != tp_size * pp_size:
        raise CheckpointError(
            f"mapping says world_size {world_size}, tp_size {tp_size}, pp_size {pp_size}",
            where=where,
            why="world_size must be tp_size * pp_size; context parallelism is not supported",
        )
    return tp_size, pp_size


def _check_heads(facts: ModelFacts, tp_size: int, where: str) -> None:
    kv_heads = facts.num_key_value_heads
    # With more ranks than KV heads each rank keeps a copy of one head.
    if facts.num_attention_heads % tp_size or max(kv_heads, tp_size) % min(kv_heads, tp_size):
        raise CheckpointError(
            f"{facts.num_attention_heads} heads and {kv_heads} KV heads do not divide over tp_size "
            f"{tp_size}",
            where=where,
        )
