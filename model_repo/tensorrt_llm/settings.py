"""What the engine front is told: config.pbtxt parameters and the engine's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .end_ids import read_end_ids
from .parameters import flag, number

TOKENS_PER_BLOCK = 32
"""Tokens per KV block, fixed by OpenVINO's CPU plugin."""

SHORT_STEP_TOKENS = 256
"""Tokens per step: a step holds Python's interpreter lock, so it is kept short."""

_KV_PRECISION = "KV_CACHE_PRECISION"
_KV_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1}


@dataclass(frozen=True)
class EngineSettings:
    """Everything the front needs to know before the engine is opened.

    Attributes:
        max_input_len: Tokens of the longest prompt.
        max_seq_len: Prompt plus generated tokens, at most.
        num_kv_blocks: Blocks of the paged KV cache, :data:`TOKENS_PER_BLOCK` tokens each.
        kv_block_bytes: Bytes of one of them over all layers; 0 if the engine does not say.
        max_num_batched_tokens: Tokens per engine step.
        max_queue_size: Requests that may wait beside ``max_batch_size`` running ones; 0 no limit.
        guaranteed_no_evict: Whether a request starts only when the KV cache can hold it to its end.
        end_ids: The model's own end-of-text ids, with which a guided text ends.
        cancellation_check_period: Seconds.
        stats_check_period: Seconds.
        max_token_hold: Seconds that a token of a stream may wait for more of them; 0 for none.
        properties: Properties of OpenVINO's CPU plugin.
        int8_products: Whether the engine multiplies INT8 by INT8.
        decoupled: Whether a request may get many responses (model_transaction_policy).
        tokenizer: The model's ``tokenizer.json``; None where requests bring tokens only.
        guided_decoding: Whether requests may say what their text must be.
    """

    engine_dir: Path
    vocab_size: int
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    num_kv_blocks: int
    max_num_batched_tokens: int
    max_queue_size: int = 0
    guaranteed_no_evict: bool = True
    enable_prefix_caching: bool = True
    dynamic_split_fuse: bool = True
    exclude_input_in_output: bool = False
    end_ids: tuple[int, ...] = ()
    cancellation_check_period: float = 0.1
    stats_check_period: float = 0.1
    max_token_hold: float = 0.0
    properties: Mapping[str, str] | None = None
    kv_block_bytes: int = 0
    int8_products: bool = False
    decoupled: bool = True
    tokenizer: Path | None = None
    guided_decoding: bool = False

    @property
    def kv_bytes(self) -> int:
        """Bytes of the whole KV cache."""
        return self.num_kv_blocks * self.kv_block_bytes

    @property
    def engine_kv_blocks(self) -> int:
        """Blocks that the engine has: one more than requests get (:mod:`finiteness`)."""
        return self.num_kv_blocks + 1

    @property
    def logit_bytes(self) -> int:
        """Bytes of the float32 logits of a step in which every token's are wanted."""
        return 4 * self.max_num_batched_tokens * self.vocab_size


