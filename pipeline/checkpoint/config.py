"""``config.json`` of a TensorRT-LLM checkpoint, as far as it decides tensors and arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, SourceError, UnsupportedError
from pipeline.models import ModelFacts

NO_QUANT = "NO_QUANT"
W8A8 = "W8A8_SQ_PER_CHANNEL"
W4A16 = "W4A16_AWQ"
W4A8 = "W4A8_AWQ"
FP8 = "FP8"
QUANT_ALGOS = (NO_QUANT, W8A8, W4A16, W4A8, FP8)
AWQ_ALGOS = (W4A16, W4A8)
KV_CACHE_ALGOS = ("INT8", "FP8")

# The fields of TensorRT-LLM 1.2's QuantConfig; its constructor raises on any other key.
QUANTIZATION_KEYS = frozenset(
    (
        "quant_algo",
        "kv_cache_quant_algo",
        "group_size",
        "smoothquant_val",
        "clamp_val",
        "use_meta_recipe",
        "has_zero_point",
        "pre_quant_scale",
        "exclude_modules",
    )
)
# What QuantConfig leaves unquantized when exclude_modules is null.
DEFAULT_EXCLUDES = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Quantization:
    """The ``quantization`` section.

    Attributes:
        algo: ``quant_algo``; ``NO_QUANT`` where the file says null.
        kv_cache_algo: ``INT8``, ``FP8`` or None.
        group_size: Input features per INT4 scale; None for formats without groups.
        exclude_modules: fnmatch patterns of modules that stay in floating point.
    """

    algo: str
    kv_cache_algo: str | None
    group_size: int | None
    exclude_modules: tuple[str, ...]

    @classmethod
    def from_dict(cls, section: Mapping[str, Any], where: str) -> Quantization:
        """Reads the section as TensorRT-LLM 1.2 does.

        Raises:
            CheckpointError: A key is unknown, or the format lacks a key without which TensorRT-LLM
                would load it silently wrong.
            UnsupportedError: The format is not one of ours.
        """
        unknown = sorted(set(section) - QUANTIZATION_KEYS)
        if unknown:
            raise CheckpointError(
                f"unknown quantization key {', '.join(unknown)}",
                where=where,
                why="TensorRT-LLM's QuantConfig refuses keys it does not know",
                fix=f"Known keys: {', '.join(sorted(QUANTIZATION_KEYS))}",
            )
        algo = section.get("quant_algo") or NO_QUANT
        if algo not in QUANT_ALGOS:
            raise UnsupportedError(
                f"quant_algo {algo} is not supported",
                where=where,
                why=_reason(algo),
                fix=f"Supported: {', '.join(QUANT_ALGOS)}",
            )
        kv_cache_algo = section.get("kv_cache_quant_algo")
        if kv_cache_algo is not None and kv_cache_algo not in KV_CACHE_ALGOS:
            raise UnsupportedError(
                f"kv_cache_quant_algo {kv_cache_algo} is not supported",
                where=where,
                fix=f"Supported: null, {', '.join(KV_CACHE_ALGOS)}",
            )
        if algo in AWQ_ALGOS:
            _check_awq(section, algo, where)
        excludes = section.get("exclude_modules")
        return cls(
            algo=algo,
            kv_cache_algo=kv_cache_algo,
            group_size=int(section["group_size"]) if algo in AWQ_ALGOS else None,
            exclude_modules=DEFAULT_EXCLUDES if excludes is None else tuple(excludes),
        )

    def algo_of(self, module: str) -> str:
        """The format of one module, named as in the checkpoint without ``.weight``."""
        if any(fnmatchcase(module, pattern) for pattern in self.exclude_modules):
            return NO_QUANT
        return self.algo


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


def _reason(algo: str) -> str | None:
    if algo.endswith("_PLUGIN"):
        return (
            "The smooth-quant plugin layers have other tensors (per_channel_scale, smoother, "
            "scale_to_int) and drop Qwen3's q/k norms; W8A8_SQ_PER_CHANNEL is the same arithmetic"
        )
    if algo in ("W8A16", "W4A16"):
        return "TensorRT-LLM quantizes weight-only formats itself while it loads them"
    return None


def _check_awq(section: Mapping[str, Any], algo: str, where: str) -> None:
    problems = []
    if section.get("group_size") not in (64, 128):
        problems.append(f"group_size is {section.get('group_size')!r}, not 64 or 128")
    if section.get("has_zero_point") is not False:
        problems.append("has_zero_point is not false")
    if section.get("pre_quant_scale") is not True:
        problems.append("pre_quant_scale is not true, so the pre-quant scales would be ignored")
    if problems:
        raise CheckpointError(
            f"quantization is not complete for {algo}", where=where, why="; ".join(problems)
        )


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
