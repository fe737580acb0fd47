"""What the CPU target refuses, from the recipe and the model's facts alone."""

from __future__ import annotations

from pipeline.errors import UnsupportedError
from pipeline.formats import (
    FORMATS,
    INT8_WO,
    NF4,
    NO_QUANT,
    W4A16_AWQ,
    W8A8_SQ_PER_CHANNEL,
    either,
)
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.tables import size
from pipeline.targets.openvino.memory import TOKENS_PER_BLOCK, plan_memory
from pipeline.targets.openvino.options import kv_cache_precision

EXECUTED_ALGOS = (NO_QUANT, W8A8_SQ_PER_CHANNEL, W4A16_AWQ, NF4, INT8_WO)
EXECUTED_FORMATS = either(row for row in FORMATS.values() if row.quant_algo in EXECUTED_ALGOS)
# What the CPU plugin's paged attention accepts with each arithmetic; it throws on the others.
KV_CACHE_PRECISIONS = {"f32": ("f32", "f16", "u8"), "bf16": ("bf16", "f16", "u8")}


def refuse_unsupported(recipe: Recipe, facts: ModelFacts) -> None:
    """Raises UnsupportedError for what could only fail, or be served wrongly, later."""
    _check_format(recipe)
    _check_features(recipe)
    _check_length(recipe, facts)
    _check_precisions(recipe)
    _check_memory(recipe, facts)


def _check_format(recipe: Recipe) -> None:
    row = FORMATS[recipe.quantize.format]
    if row.quant_algo not in EXECUTED_ALGOS:
        raise UnsupportedError(
            f"{row.name} is not executed by the CPU target",
            where=recipe.place("quantize.format"),
            why="The CPU has no float8 arithmetic; an emulation would not be the engine's numbers",
            fix=f"Set compile.target to tensorrt, or quantize.format to {EXECUTED_FORMATS}",
        )
    cache = recipe.quantize.kv_cache
    if cache is not None:
        raise UnsupportedError(
            f"an {cache} KV cache with calibrated scales is not executed by the CPU target",
            where=recipe.place("quantize.kv_cache"),
            why="OpenVINO quantizes its cache with scales of its own, so the checkpoint's would be "
            "ignored",
            fix="Set compile.target to tensorrt, or quantize.kv_cache to null "
            "(compile.openvino.kv_cache_precision: u8 is the CPU's own 8-bit cache)",
        )


def _check_features(recipe: Recipe) -> None:
    serve = recipe.serve
    for key, asked, why in (
        (
            "kv_cache_host_memory",
            serve.kv_cache_host_memory is not None,
            "The CPU's KV cache is in the host's memory already",
        ),
        (
            "lora_adapters",
            bool(serve.lora_adapters),
            "OpenVINO GenAI has one set of adapters for all requests and ignores those of one",
        ),
        (
            "draft_repository",
            serve.draft_repository is not None,
            "OpenVINO GenAI gives other texts with a draft model where prompts are split",
        ),
        ("cuda_graphs", serve.cuda_graphs > 0, "There are no CUDA graphs without a GPU"),
    ):
        if asked:
            raise UnsupportedError(
                f"the CPU target has no {key}",
                where=recipe.place(f"serve.{key}"),
                why=why,
                fix=f"Leave serve.{key} out, or set compile.target to tensorrt",
            )


def _check_length(recipe: Recipe, facts: ModelFacts) -> None:
    wanted, longest = recipe.compile.max_seq_len, facts.longest_sequence
    if wanted > longest:
        raise UnsupportedError(
            f"max_seq_len {wanted} is longer than the model's {longest} positions",
            where=recipe.place("compile.max_seq_len"),
            why="The rotary embedding was not trained beyond them, so the text would fall apart",
            fix=f"Set compile.max_seq_len to at most {longest}",
        )
    window = facts.sliding_window
    if window is not None and window < wanted:
        raise UnsupportedError(
            f"max_seq_len {wanted} is longer than the model's sliding window of {window} tokens",
            where=recipe.place("compile.max_seq_len"),
            why="The CPU target attends to all earlier tokens, which is the same only within the "
            "window",
            fix=f"Set compile.max_seq_len to at most {window}",
        )


def _check_precisions(recipe: Recipe) -> None:
    options = recipe.compile.openvino
    allowed = KV_CACHE_PRECISIONS[options.inference_precision]
    if options.kv_cache_precision not in (None, *allowed):
        raise UnsupportedError(
            f"kv_cache_precision {options.kv_cache_precision} does not go with "
            f"inference_precision {options.inference_precision}",
            where=recipe.place("compile.openvino.kv_cache_precision"),
            why="OpenVINO's paged attention has no kernel for the pair",
            fix=f"Leave it out, or set it to one of {', '.join(allowed)}",
        )


def _check_memory(recipe: Recipe, facts: ModelFacts) -> None:
    precision, plan = kv_cache_precision(recipe), plan_memory(recipe, facts)
    tokens, per_token, weights = plan.kv_tokens, plan.kv_bytes_per_token, plan.weights
    there = plan.machine
    if there is None or weights + plan.kv_cache <= there:
        return
    left = max(there - weights, 0) // per_token // TOKENS_PER_BLOCK * TOKENS_PER_BLOCK
    sized = recipe.serve.max_tokens_in_paged_kv_cache is not None
    if weights >= there:
        remedy = "Use a machine with more memory, or a smaller model"
    elif left < recipe.compile.max_seq_len:
        remedy = "Lower compile.max_seq_len, of which one sequence must fit"
    else:
        remedy = f"Set serve.max_tokens_in_paged_kv_cache to at most {left}"
        remedy += "" if sized else ", or lower compile.max_batch_size or compile.max_seq_len"
    if weights < there and precision == "f32":
        remedy += "; compile.openvino.kv_cache_precision: f16 or u8 makes the cache smaller"
    needed = weights + plan.kv_cache
    raise UnsupportedError(
        f"the engine needs {needed:,} bytes ({size(needed)}), and this machine has {there:,} "
        f"({size(there)})",
        where=recipe.place(
            "serve.max_tokens_in_paged_kv_cache" if sized else "compile.max_batch_size"
        ),
        why=f"A KV cache of {tokens:,} tokens takes {plan.kv_cache:,} bytes ({per_token:,} "
        f"per token in {precision}), the weights at least {weights:,}",
        fix=remedy,
    )
