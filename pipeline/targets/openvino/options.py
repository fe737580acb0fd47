"""What the CPU engine is built for and opened with, from the recipe alone."""

from __future__ import annotations

from typing import Any

from pipeline.recipe.schema import Recipe


def build_config(recipe: Recipe) -> dict[str, Any]:
    """Returns the limits an engine was built for, under TensorRT-LLM's ``BuildConfig`` names."""
    section = recipe.compile
    return {
        "max_batch_size": section.max_batch_size,
        "max_input_len": section.max_input_len,
        "max_seq_len": section.max_seq_len,
        "max_num_tokens": section.max_num_tokens,
        "max_beam_width": section.max_beam_width,
        "tokens_per_block": section.tokens_per_block,
        "kv_cache_type": "PAGED",
    }


def runtime_properties(recipe: Recipe) -> dict[str, str]:
    """Returns the CPU plugin's properties, all of them stated because its defaults are not exact.

    Left alone it would run in bfloat16, keep the cache in 8 bits and round the activations of
    weight-only layers to INT8.
    """
    options = recipe.compile.openvino
    return {
        "INFERENCE_PRECISION_HINT": options.inference_precision,
        "KV_CACHE_PRECISION": kv_cache_precision(recipe),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(options.dynamic_quantization_group_size),
    }


def kv_cache_precision(recipe: Recipe) -> str:
    """Returns the KV cache's element type; unless the recipe names one, that of the arithmetic."""
    options = recipe.compile.openvino
    return options.kv_cache_precision or options.inference_precision
