"""``config.json`` of a TensorRT-LLM checkpoint, as far as it decides tensors and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.quantization import Quantization
from pipeline.errors import CheckpointError, SourceError, UnsupportedError
from pipeline.formats import NO_QUANT
from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.config_json import ConfigValues, read_config
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import RankShare, split_problem

DTYPES = ("float16", "bfloat16", "float32")
POSITIONS = {"position_embedding_type": "rope_gpt_neox"}
"""How every supported model knows where a token is: rope, halves of a head rotated together.
TensorRT-LLM takes a checkpoint without the key for ``learned_absolute``, so without rope."""


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

    @property
    def share(self) -> RankShare:
        """What each tensor-parallel rank holds."""
        return RankShare(self.facts, self.tp_size)

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
        values = ConfigValues({**_DEFAULTS, **config}, where, CheckpointError)
        facts = _facts(config, values, where)
        dtype = config.get("dtype")
        if dtype not in DTYPES:
            raise CheckpointError(
                f"dtype is {dtype!r}", where=where, fix=f"Use one of {', '.join(DTYPES)}"
            )
        tp_size, pp_size = _mapping(values.section("mapping"), where)
        if facts.num_hidden_layers % pp_size:
            raise CheckpointError(
                f"{facts.num_hidden_layers} layers cannot be divided over pp_size {pp_size}",
                where=where,
                why="TensorRT-LLM gives every pipeline rank the same number of layers",
            )
        use_parallel_embedding = values.flag("use_parallel_embedding")
        embedding_sharding_dim = values.index("embedding_sharding_dim")
        if embedding_sharding_dim > 1:
            raise values.wrong("embedding_sharding_dim", "0 (by token) or 1 (by feature)")
        problem = split_problem(facts, tp_size)
        if use_parallel_embedding and embedding_sharding_dim and facts.hidden_size % tp_size:
            problem = (
                f"embeddings of {facts.hidden_size} features cannot be split over {tp_size} ranks"
            )
        if problem:
            raise CheckpointError(problem, where=where, why=f"mapping says tp_size {tp_size}")
        quantization = Quantization.from_dict(values.section("quantization").values, where)
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
            use_parallel_embedding=use_parallel_embedding,
            embedding_sharding_dim=embedding_sharding_dim,
            raw=dict(config),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> CheckpointConfig:
        """Reads ``directory/config.json``.

        Raises:
            CheckpointError: The file is missing, is not JSON, or see :meth:`from_dict`.
        """
        config = read_config(
            directory,
            CheckpointError,
            "A checkpoint is a directory with config.json and rankN.safetensors",
        )
        return cls.from_dict(config, str(directory / "config.json"))


# TensorRT-LLM's own defaults, of the keys that may be left out.
_DEFAULTS: dict[str, Any] = {
    "attn_bias": False,
    "mlp_bias": False,
    "num_key_value_heads": None,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "share_embedding_table": False,
    "use_parallel_embedding": False,
    "embedding_sharding_dim": 0,
}


def _facts(config: Mapping[str, Any], values: ConfigValues, where: str) -> ModelFacts:
    architecture = str(config.get("architecture"))
    required = [
        "rotary_base",
        "norm_epsilon",
        "vocab_size",
        "head_size",
        "max_position_embeddings",
        "hidden_act",
        *POSITIONS,
    ]
    if architecture in ARCHITECTURES:
        upstream = ARCHITECTURES[architecture].tensorrt_llm
        required += [*upstream.switches, *upstream.required, *upstream.constants]
    missing = [key for key in required if key not in config]
    if missing:
        raise CheckpointError(
            f"{', '.join(missing)} is missing",
            where=where,
            why="TensorRT-LLM would silently use its own default",
            fix="Export the checkpoint again with trtllm-pipeline run",
        )
    source_form = {
        **{key: values.values[key] for key in _SAME_NAMES if key in values.values},
        "architectures": [architecture],
        # Read here, so that an error names the key of this file and not the source's.
        "head_dim": values.positive_int("head_size"),
        "rms_norm_eps": values.positive_float("norm_epsilon"),
        "rope_theta": values.positive_float("rotary_base"),
        "rope_scaling": values.section("rotary_scaling").values,
        "attention_bias": values.flag("attn_bias"),
        "tie_word_embeddings": values.flag("tie_word_embeddings")
        or values.flag("share_embedding_table"),
    }
    try:
        facts = ModelFacts.from_config(source_form, where)
    except SourceError as error:
        raise CheckpointError(
            "config.json is not a complete TensorRT-LLM configuration",
            where=where,
            why=f"As Hugging Face's keys: {error.what}",
        ) from error
    for key, value in {**POSITIONS, **facts.family.tensorrt_llm.switches}.items():
        if config[key] != value:
            raise CheckpointError(
                f"{key} is {config[key]!r} for {architecture}",
                where=where,
                why=f"TensorRT-LLM computes another model with it than with {value!r}",
                fix="Export the checkpoint again with trtllm-pipeline run",
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


def _mapping(mapping: ConfigValues, where: str) -> tuple[int, int]:
    tp_size, pp_size, world_size = (
        mapping.positive_int(key) if key in mapping.values else None
        for key in ("tp_size", "pp_size", "world_size")
    )
    tp_size, pp_size = tp_size or 1, pp_size or 1
    if (world_size or tp_size * pp_size) != tp_size * pp_size:
        raise CheckpointError(
            f"mapping says world_size {world_size}, tp_size {tp_size}, pp_size {pp_size}",
            where=where,
            why="world_size must be tp_size * pp_size; context parallelism is not supported",
        )
    return tp_size, pp_size
