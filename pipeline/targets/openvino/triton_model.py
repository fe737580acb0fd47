"""How Triton runs the CPU engine: the Python model ``tensorrt_llm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR, EngineModel


def openvino_engine(recipe: Recipe, _engine: Mapping[str, Any]) -> EngineModel:
    """Describes the Python front of the CPU engine.

    GPU-only parameters (memory fractions, CUDA graphs, LoRA caches) are left out rather than
    accepted and ignored.
    """
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
        "max_token_hold_ms": str(serve.max_token_hold_ms),
    }
    if serve.max_tokens_in_paged_kv_cache is not None:
        parameters["max_tokens_in_paged_kv_cache"] = str(serve.max_tokens_in_paged_kv_cache)
    if serve.guided_decoding is not None:
        parameters["guided_decoding_backend"] = serve.guided_decoding
    return EngineModel("python", parameters, scores_prompts=True, gives_tickets=True)


def _flag(value: bool) -> str:
    return "true" if value else "false"
