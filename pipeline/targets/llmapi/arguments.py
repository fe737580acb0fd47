"""``model.yaml``: the keyword arguments of ``tensorrt_llm.LLM``, from a recipe.

The file is the one that NVIDIA's own Triton model ``llmapi`` reads (triton_backend/all_models/
llmapi/tensorrt_llm/1 of TensorRT-LLM 1.2), so it serves that model and ``trtllm-serve`` as well.
"""

from __future__ import annotations

from typing import Any

from pipeline.formats import FORMATS
from pipeline.recipe.schema import Recipe
from pipeline.targets.llmapi.rules import TOKENS_PER_BLOCK
from pipeline.triton.parameters import ENGINE_DIR, MOUNT, TOKENIZER_DIR

CHECKPOINT = "checkpoint"
"""The Hugging Face folder in the engine's."""
FILE_NAME = "model.yaml"
_POLICIES = {
    "guaranteed_no_evict": "GUARANTEED_NO_EVICT",
    "max_utilization": "MAX_UTILIZATION",
}


def llm_arguments(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments by upstream's names, and ``triton_config`` for NVIDIA's own model.

    Args:
        recipe: ``compile``, ``serve`` and the KV cache's format are read.
    """
    sizes, serve = recipe.compile, recipe.serve
    cache: dict[str, Any] = {
        "enable_block_reuse": serve.enable_kv_cache_reuse,
        "free_gpu_memory_fraction": serve.kv_cache_free_gpu_mem_fraction,
        "tokens_per_block": TOKENS_PER_BLOCK,
    }
    if serve.max_tokens_in_paged_kv_cache is not None:
        cache["max_tokens"] = serve.max_tokens_in_paged_kv_cache
    if serve.kv_cache_host_memory is not None:
        cache["host_cache_size"] = int(serve.kv_cache_host_memory * (1 << 30))
    if recipe.quantize.kv_cache is not None:
        cache["dtype"] = recipe.quantize.kv_cache
    graphs = {"enable_padding": True, "max_batch_size": serve.cuda_graphs}
    return {
        "model": str(MOUNT / ENGINE_DIR / CHECKPOINT),
        "tokenizer": str(MOUNT / TOKENIZER_DIR),
        "backend": "pytorch",
        "dtype": FORMATS[recipe.quantize.format].dtype or recipe.model.dtype,
        "tensor_parallel_size": sizes.tensor_parallel,
        "pipeline_parallel_size": sizes.pipeline_parallel,
        "max_batch_size": sizes.max_batch_size,
        "max_num_tokens": sizes.max_num_tokens,
        "max_seq_len": sizes.max_seq_len,
        "max_beam_width": sizes.max_beam_width,
        "enable_chunked_prefill": serve.enable_chunked_context,
        "kv_cache_config": cache,
        "scheduler_config": {"capacity_scheduler_policy": _POLICIES[serve.batch_scheduler_policy]},
        **({"cuda_graph_config": graphs} if serve.cuda_graphs else {"cuda_graph_config": None}),
        "sampler_type": sizes.llmapi.sampler,
        "enable_iter_perf_stats": True,
        "trust_remote_code": False,
        "triton_config": {
            "max_batch_size": 0,
            "decoupled": serve.decoupled is not False,
            "cancellation_check_period_ms": serve.cancellation_check_period_ms,
        },
    }


def model_yaml(recipe: Recipe) -> str:
    """Writes the file."""
    import yaml

    head = (
        "# Written by the repository stage: change the recipe, not this file.\n"
        "# All but triton_config are arguments of tensorrt_llm.LLM.\n"
    )
    return head + yaml.safe_dump(llm_arguments(recipe), sort_keys=False)
