"""The parameters of the C++ backend ``tensorrtllm``, complete and typed.

The backend takes a missing or unreadable parameter for its default with a warning in the log, fails
to load over three of them, and switches off in silence what an engine cannot do. So every value is
written, and what the engine cannot do is switched off here, with the reason.

Names and defaults are those of ``inflight_batcher_llm/tensorrt_llm/config.pbtxt`` in TensorRT-LLM
1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import RepositoryError, UnsupportedError
from pipeline.recipe.schema import Recipe, ServeSection
from pipeline.targets.tensorrt.plan.draft import read_draft
from pipeline.targets.tensorrt.plan.memory import host_kv_bytes
from pipeline.targets.tensorrt.serve import tokenizer_info
from pipeline.targets.tensorrt.serve.adapters import (
    adapter_files,
    adapter_parameters,
    adapter_problems,
    task_ids,
)
from pipeline.targets.tensorrt.serve.engine_facts import TrtEngine
from pipeline.triton.contract import CPP_BACKEND
from pipeline.triton.parameters import (
    DRAFT_ENGINE_DIR,
    ENGINE_DIR,
    ENGINE_FILES,
    MOUNT,
    TOKENIZER_DIR,
    DraftModel,
    EngineModel,
)

BACKEND = CPP_BACKEND
WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
MANDATORY = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
"""Parameters that the backend reads unconditionally: without one of them it does not load."""

BATCHING = ("inflight_fused_batching", "inflight_batching")

# The backend's own defaults but for one, stated so that its log has no warnings and a later change
# is a diff. Normalised log probabilities would be shares of the tokens that top_k leaves: always 0
# for a greedy text, while their sum, which is never normalised, is not (samplingTopKKernels.cu).
_DEFAULTS: Mapping[str, str] = {
    "enable_context_fmha_fp32_acc": "false",
    "enable_trt_overlap": "false",
    "gpu_weights_percent": "1.0",
    "iter_stats_max_iterations": "1000",
    "kv_cache_onboard_blocks": "true",
    "multi_block_mode": "true",
    "normalize_log_probs": "false",
    "num_nodes": "1",
    "recv_poll_period_ms": "0",
    "request_stats_max_iterations": "0",
    "speculative_decoding_fast_logits": "false",
    "stats_check_period_ms": "100",
}


@dataclass(frozen=True)
class BackendParameters:
    """Parameters and what they could not grant.

    Attributes:
        values: ``string_value`` by name.
        switched_off: Why a setting of ``serve`` is false although the recipe says true, by name.
    """

    values: Mapping[str, str]
    switched_off: Mapping[str, str] = field(default_factory=dict)


def tensorrt_engine(recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
    """Returns the engine model of TensorRT-LLM's C++ backend.

    Args:
        recipe: ``serve`` and ``compile`` are read.
        engine: ``config.json`` of the engine.

    Raises:
        RepositoryError: The backend could not serve this engine, or ``engine`` is not of one.
        UnsupportedError: The recipe's KV cache is too small for one sequence.
    """
    facts = TrtEngine.from_config(engine)
    built = build_parameters(recipe, facts, engine_dir=ENGINE_DIR, tokenizer_dir=TOKENIZER_DIR)
    files = adapter_files(recipe)
    if recipe.serve.guided_decoding:
        files[tokenizer_info.FILE_NAME] = partial(
            tokenizer_info.tokenizer_info,
            vocab_size=facts.vocab_size,
            where=recipe.place("serve.guided_decoding"),
        )
    return EngineModel(
        BACKEND,
        built.values,
        built.switched_off,
        files,
        lora_task_ids=task_ids(recipe),
        greedy=facts.lookahead,
        draft=_draft(recipe),
    )


def _draft(recipe: Recipe) -> DraftModel | None:
    """The draft as its own repository serves it, but in this one's place."""
    folder, options = recipe.serve.draft_repository, recipe.compile.tensorrt.draft
    if folder is None or options is None:
        return None
    draft = read_draft(Path(folder))
    return DraftModel(
        draft.repository,
        {
            **{k: v for k, v in draft.parameters.items() if k != "lora_prefetch_dir"},
            "gpt_model_path": str(MOUNT / DRAFT_ENGINE_DIR),
            "tokenizer_dir": str(MOUNT / TOKENIZER_DIR),
            # Its guesses are checked by the engine, which has guides and adapters.
            "guided_decoding_backend": "",
            "xgrammar_tokenizer_info_path": "",
        },
        int(draft.build["max_batch_size"]),
        options.max_draft_len,
    )


