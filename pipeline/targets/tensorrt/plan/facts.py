"""What a build depends on in a checkpoint, known before the checkpoint exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models import ModelFacts
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.checkpoint.config import CheckpointConfig

# ModelOpt's name of a format -> quant_algo of the checkpoint it exports.
QUANT_ALGOS = {
    "float16": "NO_QUANT",
    "bfloat16": "NO_QUANT",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
    "fp8": "FP8",
    "w4a8_awq": "W4A8_AWQ",
}
INT4_ALGOS = frozenset(("W4A16_AWQ", "W4A8_AWQ"))
FP8_ALGOS = frozenset(("FP8", "W4A8_AWQ"))
"""The formats whose linears compute in FP8."""


@dataclass(frozen=True)
class CheckpointFacts:
    """The part of a checkpoint's ``config.json`` that decides flags, overrides and memory.

    Attributes:
        model: The model.
        dtype: ``float16``, ``bfloat16`` or ``float32``: everything that is not quantized.
        quant_algo: TensorRT-LLM's name of the format; ``NO_QUANT`` for none.
        kv_cache_algo: ``INT8``, ``FP8`` or None.
        group_size: Input features per INT4 scale; None for formats without groups.
        tp_size: Ranks that share each layer.
        pp_size: Groups of ranks that hold consecutive layers.
    """

    model: ModelFacts
    dtype: str
    quant_algo: str
    kv_cache_algo: str | None
    group_size: int | None
    tp_size: int
    pp_size: int

    @property
    def world_size(self) -> int:
        """Ranks, one GPU each."""
        return self.tp_size * self.pp_size

    @property
    def bytes_per_value(self) -> int:
        """Bytes of a value that is not quantized."""
        return 4 if self.dtype == "float32" else 2

    @classmethod
    def from_recipe(cls, recipe: Recipe, model: ModelFacts) -> CheckpointFacts:
        """The checkpoint that the quantize stage will write for a recipe."""
        name = recipe.quantize.format
        kv_cache = recipe.quantize.kv_cache
        algo = QUANT_ALGOS[name]
        return cls(
            model=model,
            dtype=name if name in ("float16", "bfloat16") else recipe.model.dtype,
            quant_algo=algo,
            kv_cache_algo=kv_cache.upper() if kv_cache else None,
            group_size=recipe.quantize.group_size if algo in INT4_ALGOS else None,
            tp_size=recipe.compile.tensor_parallel,
            pp_size=recipe.compile.pipeline_parallel,
        )

    @classmethod
    def from_checkpoint(cls, config: CheckpointConfig) -> CheckpointFacts:
        """The same facts of a checkpoint that exists."""
        return cls(
            model=config.facts,
            dtype=config.dtype,
            quant_algo=config.quantization.algo,
            kv_cache_algo=config.quantization.kv_cache_algo,
            group_size=config.quantization.group_size,
            tp_size=config.tp_size,
            pp_size=config.pp_size,
        )
