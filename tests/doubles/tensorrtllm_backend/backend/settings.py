"""What the backend reads at its start: ``model_state.cc`` and ``model_instance_state.cc``.

A parameter that is missing or unreadable is taken for its default, but three that are read without
a net; the engine's limits come from its ``config.json`` (trtGptModel.h).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import check, runtime_error

_INSTANCE = "triton_backend/inflight_batcher_llm/src/model_instance_state.cc"
_EXECUTOR = "cpp/tensorrt_llm/executor/executorImpl.cpp"
_MANDATORY = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
_BATCHING = ("V1", "v1", "inflight_batching", "inflight_fused_batching")
_MODEL = "cpp/tensorrt_llm/batch_manager/trtGptModelInflightBatching.cpp"
_DRAFT_TOKENS_EXTERNAL = 2
_MOUNT = Path("/models")


@dataclass(frozen=True)
class Settings:
    """Limits and switches.

    Attributes:
        vocab_size: ``pretrained_config.vocab_size``, of which the bias must be.
        max_input_len: Tokens of the longest prompt that the executor takes, which is not the
            engine's ``max_input_len`` (trtGptModel.h).
        max_blocks: Blocks of the KV cache.
        max_draft_len: Guessed tokens that a request may bring.
        max_queue_size: Requests that may wait; 0 is no limit.
    """

    vocab_size: int
    max_input_len: int
    max_seq_len: int
    max_batch_size: int
    max_beam_width: int
    max_blocks: int
    tokens_per_block: int
    gather_context_logits: bool
    normalize_log_probs: bool
    exclude_input: bool
    guaranteed_no_evict: bool
    chunked_context: bool
    block_reuse: bool
    guided_decoder: bool
    max_queue_size: int
    decoupled: bool
    cancellation_check_period: float
    stats_check_period: float
    max_draft_len: int = 0


def read_settings(config: Mapping[str, Any], repository: Path) -> Settings:
    """The settings of a model.

    Args:
        config: config.pbtxt as JSON.
        repository: Root of the model repository, which is /models inside the container.

    Raises:
        TllmError: What keeps the backend from loading the model.
    """
    parameters = {
        name: value.get("string_value", "") for name, value in config.get("parameters", {}).items()
    }
    if parameters.get("gpt_model_type") not in _BATCHING:
        raise runtime_error(
            "Invalid gpt_model_type. Must be v1/inflight_batching/inflight_fused_batching."
        )
    for name in _MANDATORY:
        if name not in parameters:
            raise runtime_error(f"Cannot find parameter with name: {name}")
    guided = _guided_decoder(parameters, repository)
    path = _inside(parameters.get("gpt_model_path", ""), repository)
    # A path that does not exist is only a warning, and then there is none.
    check(path is not None, "Both encoder and decoder model paths are empty", _INSTANCE)
    engine = json.loads(((path or Path()) / "config.json").read_text(encoding="utf-8"))
    model, build = engine["pretrained_config"], engine["build_config"]
    plugins = build["plugin_config"]
    check(
        int(model["mapping"]["world_size"]) == 1,
        "With communicationMode kLEADER, MPI worldSize is expected to be equal to tp*pp*cp when "
        "participantIds are not specified",
        _EXECUTOR,
    )
    chunked = _flag(parameters, "enable_chunked_context", default=False)
    max_seq_len, max_batch_size = int(build["max_seq_len"]), int(build["max_batch_size"])
    tokens_per_block = int(plugins["tokens_per_block"])
    one_sequence = -(-max_seq_len // tokens_per_block)
    tokens = _number(parameters, "max_tokens_in_paged_kv_cache", 0)
    return Settings(
        vocab_size=int(model["vocab_size"]),
        max_input_len=_max_input_len(build, chunked=chunked),
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
        max_beam_width=_number(parameters, "max_beam_width", 1),
        max_blocks=tokens // tokens_per_block if tokens else max_batch_size * one_sequence,
        tokens_per_block=tokens_per_block,
        gather_context_logits=bool(build["gather_context_logits"]),
        normalize_log_probs=_flag(parameters, "normalize_log_probs", default=True),
        exclude_input=_flag(parameters, "exclude_input_in_output", default=False),
        guaranteed_no_evict=parameters.get("batch_scheduler_policy") != "max_utilization",
        chunked_context=chunked,
        block_reuse=(
            _flag(parameters, "enable_kv_cache_reuse", default=True)
            and bool(plugins["use_paged_context_fmha"])
        ),
        guided_decoder=guided,
        max_queue_size=_max_queue_size(config),
        decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
        cancellation_check_period=_number(parameters, "cancellation_check_period_ms", 100) / 1000,
        stats_check_period=_number(parameters, "stats_check_period_ms", 100) / 1000,
        max_draft_len=_max_draft_len(build, parameters),
    )


def _max_input_len(build: Mapping[str, Any], *, chunked: bool) -> int:
    """``TrtGptModel``: what the executor takes for the longest prompt."""
    max_seq_len, plugins = int(build["max_seq_len"]), build["plugin_config"]
    if chunked:
        return max_seq_len - 1
    if plugins["context_fmha"] and plugins["remove_input_padding"]:
        return min(max_seq_len - 1, int(build["max_num_tokens"]))
    return int(build["max_input_len"])


def _max_draft_len(build: Mapping[str, Any], parameters: Mapping[str, str]) -> int:
    """Of an engine of draft_tokens_external, which does not load without KV cache reuse."""
    if build.get("speculative_decoding_mode", 1) != _DRAFT_TOKENS_EXTERNAL:
        return 0
    check(
        _flag(parameters, "enable_kv_cache_reuse", default=True),
        "KV cache block reuse must be enabled for speculative decoding target model",
        _MODEL,
    )
    return int(build["max_draft_len"])


def _guided_decoder(parameters: Mapping[str, str], repository: Path) -> bool:
    backend, info = parameters["guided_decoding_backend"], parameters[_MANDATORY[1]]
    if not backend or not info:
        return False
    check(
        _inside(info, repository) is not None,
        f"Xgrammar's tokenizer info path at {info} does not exist.",
        _INSTANCE,
    )
    if backend != "xgrammar":
        raise runtime_error(
            "Guided decoding is currently supported with 'xgrammar' backend. Invalid "
            "guided_decoding_backend parameter provided."
        )
    return True


def _max_queue_size(config: Mapping[str, Any]) -> int:
    """Of the batcher's queue policy; the parameter of that name is not read."""
    policy = config.get("dynamic_batching", {}).get("default_queue_policy", {})
    return int(policy.get("max_queue_size", 0))


def _inside(path: str, repository: Path) -> Path | None:
    """A path of the container on this machine; None where there is nothing."""
    if not path:
        return None
    found = Path(path)
    if found.is_relative_to(_MOUNT):
        found = repository / found.relative_to(_MOUNT)
    return found if found.exists() else None


def _flag(parameters: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = parameters.get(name, "").lower()
    return {"true": True, "1": True, "false": False, "0": False}.get(value, default)


def _number(parameters: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(parameters[name])
    except (KeyError, ValueError):
        return default
