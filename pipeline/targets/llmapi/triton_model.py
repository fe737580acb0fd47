"""How Triton runs the LLM API: our Python front of ``tensorrt_llm``, with ``model.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.targets.llmapi.arguments import FILE_NAME, model_yaml
from pipeline.targets.llmapi.migration import FILE_NAME as MIGRATION
from pipeline.targets.llmapi.migration import migration_page
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR, EngineModel

FRONT = "llmapi"
"""The folder of our models' sources."""


def llmapi_engine(recipe: Recipe, _engine: Mapping[str, Any]) -> EngineModel:
    """Describes the front; what it hands on to the LLM stands in ``model.yaml``."""
    serve = recipe.serve
    parameters = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": ENGINE_DIR,
        "tokenizer_dir": TOKENIZER_DIR,
        "max_beam_width": str(recipe.compile.max_beam_width),
        "batch_scheduler_policy": serve.batch_scheduler_policy,
        "enable_kv_cache_reuse": _flag(serve.enable_kv_cache_reuse),
        "enable_chunked_context": _flag(serve.enable_chunked_context),
        "exclude_input_in_output": _flag(serve.exclude_input_in_output),
        "cancellation_check_period_ms": str(serve.cancellation_check_period_ms),
        "max_queue_size": str(serve.max_queue_size),
    }
    if serve.max_tokens_in_paged_kv_cache is not None:
        parameters["max_tokens_in_paged_kv_cache"] = str(serve.max_tokens_in_paged_kv_cache)
    files = {
        FILE_NAME: lambda _tokenizer: model_yaml(recipe).encode(),
        MIGRATION: lambda _tokenizer: migration_page(recipe).encode(),
    }
    return EngineModel("python", parameters, files=files, gives_tickets=True, front=FRONT)


def engine_problem(
    directory: Path, config: Mapping[str, Any], place: str, target: str
) -> str | None:
    """Says what an engine directory lacks; None where it is whole."""
    if config.get("target") != target:
        return f"{place}/config.json is not that of a folder for the LLM API"
    if not (directory.parent / FILE_NAME).is_file():
        return f"{place} has no {FILE_NAME} beside it"
    if not any((directory / "checkpoint").glob("*.safetensors")):
        return f"{place}/checkpoint has no weights"
    return None


def _flag(value: bool) -> str:
    return "true" if value else "false"