def read_settings(
    repository: Path, parameters: Mapping[str, str], *, decoupled: bool = True
) -> EngineSettings:
    """Settings from the parameters of config.pbtxt (NVIDIA's names) and the engine directory.

    Args:
        repository: Root of the model repository; relative paths start there.
        parameters: Parameter name to ``string_value``.
        decoupled: The model's transaction policy.

    Raises:
        ValueError: A parameter or the engine's config.json is missing or wrong.
        OSError: The engine's config.json cannot be read.
    """
    if not parameters.get("gpt_model_path"):
        raise ValueError("config.pbtxt: the parameter gpt_model_path (engine directory) is missing")
    policy = parameters.get("batch_scheduler_policy", "guaranteed_no_evict")
    if policy not in ("guaranteed_no_evict", "max_utilization"):
        raise ValueError(
            f"config.pbtxt: batch_scheduler_policy is {policy!r}; "
            "known: guaranteed_no_evict, max_utilization"
        )
    backend = parameters.get("guided_decoding_backend")
    if backend not in (None, "xgrammar"):
        raise ValueError(
            f"config.pbtxt: guided_decoding_backend is {backend!r}; known: xgrammar, and empty for "
            "no guided decoding"
        )
    if backend and not parameters.get("tokenizer_dir"):
        raise ValueError("config.pbtxt: guided_decoding_backend needs tokenizer_dir")
    engine_dir = repository / parameters["gpt_model_path"]
    engine = json.loads((engine_dir / "config.json").read_text(encoding="utf-8"))
    build = engine["build_config"]
    max_batch_size, max_seq_len = int(build["max_batch_size"]), int(build["max_seq_len"])
    chunked = flag(parameters, "enable_chunked_context", default=True)
    vocab_size = int(engine["pretrained_config"]["vocab_size"])
    return EngineSettings(
        engine_dir=engine_dir,
        vocab_size=vocab_size,
        max_batch_size=max_batch_size,
        max_input_len=_max_input_len(build, chunked=chunked),
        max_seq_len=max_seq_len,
        num_kv_blocks=_kv_blocks(parameters, max_batch_size, max_seq_len),
        # Without chunks a prompt (or a sequence that is computed again) must fit in one step.
        max_num_batched_tokens=max(
            min(SHORT_STEP_TOKENS, int(build["max_num_tokens"])) if chunked else max_seq_len,
            max_batch_size,
        ),
        max_queue_size=number(parameters, "max_queue_size", default=0),
        guaranteed_no_evict=policy == "guaranteed_no_evict",
        enable_prefix_caching=flag(parameters, "enable_kv_cache_reuse", default=True),
        dynamic_split_fuse=chunked,
        exclude_input_in_output=flag(parameters, "exclude_input_in_output", default=False),
        end_ids=(
            read_end_ids(repository / parameters["tokenizer_dir"], vocab_size)
            if parameters.get("tokenizer_dir")
            else ()
        ),
        cancellation_check_period=number(parameters, "cancellation_check_period_ms", 100) / 1000,
        stats_check_period=number(parameters, "stats_check_period_ms", 100) / 1000,
        max_token_hold=number(parameters, "max_token_hold_ms", default=0) / 1000,
        properties={str(k): str(v) for k, v in (engine.get("runtime") or {}).items()},
        kv_block_bytes=_kv_block_bytes(engine),
        int8_products=_quant_algo(engine).startswith("W8A8"),
        decoupled=decoupled,
        tokenizer=(
            repository / parameters["tokenizer_dir"] / "tokenizer.json"
            if parameters.get("tokenizer_dir")
            else None
        ),
        guided_decoding=backend is not None,
    )


def blocks(tokens: int) -> int:
    """KV blocks that hold ``tokens`` tokens."""
    return -(-tokens // TOKENS_PER_BLOCK)


def _max_input_len(build: Mapping[str, Any], *, chunked: bool) -> int:
    """Tokens of the longest prompt. TensorRT-LLM computes one that it may not cut in one step."""
    longest = int(build["max_input_len"])
    return longest if chunked else min(longest, int(build["max_num_tokens"]))


def _kv_blocks(parameters: Mapping[str, str], max_batch_size: int, max_seq_len: int) -> int:
    one_sequence = blocks(max_seq_len)
    tokens = number(parameters, "max_tokens_in_paged_kv_cache", default=0)
    total = tokens // TOKENS_PER_BLOCK if tokens else max_batch_size * one_sequence
    if total < one_sequence:
        raise ValueError(
            f"config.pbtxt: max_tokens_in_paged_kv_cache is {tokens}, but one sequence of "
            f"max_seq_len {max_seq_len} needs {one_sequence * TOKENS_PER_BLOCK}; raise it or "
            "compile the engine with a smaller max_seq_len"
        )
    return total


def _quant_algo(engine: Mapping[str, Any]) -> str:
    return str((engine["pretrained_config"].get("quantization") or {}).get("quant_algo") or "")


def _kv_block_bytes(engine: Mapping[str, Any]) -> int:
    model, precision = engine["pretrained_config"], (engine.get("runtime") or {}).get(_KV_PRECISION)
    if "head_size" not in model or precision not in _KV_BYTES:
        return 0
    size = int(model["head_size"])
    per_head = TOKENS_PER_BLOCK * 2 * size * _KV_BYTES[precision]
    if precision == "u8":
        # A float32 scale and zero point for each token's values, and for each feature of the keys.
        per_head += 8 * (TOKENS_PER_BLOCK + size)
    return per_head * int(model["num_hidden_layers"]) * int(model["num_key_value_heads"])
