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

from .errors import TllmError, check, runtime_error, throw

_INSTANCE = "triton_backend/inflight_batcher_llm/src/model_instance_state.cc"
_EXECUTOR = "cpp/tensorrt_llm/executor/executorImpl.cpp"
_KV = "cpp/tensorrt_llm/executor/kvCacheConfig.cpp"
_DECODING = "cpp/tensorrt_llm/executor/decodingConfig.cpp"
_MANDATORY = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
_BATCHING = ("V1", "v1", "inflight_batching", "inflight_fused_batching")
_MODEL = "cpp/tensorrt_llm/batch_manager/trtGptModelInflightBatching.cpp"
_DRAFT_TOKENS_EXTERNAL = 2
_MOUNT = Path("/models")


@dataclass(frozen=True)
class TokenizerInfo:
    """Content of ``xgrammar_tokenizer_info_path``."""

    encoded_vocab: tuple[str, ...]
    tokenizer_str: str
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class LoraSettings:
    """Of an engine with the LoRA plugin.

    Attributes:
        shapes: Features in and out of each module that adapters may change.
        layers: Of the model.
        prefetch_dir: ``lora_prefetch_dir``, where there is such a folder.
    """

    shapes: Mapping[str, tuple[int, int]]
    layers: int
    max_rank: int
    max_adapter_size: int
    host_cache_bytes: int
    prefetch_dir: Path | None


@dataclass(frozen=True)
class Settings:
    """Limits and switches.

    Attributes:
        vocab_size: ``pretrained_config.vocab_size``, of which the bias must be.
        max_input_len: Tokens of the longest prompt that the executor takes, which is not the
            engine's ``max_input_len`` (trtGptModel.h).
        max_blocks: Blocks of the KV cache.
        max_queue_size: Requests that may wait; 0 is no limit.
        tokenizer_info: Of guided decoding, where it is set up.
        lookahead: Sizes of window, n-grams and verification set.
        max_draft_len: Tokens that a step may guess, or a request may bring as guesses.
        host_cache_bytes: Bytes of the KV cache on the host.
        cuda_graphs: Graphs that are kept; 0 where they are off.
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
    max_queue_size: int
    decoupled: bool
    cancellation_check_period: float
    stats_check_period: float
    tokenizer_info: TokenizerInfo | None = None
    lookahead: tuple[int, int, int] | None = None
    max_draft_len: int = 0
    lora: LoraSettings | None = None
    host_cache_bytes: int = 0
    cuda_graphs: int = 0

    @property
    def guided_decoder(self) -> bool:
        """Whether guided decoding is set up."""
        return self.tokenizer_info is not None


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
    _check_kv_cache(parameters)
    lookahead = _lookahead(parameters)
    for name in _MANDATORY:
        if name not in parameters:
            raise runtime_error(f"Cannot find parameter with name: {name}")
    info = _tokenizer_info(parameters, repository)
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
        max_queue_size=_max_queue_size(config),
        decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
        cancellation_check_period=_number(parameters, "cancellation_check_period_ms", 100) / 1000,
        stats_check_period=_number(parameters, "stats_check_period_ms", 100) / 1000,
        tokenizer_info=info,
        lookahead=lookahead,
        max_draft_len=_max_draft_len(build, parameters),
        lora=_lora(parameters, engine, repository),
        host_cache_bytes=_number(parameters, "kv_cache_host_memory_bytes", 0),
        cuda_graphs=(
            _number(parameters, "cuda_graph_cache_size", 0)
            if _flag(parameters, "cuda_graph_mode", default=False)
            else 0
        ),
    )


def check_lookahead(window: int, ngram: int, verification: int) -> None:
    """``LookaheadDecodingConfig``: what its constructor checks.

    Raises:
        TllmError: The sizes do not go together.
    """
    check(ngram >= 1, "ngramSize requires >= 1", _DECODING)
    check(window >= 1, "windowSize requires >= 1", _DECODING)
    alone = ngram == 1
    check(not alone or verification == 0, "ngramSize=1 requires verificationSetSize=0", _DECODING)
    check(not alone or window == 1, "ngramSize=1 requires windowSize=1", _DECODING)
    check(verification >= 0, "verificationSetSize requires >=0", _DECODING)


def _lookahead(parameters: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Whatever is wrong with the sizes, upstream says that they are not there."""
    if parameters.get("decoding_mode") != "lookahead":
        return None
    try:
        window, ngram, verification = (
            int(parameters[f"lookahead_{name}"])
            for name in ("window_size", "ngram_size", "verification_set_size")
        )
        check_lookahead(window, ngram, verification)
    except (KeyError, ValueError, TllmError) as error:
        raise throw(
            "Decoding mode is set to lookahead but lookahead parameters are not specified. "
            "Please set parameters lookahead_window_size, lookahead_ngram_size, and "
            "lookahead_verification_set_size.",
            _INSTANCE,
        ) from error
    return window, ngram, verification


