"""What an estimate takes for granted of the code that does the work, which imports torch."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.effort import memory, seconds, work
from pipeline.effort.work import sets
from pipeline.evaluation import completions, scoring, signal_to_noise
from pipeline.layers import parts, walk
from pipeline.quantize.walk import sets_of
from pipeline.recipe.schema import Recipe
from pipeline.reference import by_layer


def test_limits_are_those_of_the_walks() -> None:
    assert (work.BATCH_TOKENS, work.BATCH_LOGITS) == (scoring.BATCH_TOKENS, scoring.BATCH_LOGITS)
    assert (memory.STATES, memory.HEAD) == (walk.HIDDEN_BYTES, parts.HEAD_BYTES)
    assert seconds.KEPT_LAYERS == by_layer.KEPT_BYTES
    assert seconds.NOISE_TOKENS == signal_to_noise.TOKENS
    assert (seconds.PROMPTS, seconds.PROMPT_TOKENS) == (
        completions.COUNT,
        completions.PROMPT_TOKENS,
    )


@pytest.mark.parametrize("parameters", [10**8, 10**9, 8 * 10**9, 70 * 10**9])
def test_completions_are_as_long_as_evaluate_makes_them(parameters: int) -> None:
    shape = work.Shape(parameters, 1, 1, 1, 1, 1, 1, 1, 2)
    assert seconds.new_tokens(shape) == completions.new_tokens(parameters)


@pytest.mark.parametrize(
    "quantize",
    [
        {"format": "int4_awq"},
        {"format": "int4_awq", "kv_cache": "int8"},
        {"format": "int4_awq", "portable": True},
        {"format": "int8_sq", "portable": True, "kv_cache": "int8"},
        {"format": "fp8", "kv_cache": "fp8"},
        {"format": "int4_gptq"},
        {"format": "int4_gptq", "kv_cache": "int8"},
    ],
    ids=str,
)
def test_no_more_sets_of_hidden_states_than_are_counted(quantize: dict[str, Any]) -> None:
    calibration = {"text": "x.jsonl"}
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": "m"},
            "quantize": {**quantize, "calibration": calibration},
            "compile": {"target": "tensorrt"},
        }
    )
    assert len(set(sets_of(recipe))) <= sets(recipe) <= len(set(sets_of(recipe))) + 1