def build_parameters(
    recipe: Recipe, engine: TrtEngine, *, engine_dir: str, tokenizer_dir: str
) -> BackendParameters:
    """Sets every parameter of the engine model.

    Left out on purpose: ``cross_kv_cache_fraction`` (an error for a decoder),
    ``encoder_model_path``, ``gpu_device_ids`` and ``participant_ids`` (the launcher decides which
    GPUs a server sees, so the repository is not tied to a machine), ``max_attention_window_size``
    and ``sink_token_length`` (full attention), and the choices of decoding modes that are not used.

    Args:
        recipe: ``serve`` and ``compile`` are read.
        engine: The engine.
        engine_dir: Its folder, relative to the repository's root.
        tokenizer_dir: The tokenizer's folder, likewise.

    Raises:
        RepositoryError: The backend could not serve this engine.
        UnsupportedError: The recipe's KV cache is too small for one sequence.
    """
    _check(recipe, engine)
    serve = recipe.serve
    asked = {
        "enable_kv_cache_reuse": (serve.enable_kv_cache_reuse, engine.kv_reuse_obstacle()),
        "enable_chunked_context": (
            serve.enable_chunked_context,
            engine.chunked_context_obstacle(),
        ),
    }
    granted = {name: _flag(want and not why) for name, (want, why) in asked.items()}
    switched_off = {name: why for name, (want, why) in asked.items() if want and why}
    no_host_cache = engine.kv_reuse_obstacle()
    if serve.kv_cache_host_memory and no_host_cache:
        switched_off["kv_cache_host_memory"] = no_host_cache
    values = {
        **_DEFAULTS,
        **granted,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        # Above 0 without the mode, the number has no effect (ExtendedRuntimePerfKnobConfig).
        "cuda_graph_cache_size": str(serve.cuda_graphs),
        "cuda_graph_mode": _flag(serve.cuda_graphs > 0),
        "batch_scheduler_policy": serve.batch_scheduler_policy,
        "cancellation_check_period_ms": str(serve.cancellation_check_period_ms),
        "exclude_input_in_output": _flag(serve.exclude_input_in_output),
        "executor_worker_path": WORKER,
        # The backend would look for a relative path below the process's working directory and
        # report a wrong one as something else.
        "gpt_model_path": str(MOUNT / engine_dir),
        "gpt_model_type": BATCHING[0],
        **adapter_parameters(recipe, engine),
        **_guided_decoding(serve),
        **_decoding_mode(recipe),
        "kv_cache_host_memory_bytes": str(0 if no_host_cache else host_kv_bytes(serve)),
        "kv_cache_free_gpu_mem_fraction": str(serve.kv_cache_free_gpu_mem_fraction),
        "max_beam_width": str(recipe.compile.max_beam_width),
        "max_queue_size": str(serve.max_queue_size),
        "tokenizer_dir": str(MOUNT / tokenizer_dir),
    }
    if serve.max_tokens_in_paged_kv_cache is not None:
        values["max_tokens_in_paged_kv_cache"] = str(serve.max_tokens_in_paged_kv_cache)
    return BackendParameters(values, switched_off)


def _guided_decoding(serve: ServeSection) -> dict[str, str]:
    """Both are empty where it is off; the backend reads them unconditionally."""
    path = MOUNT / ENGINE_FILES / tokenizer_info.FILE_NAME
    return {
        "guided_decoding_backend": serve.guided_decoding or "",
        "xgrammar_tokenizer_info_path": str(path) if serve.guided_decoding else "",
    }


def _decoding_mode(recipe: Recipe) -> dict[str, str]:
    """The backend loads no lookahead engine without the three sizes."""
    lookahead = recipe.compile.tensorrt.lookahead
    if lookahead is None:
        return {"decoding_mode": "top_k_top_p"}
    return {
        "decoding_mode": "lookahead",
        "lookahead_window_size": str(lookahead.window_size),
        "lookahead_ngram_size": str(lookahead.ngram_size),
        "lookahead_verification_set_size": str(lookahead.verification_set_size),
    }


def _check(recipe: Recipe, engine: TrtEngine) -> None:
    found = list(engine.problems())
    if recipe.compile.max_beam_width > engine.max_beam_width:
        found.append(
            f"max_beam_width {recipe.compile.max_beam_width} is more than the "
            f"{engine.max_beam_width} it was built for"
        )
    tensorrt = recipe.compile.tensorrt
    for who, asked, built_for_it in (
        ("lookahead decoding", tensorrt.lookahead, engine.lookahead),
        ("a draft model", tensorrt.draft, engine.takes_guesses),
    ):
        wanted = asked.max_draft_len if asked else 0
        built = engine.max_draft_len if built_for_it else 0
        if wanted != built:
            found.append(
                f"{who} guesses {wanted} tokens by the recipe, and the engine was built for {built}"
            )
    found += adapter_problems(recipe, engine)
    if found:
        raise RepositoryError(
            "Triton's tensorrtllm backend cannot serve this engine",
            where="engine config.json",
            why="; ".join(found),
            fix="Compile the engine again with trtllm-pipeline run",
        )
    tokens = recipe.serve.max_tokens_in_paged_kv_cache
    if tokens is not None and tokens < engine.max_seq_len:
        raise UnsupportedError(
            f"a KV cache of {tokens} tokens does not hold one sequence",
            where=recipe.place("serve.max_tokens_in_paged_kv_cache"),
            why=f"The engine's sequences have up to {engine.max_seq_len} tokens",
            fix=f"Set it to at least {engine.max_seq_len}, or leave it out",
        )


def _flag(value: bool) -> str:
    return "true" if value else "false"
