"""What upstream's features need of a recipe, and where two of them exclude each other.

The features are described in docs/features.md. Each rule names the source it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.formats import INT8_KV_CACHE, either
from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import BUILT, CheckpointFacts
from pipeline.targets.tensorrt.plan.memory import MemoryPlan

LOOKAHEAD = "compile.tensorrt.lookahead"
SPECULATING_FORMATS = either(row for row in BUILT if row.fp8_weights or not row.quantizes)
"""Formats to name in a remedy."""
TRIED_HEAD_SIZE = 128
"""Of Vicuna 7B, the model of examples/lookahead."""


def check_features(
    recipe: Recipe, checkpoint: CheckpointFacts, effective: BuildConfig, memory: MemoryPlan
) -> Iterator[Finding]:
    """Finds what the recipe's features cannot do with the engine that is built.

    Args:
        recipe: ``serve`` and ``compile.tensorrt`` ask for them.
        checkpoint: What is compiled.
        effective: The engine, after upstream's overrides.
        memory: Its memory plan.
    """
    yield from _host_cache(recipe, effective, memory)
    yield from _cuda_graphs(recipe, effective)
    if recipe.compile.tensorrt.lookahead is not None:
        yield from _lookahead(recipe, checkpoint)


def _host_cache(recipe: Recipe, effective: BuildConfig, memory: MemoryPlan) -> Iterator[Finding]:
    """Blocks go to the host when they are evicted, and are kept for reuse alone
    (``BlockManager::getFreeBlock`` in batch_manager/kvCacheManager.cpp).
    """
    key, serve = "serve.kv_cache_host_memory", recipe.serve
    if serve.kv_cache_host_memory is None:
        return
    if obstacle := _no_reuse(recipe, effective):
        why, remedy = obstacle
        yield Finding(
            "error",
            key,
            "KV blocks on the host would never be used",
            f"They are those that later prompts may reuse, and {why}",
            f"{remedy}, or leave {key} out",
        )
    elif not memory.host_kv_tokens:
        block = effective.plugin_config.tokens_per_block
        least = block * memory.kv_bytes_per_token
        yield Finding(
            "error",
            key,
            f"kv_cache_host_memory of {serve.kv_cache_host_memory:g} GiB does not hold one block",
            f"A block of {block} tokens takes {least:,} bytes on each rank",
            f"Set {key} to gigabytes, or leave it out",
        )


def _no_reuse(recipe: Recipe, effective: BuildConfig) -> tuple[str, str] | None:
    """Why no KV block is reused, and the remedy."""
    if not recipe.serve.enable_kv_cache_reuse:
        return "enable_kv_cache_reuse is false", "Set serve.enable_kv_cache_reuse to true"
    if effective.gather_context_logits:
        remedy = "Set compile.tensorrt.gather_context_logits to false"
        return "an engine that returns prompt logits reuses none", remedy
    if not effective.plugin_config.use_paged_context_fmha:
        return (
            "the engine is built without use_paged_context_fmha",
            "Look at what the plan says of use_paged_context_fmha",
        )
    return None


def _cuda_graphs(recipe: Recipe, effective: BuildConfig) -> Iterator[Finding]:
    asked, most = recipe.serve.cuda_graphs, effective.max_batch_size
    if asked > most:
        yield Finding(
            "warning",
            "serve.cuda_graphs",
            f"cuda_graphs {asked} becomes {most}",
            "The runtime keeps one graph for each number of running sequences, and there are "
            f"max_batch_size {most}",
            f"Set serve.cuda_graphs to {most} or less",
        )


def _lookahead(recipe: Recipe, checkpoint: CheckpointFacts) -> Iterator[Finding]:
    """The support matrix of examples/lookahead/README.md: FP16, BF16 and FP8, tensor parallel; and
    what the decoder does, in layers/lookaheadDecodingLayer.cpp and ``DecodingMode::Lookahead``.
    """
    row = checkpoint.format
    if row.quantizes and not row.fp8_weights:
        yield Finding(
            "error",
            LOOKAHEAD,
            f"lookahead decoding does not go with {checkpoint.quant_algo}",
            "TensorRT-LLM 1.2 supports it for float16, bfloat16 and FP8 only",
            f"Leave {LOOKAHEAD} out, or set quantize.format to {SPECULATING_FORMATS}",
        )
    if checkpoint.kv_cache_algo == INT8_KV_CACHE:
        yield Finding(
            "error",
            LOOKAHEAD,
            "lookahead decoding does not go with an INT8 KV cache",
            "TensorRT-LLM 1.2 supports it for float16, bfloat16 and FP8 only",
            f"Set quantize.kv_cache to null, or leave {LOOKAHEAD} out",
        )
    if checkpoint.pp_size > 1:
        yield Finding(
            "error",
            LOOKAHEAD,
            "lookahead decoding does not go with pipeline parallelism",
            "TensorRT-LLM 1.2 supports it with tensor parallelism only",
            f"Set compile.pipeline_parallel to 1, or leave {LOOKAHEAD} out",
        )
    if recipe.compile.tensorrt.gather_context_logits:
        yield Finding(
            "error",
            "compile.tensorrt.gather_context_logits",
            "prompt logits do not go with lookahead decoding",
            "trtllm-build refuses gather_context_logits with guessed tokens",
            "Leave gather_context_logits out; the evaluate stage builds an engine of its own",
        )
    if recipe.serve.guided_decoding is not None:
        yield Finding(
            "error",
            "serve.guided_decoding",
            "guided decoding does not go with lookahead decoding",
            "A step accepts several tokens, of which the grammar is told the last one only "
            "(batch_manager/guidedDecoder.cpp)",
            f"Leave serve.guided_decoding or {LOOKAHEAD} out",
        )
    if checkpoint.model.head_size != TRIED_HEAD_SIZE:
        yield Finding(
            "warning",
            LOOKAHEAD,
            f"heads of {checkpoint.model.head_size} features may have no kernel for it",
            "Upstream says so of some sizes and does not name them; its examples have "
            f"{TRIED_HEAD_SIZE}",
            "Let the compile stage try the engine on the GPU before you rely on it",
        )
    yield Finding(
        "note",
        LOOKAHEAD,
        "the engine decodes greedily, whatever a request says",
        "Its decoder takes the most likely token, and has neither penalties nor bad words nor log "
        "probabilities",
        "No action needed: tensorrt_llm_bls refuses requests that ask for these",
    )
