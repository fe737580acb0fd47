"""The GPUs of a recipe as a roofline needs them."""

from __future__ import annotations

from pipeline.economics.hardware import Arithmetic, Hardware, Setting
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.targets.tensorrt.plan.preview import preview_engine

TERA, GIGA = 1e12, 1e9


def gpu_setting(recipe: Recipe, facts: ModelFacts) -> Setting | None:
    """Describes the GPUs by their data sheet, and what the memory plan takes beside weights.

    Args:
        recipe: A recipe that the pre-flight has passed.
        facts: The model's facts.

    Returns:
        The setting; None where ``compile.gpu`` names no GPU, or one whose rates are not known.
    """
    preview = preview_engine(recipe, facts)
    gpu, memory, ranks = preview.gpu, preview.memory, preview.checkpoint.world_size
    if gpu is None or gpu.rates is None:
        return None
    rates = gpu.rates
    operations: dict[Arithmetic, float | None] = {
        "float32": rates.float32 * TERA,
        "float16": rates.float16 * TERA,
    }
    if rates.int8:
        operations["int8"] = rates.int8 * TERA
    if rates.fp8:
        operations["float8"] = rates.fp8 * TERA
    hardware = Hardware(
        gpu.name, rates.source, rates.bandwidth * GIGA, operations, gpu.memory, ranks
    )
    return Setting(
        hardware,
        kv_bytes_per_token=memory.kv_bytes_per_token * ranks,
        reserved=(memory.fixed - memory.weights + memory.lora_cache) * ranks,
        kv_share=recipe.serve.kv_cache_free_gpu_mem_fraction,
    )
