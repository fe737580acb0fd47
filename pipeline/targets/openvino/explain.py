"""What ``plan`` says about an engine for the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.tables import memory_size
from pipeline.targets.base import Explanation
from pipeline.targets.openvino.memory import MemoryPlan, plan_memory
from pipeline.targets.openvino.options import build_config, kv_cache_precision, runtime_properties


def explain(recipe: Recipe, facts: ModelFacts) -> Explanation:
    """Describes the engine and what it takes of this machine's memory.

    Args:
        recipe: A recipe that the pre-flight has passed.
        facts: The model's facts.
    """
    memory = plan_memory(recipe, facts)
    values = {
        "format": recipe.quantize.format,
        "build_config": build_config(recipe),
        "runtime": runtime_properties(recipe),
        "memory": asdict(memory),
    }
    return Explanation([*_engine(recipe), "", *_memory(recipe, memory)], values)


def _engine(recipe: Recipe) -> Iterator[str]:
    sizes, options = recipe.compile, recipe.compile.openvino
    yield f"engine: {recipe.quantize.format}, CPU"
    yield (
        f"  max_batch_size {sizes.max_batch_size}, max_input_len {sizes.max_input_len}, "
        f"max_seq_len {sizes.max_seq_len}, max_num_tokens {sizes.max_num_tokens}"
    )
    yield (
        f"  inference_precision {options.inference_precision}, "
        f"kv_cache_precision {kv_cache_precision(recipe)}, "
        f"dynamic_quantization_group_size {options.dynamic_quantization_group_size}"
    )


def _memory(recipe: Recipe, memory: MemoryPlan) -> Iterator[str]:
    yield "memory of this machine:"
    yield f"  weights            {memory_size(memory.weights)}  at least"
    yield (
        f"  KV cache           {memory_size(memory.kv_cache)}  {memory.kv_tokens} tokens of "
        f"{memory.kv_bytes_per_token / 1024:.1f} KiB, reserved when the server starts"
    )
    if memory.machine is not None and memory.left is not None:
        yield f"  machine            {memory_size(memory.machine)}"
        yield f"  left               {memory_size(memory.left)}"
    yield (
        f"  sequences          {memory.sequences:9d}      of max_seq_len together "
        f"(max_batch_size {recipe.compile.max_batch_size})"
    )
