"""What the vLLM target refuses, from the recipe and the model's facts alone."""

from __future__ import annotations

from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS, either
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.targets.vllm.layouts import LAYOUTS

WRITTEN = either(row for row in FORMATS.values() if not row.quantizes or row.quant_algo in LAYOUTS)


def refuse_unsupported(recipe: Recipe, facts: ModelFacts) -> None:
    """Raises UnsupportedError for what could only fail, or be run wrongly, later."""
    _check_format(recipe)
    _check_layout(recipe)
    _check_scales(recipe)
    _check_kv_cache(recipe)
    _check_length(recipe, facts)


def layout_of(recipe: Recipe) -> str | None:
    """Returns the layout that a recipe's weights are stored in; None in floating point."""
    layouts = LAYOUTS.get(FORMATS[recipe.quantize.format].quant_algo)
    return recipe.compile.vllm.layout or next(iter(layouts)) if layouts else None


def _check_format(recipe: Recipe) -> None:
    row = FORMATS[recipe.quantize.format]
    if row.quantizes and row.quant_algo not in LAYOUTS:
        raise UnsupportedError(
            f"{row.name} is not written for vLLM",
            where=recipe.place("quantize.format"),
            why=f"vLLM reads no checkpoint with {_numbers(recipe)}, so it would have to be "
            "quantized again, into another model than the one that was measured",
            fix=f"Set quantize.format to {WRITTEN}, or take another compile.target",
        )


def _numbers(recipe: Recipe) -> str:
    """What a format is made of, as the reason why nothing reads it."""
    row = FORMATS[recipe.quantize.format]
    inputs = "" if row.activations == "float" else f" and inputs in {row.activations}"
    return f"weights in {row.weights}{inputs}"


def _check_layout(recipe: Recipe) -> None:
    asked, row = recipe.compile.vllm.layout, FORMATS[recipe.quantize.format]
    layouts = LAYOUTS.get(row.quant_algo, {})
    if asked is None or asked in layouts:
        return
    raise UnsupportedError(
        f"{row.name} is not stored in the layout {asked}",
        where=recipe.place("compile.vllm.layout"),
        why=f"{row.name} is stored as {' or '.join(layouts)}"
        if layouts
        else "Nothing of it is quantized, so there is nothing to lay out",
        fix="Leave compile.vllm.layout out, which takes the layout that vLLM reads best",
    )


def _check_scales(recipe: Recipe) -> None:
    row = FORMATS[recipe.quantize.format]
    if not row.smooths or recipe.quantize.portable:
        return
    raise UnsupportedError(
        f"{row.name} has pre-quant scales, and no folder for vLLM has a place for them",
        where=recipe.place("quantize.format"),
        why="Moved into 16-bit norms and scales they would be rounded, and those of o_proj have "
        "nowhere to go; vLLM would run another model than the one that was measured",
        fix="Set quantize.portable to true: calibration then moves them before it rounds, and the "
        "checkpoint is exact here and on every other target",
    )


def _check_kv_cache(recipe: Recipe) -> None:
    cache = recipe.quantize.kv_cache
    if cache is not None:
        raise UnsupportedError(
            f"an {cache} KV cache with calibrated scales is not written for vLLM",
            where=recipe.place("quantize.kv_cache"),
            why="vLLM's quantized caches have scales of their own layout, and none is INT8",
            fix="Set quantize.kv_cache to null; vllm serve --kv-cache-dtype quantizes the cache "
            "without calibration",
        )


def _check_length(recipe: Recipe, facts: ModelFacts) -> None:
    wanted, longest = recipe.compile.max_seq_len, facts.longest_sequence
    if wanted > longest:
        raise UnsupportedError(
            f"max_seq_len {wanted} is longer than the model's {longest} positions",
            where=recipe.place("compile.max_seq_len"),
            why="vLLM refuses to start with a longer --max-model-len",
            fix=f"Set compile.max_seq_len to at most {longest}",
        )
