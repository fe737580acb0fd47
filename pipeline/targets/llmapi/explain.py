"""What ``plan`` says about a folder for the LLM API."""

from __future__ import annotations

from pipeline.formats import FORMATS
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import Explanation
from pipeline.targets.llmapi.arguments import llm_arguments
from pipeline.targets.llmapi.migration import migration_lines, migration_values
from pipeline.targets.llmapi.rules import EXECUTED

_SHOWN = (
    "backend",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "enable_chunked_prefill",
    "sampler_type",
)


def explain(recipe: Recipe) -> Explanation:
    """Shows the LLM's arguments and the migration report.

    Args:
        recipe: A recipe that the target's rules have passed.
    """
    arguments = llm_arguments(recipe)
    runs = EXECUTED[FORMATS[recipe.quantize.format].quant_algo]
    cache = ", ".join(f"{key} {value}" for key, value in arguments["kv_cache_config"].items())
    lines = [
        f"LLM API: {recipe.quantize.format}, on {recipe.compile.gpu or runs.words}",
        f"  {', '.join(f'{key} {arguments[key]}' for key in _SHOWN)}",
        f"  kv_cache_config {cache}",
        "",
        *migration_lines(recipe),
    ]
    values = {"model_yaml": arguments, "migration": migration_values(recipe)}
    return Explanation(lines, values)
