"""What a build depends on in a checkpoint, known before the checkpoint exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.formats import ALGOS, FORMATS, Format, either, kv_cache_algo
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import RankShare
from pipeline.recipe.schema import Recipe

if TYPE_CHECKING:
    from pipeline.checkpoint.config import CheckpointConfig

BUILT = tuple(row for row in FORMATS.values() if not row.own and row.dtype != "float32")
"""The formats that engines are built of."""
BUILT_FORMATS = either(BUILT)
"""Those to name in a remedy."""
WEIGHT_ONLY_FORMATS = either(row for row in BUILT if row.quantizes and row.activations == "float")
"""Formats to name in a remedy: weights alone are quantized."""
PLAIN_FORMATS = either(row for row in BUILT if not row.quantizes)
"""Formats to name in a remedy: 16 bit."""
FP8_FORMATS = either(row for row in BUILT if row.fp8_weights)
"""Formats to name in a remedy: weights in FP8."""
NO_FP8_FORMATS = either(row for row in BUILT if row.quantizes and not row.needs_fp8)
"""Formats to name in a remedy: those of GPUs that compute no FP8."""
NO_INTEGER_FORMATS = either(row for row in BUILT if row.quantizes and not row.integer_weights)
"""Formats to name in a remedy: those of GPUs whose kernels take no integer weights."""


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
    def format(self) -> Format:
        """The row of the format; those that share ``quant_algo`` are one here."""
        return ALGOS[self.quant_algo]

    @property
    def world_size(self) -> int:
        """Ranks, one GPU each."""
        return self.tp_size * self.pp_size

    @property
    def share(self) -> RankShare:
        """What each tensor-parallel rank holds."""
        return RankShare(self.model, self.tp_size)

    @property
    def bytes_per_value(self) -> int:
        """Bytes of a value that is not quantized."""
        return 4 if self.dtype == "float32" else 2

    @classmethod
    def from_recipe(cls, recipe: Recipe, model: ModelFacts) -> CheckpointFacts:
        """Describes the checkpoint that the quantize stage will write for a recipe."""
        row = FORMATS[recipe.quantize.format]
        return cls(
            model=model,
            dtype=recipe.dtype,
            quant_algo=row.quant_algo,
            kv_cache_algo=kv_cache_algo(recipe.quantize.kv_cache),
            group_size=recipe.quantize.group_size if row.group_sizes else None,
            tp_size=recipe.compile.tensor_parallel,
            pp_size=recipe.compile.pipeline_parallel,
        )

    @classmethod
    def from_checkpoint(cls, config: CheckpointConfig) -> CheckpointFacts:
        """Describes a checkpoint that exists."""
        return cls(
            model=config.facts,
            dtype=config.dtype,
            quant_algo=config.quantization.algo,
            kv_cache_algo=config.quantization.kv_cache_algo,
            group_size=config.quantization.group_size,
            tp_size=config.tp_size,
            pp_size=config.pp_size,
        )
