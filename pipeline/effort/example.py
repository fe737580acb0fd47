"""What a machine means for a model that everybody knows the size of: 8 billion parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.effort.disk import Snapshot
from pipeline.effort.rates import Rates
from pipeline.effort.stages import StageEffort, efforts
from pipeline.formats import FORMATS
from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe

WORDS = "a model of 8 billion parameters, INT4 AWQ on 32 texts of 512 tokens, 20,000 tokens scored"
# What WORDS call INT4 AWQ: the first format whose scales AWQ searches for.
_FORMAT = next(name for name, row in FORMATS.items() if row.calibration == "awq_lite")
# Of the first architecture of the table, as their sizes alone count here: those of Llama-3.1-8B.
_FACTS = ModelFacts(
    architecture=next(iter(ARCHITECTURES)),
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_size=128,
    vocab_size=128256,
    max_position_embeddings=8192,
    norm_epsilon=1e-5,
    hidden_act="silu",
    rotary_base=500000.0,
    rotary_scaling=None,
    attention_bias=False,
    mlp_bias=False,
    qk_layernorm=False,
    tie_word_embeddings=False,
    sliding_window=None,
)
_STAGES = ("source", "quantize", "evaluate", "compile")


def example(rates: Rates | None, build: Path) -> Sequence[StageEffort]:
    """Estimates the stages of a run of it for the CPU.

    Args:
        rates: The machine's; None leaves time out.
        build: The build directory.
    """
    recipe = Recipe.model_validate(
        {
            "name": "example",
            "model": {"source": "example/example", "dtype": "bfloat16"},
            "quantize": {"format": _FORMAT, "calibration": {"text": "calibration.jsonl"}},
            "evaluate": {"text": "heldout.jsonl"},
        }
    )
    return efforts(
        recipe, _FACTS, _STAGES, snapshot=Snapshot(None, build), rates=rates, lengths=_unknown
    )


def _unknown(_path: str) -> None:
    """Its texts are nobody's, whatever the folder holds that the command runs in."""


def example_peak(build: Path) -> int:
    """Returns the most memory that a stage of it is expected to take, in bytes.

    Args:
        build: The build directory.
    """
    return max(stage.memory.likely for stage in example(None, build) if stage.memory)
