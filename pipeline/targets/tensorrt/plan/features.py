"""What upstream's features need of a recipe, and where two of them exclude each other.

The features are described in docs/features.md. Each rule names the source it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.memory import MemoryPlan


def check_features(recipe: Recipe, effective: BuildConfig, memory: MemoryPlan) -> Iterator[Finding]:
    """What the recipe's features cannot do with the engine that is built.

    Args:
        recipe: ``serve`` asks for them.
        effective: The engine, after upstream's overrides.
        memory: Its memory plan.
    """
    yield from _host_cache(recipe, effective, memory)
    yield from _cuda_graphs(recipe, effective)


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