def _check_kv_cache(parameters: Mapping[str, str]) -> None:
    """``KvCacheConfig``: a number that can be read must be in its range."""
    try:
        fraction = float(parameters["kv_cache_free_gpu_mem_fraction"])
    except (KeyError, ValueError):
        fraction = 0.5
    check(fraction > 0, "freeGpuMemoryFraction > 0.F", _KV)
    check(fraction < 1, "freeGpuMemoryFraction < 1.F", _KV)
    check(_number(parameters, "max_tokens_in_paged_kv_cache", 1) > 0, "maxTokens > 0", _KV)


def _lora(
    parameters: Mapping[str, str], engine: Mapping[str, Any], repository: Path
) -> LoraSettings | None:
    """None without the plugin: then no adapter is loaded and no task id is looked at."""
    model, build = engine["pretrained_config"], engine["build_config"]
    if not build["plugin_config"].get("lora_plugin"):
        return None
    lora = build["lora_config"]
    hidden, inner = int(model["hidden_size"]), int(model["intermediate_size"])
    queries, values = (
        int(model[f"num_{kind}_heads"]) * int(model["head_size"])
        for kind in ("attention", "key_value")
    )
    shapes = {
        "attn_q": (hidden, queries),
        "attn_k": (hidden, values),
        "attn_v": (hidden, values),
        "attn_dense": (queries, hidden),
        "mlp_h_to_4h": (hidden, inner),
        "mlp_gate": (hidden, inner),
        "mlp_4h_to_h": (inner, hidden),
    }
    return LoraSettings(
        shapes={name: shapes[name] for name in lora["lora_target_modules"]},
        layers=int(model["num_hidden_layers"]),
        max_rank=int(lora["max_lora_rank"]),
        max_adapter_size=_number(parameters, "lora_cache_max_adapter_size", 64),
        host_cache_bytes=_number(parameters, "lora_cache_host_memory_bytes", 1 << 30),
        prefetch_dir=_inside(parameters.get("lora_prefetch_dir", ""), repository),
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
    """An engine of draft_tokens_external does not load without KV cache reuse."""
    check(
        build.get("speculative_decoding_mode", 1) != _DRAFT_TOKENS_EXTERNAL
        or _flag(parameters, "enable_kv_cache_reuse", default=True),
        "KV cache block reuse must be enabled for speculative decoding target model",
        _MODEL,
    )
    return int(build.get("max_draft_len") or 0)


def _tokenizer_info(parameters: Mapping[str, str], repository: Path) -> TokenizerInfo | None:
    backend, info = parameters["guided_decoding_backend"], parameters[_MANDATORY[1]]
    if backend in ("", "${guided_decoding_backend}") or info in ("", f"${{{_MANDATORY[1]}}}"):
        return None
    path = _inside(info, repository)
    check(path, f"Xgrammar's tokenizer info path at {info} does not exist.", _INSTANCE)
    assert path is not None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise runtime_error(f"[json.exception.parse_error.101] {error}") from error
    _check_tokenizer_info(content)
    if backend != "xgrammar":
        raise runtime_error(
            "Guided decoding is currently supported with 'xgrammar' backend. Invalid "
            "guided_decoding_backend parameter provided."
        )
    return TokenizerInfo(
        tuple(content["encoded_vocab"]),
        content["tokenizer_str"],
        tuple(content["stop_token_ids"]),
    )


def _check_tokenizer_info(content: Mapping[str, Any]) -> None:
    """``get<std::vector<std::string>>()`` and the like: nlohmann's texts for what is no such thing.

    A missing key is one for null here; upstream's own end at it is not recorded.
    """
    vocabulary, ends = content.get("encoded_vocab"), content.get("stop_token_ids")
    for value, kind, part in ((vocabulary, list, str), (ends, list, int)):
        if not isinstance(value, kind):
            raise runtime_error("[json.exception.type_error.302] type must be array")
        if not all(type(one) is part for one in value):
            wanted = "string" if part is str else "number"
            raise runtime_error(f"[json.exception.type_error.302] type must be {wanted}")
    if not isinstance(content.get("tokenizer_str"), str):
        raise runtime_error("[json.exception.type_error.302] type must be string")


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
