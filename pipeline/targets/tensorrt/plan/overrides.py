"""What ``trtllm-build`` changes in a build configuration without being asked.

The rules are those of ``build()``, ``_init_max_seq_len`` and ``check_max_num_tokens`` of
TensorRT-LLM 1.2, in their order. Each of them only logs a warning there, among hundreds of lines
and after a GPU was rented; here each is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pipeline.formats import FP8_KV_CACHE, INT8_KV_CACHE
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.gpus import Gpu
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import FP8_FORMATS, CheckpointFacts

PLUGINS = "compile.tensorrt.plugin_config"
LARGE_STEP = 16384
"""``max_num_tokens`` above which upstream warns of TensorRT's tensor volume."""
MIN_FP8_SM = 89

Changes = dict[str, Any]
Override = tuple[Changes, Finding | None]


def apply_overrides(
    config: BuildConfig, checkpoint: CheckpointFacts, gpu: Gpu | None
) -> tuple[BuildConfig, list[Finding]]:
    """Works out the configuration that is really built.

    Args:
        config: What is asked for.
        checkpoint: What is compiled.
        gpu: Where; None leaves out what depends on it.

    Returns:
        The effective configuration and a finding for each difference.
    """
    findings = []
    for rule in RULES:
        for changes, finding in rule(config, checkpoint, gpu):
            config = _changed(config, changes)
            if finding:
                findings.append(finding)
    return config, findings


def _changed(config: BuildConfig, changes: Changes) -> BuildConfig:
    sizes = {name: value for name, value in changes.items() if hasattr(config, name)}
    plugins = {name: value for name, value in changes.items() if name not in sizes}
    return replace(config, **sizes, plugin_config=replace(config.plugin_config, **plugins))


def _clip_input_length(
    config: BuildConfig, _checkpoint: CheckpointFacts, _gpu: Gpu | None
) -> Iterator[Override]:
    if config.max_input_len > config.max_seq_len:
        yield (
            {"max_input_len": config.max_seq_len},
            Finding(
                "warning",
                "compile.max_input_len",
                f"max_input_len {config.max_input_len} becomes {config.max_seq_len}",
                "It cannot be larger than max_seq_len, which counts prompt and generated tokens",
                "Raise compile.max_seq_len or lower compile.max_input_len",
            ),
        )


def _bound_step(
    config: BuildConfig, _checkpoint: CheckpointFacts, _gpu: Gpu | None
) -> Iterator[Override]:
    key, plugins = "compile.max_num_tokens", config.plugin_config
    asked, most = config.max_num_tokens, config.max_seq_len * config.max_batch_size
    if not plugins.remove_input_padding:
        if asked != most:
            yield (
                {"max_num_tokens": most},
                Finding(
                    "warning",
                    key,
                    f"max_num_tokens {asked} becomes {most}",
                    "Without remove_input_padding every sequence is padded to max_seq_len",
                    f"Set {PLUGINS}.remove_input_padding to true",
                ),
            )
        return
    tokens = asked
    if tokens > most:
        tokens = most
        yield (
            {"max_num_tokens": tokens},
            Finding(
                "warning",
                key,
                f"max_num_tokens {asked} becomes {tokens}",
                "A step cannot hold more than max_batch_size sequences of max_seq_len tokens",
                f"Set {key} to {tokens} or less",
            ),
        )
    if tokens < config.max_input_len and not plugins.context_fmha:
        tokens = config.max_input_len
        yield (
            {"max_num_tokens": tokens},
            Finding(
                "warning",
                key,
                f"max_num_tokens {asked} becomes {tokens}",
                "Without context_fmha a step must hold a whole prompt",
                f"Set {PLUGINS}.context_fmha to true, or {key} to {tokens}",
            ),
        )
    elif tokens < plugins.tokens_per_block and plugins.context_fmha:
        tokens = plugins.tokens_per_block
        yield (
            {"max_num_tokens": tokens},
            Finding(
                "warning",
                key,
                f"max_num_tokens {asked} becomes {tokens}",
                "A step must hold at least one KV block; chunked context is then needed",
                f"Set {key} to at least {tokens}",
            ),
        )
    if tokens > LARGE_STEP:
        yield (
            {},
            Finding(
                "warning",
                key,
                f"max_num_tokens {tokens} is above {LARGE_STEP}",
                "Upstream expects no gain from it, and TensorRT may run out of tensor volume",
                f"Set {key} to {LARGE_STEP} or less; long prompts run with chunked context",
            ),
        )
    if config.opt_num_tokens is None:
        if not plugins.multiple_profiles:
            most = config.max_batch_size * config.max_beam_width
            yield {"opt_num_tokens": min(most, asked, tokens)}, None
    elif config.opt_num_tokens > tokens:
        yield (
            {"opt_num_tokens": tokens},
            Finding(
                "warning",
                "compile.tensorrt.opt_num_tokens",
                f"opt_num_tokens {config.opt_num_tokens} becomes {tokens}",
                "It cannot be larger than max_num_tokens",
                "Leave compile.tensorrt.opt_num_tokens out",
            ),
        )


def _fusions(
    config: BuildConfig, checkpoint: CheckpointFacts, _gpu: Gpu | None
) -> Iterator[Override]:
    plugins, fuses = config.plugin_config, checkpoint.model.family.tensorrt_llm.reduce_fusion
    reduce_fusion = plugins.reduce_fusion
    if reduce_fusion and (checkpoint.tp_size == 1 or not fuses):
        reduce_fusion = False
        yield _off("reduce_fusion", "It needs tensor parallelism and a Llama model")
    if plugins.user_buffer and not reduce_fusion:
        yield _off("user_buffer", "It needs reduce_fusion")
    if plugins.norm_quant_fusion:
        yield _off("norm_quant_fusion", "It needs NVFP4 weights")


def _speculation(
    config: BuildConfig, _checkpoint: CheckpointFacts, _gpu: Gpu | None
) -> Iterator[Override]:
    draft, mode = config.max_draft_len, config.speculative_decoding_mode
    if mode is None:
        return
    key = "compile.tensorrt.lookahead"
    remedy = f"make the sizes of {key} smaller"
    if mode == "draft_tokens_external":
        key = "compile.tensorrt.draft"
        remedy = f"lower {key}.max_draft_len"
    length = config.max_seq_len + draft
    yield (
        {"max_seq_len": length},
        Finding(
            "note",
            key,
            f"max_seq_len {config.max_seq_len} becomes {length}",
            f"Each step needs room for {draft} guessed tokens behind the text",
            f"No action needed: prompt and answer have {config.max_seq_len} tokens as before",
        ),
    )
    step = config.max_batch_size * (draft + 1)
    if config.max_num_tokens < step:
        yield (
            {"max_num_tokens": step},
            Finding(
                "warning",
                "compile.max_num_tokens",
                f"max_num_tokens {config.max_num_tokens} becomes {step}",
                f"A step must hold {draft} guessed tokens and one more for each of "
                f"max_batch_size {config.max_batch_size} sequences",
                f"Set compile.max_num_tokens to {step}, lower compile.max_batch_size, or {remedy}",
            ),
        )


def _attention(
    config: BuildConfig, checkpoint: CheckpointFacts, gpu: Gpu | None
) -> Iterator[Override]:
    plugins, kv_cache = config.plugin_config, checkpoint.kv_cache_algo
    paged, fp8 = plugins.use_paged_context_fmha, plugins.use_fp8_context_fmha
    too_old = gpu is not None and gpu.sm < MIN_FP8_SM
    if not plugins.context_fmha:
        if fp8:
            yield _off("use_fp8_context_fmha", "context_fmha is off")
        if paged:
            yield _no_paged("context_fmha is off", f"Set {PLUGINS}.context_fmha to true")
        return
    if not checkpoint.format.needs_fp8 or too_old:
        if fp8:
            reason = (
                f"{gpu.name} has no FP8 attention kernels; SM {MIN_FP8_SM} or later has"
                if gpu and too_old
                else "It needs FP8 weights"
            )
            yield _off("use_fp8_context_fmha", reason)
        if paged and kv_cache == FP8_KV_CACHE:
            paged = False
            yield _no_paged(
                "An FP8 KV cache needs FP8 attention, which needs FP8 weights and "
                f"SM {MIN_FP8_SM} or later",
                f"Set quantize.kv_cache to null, or quantize.format to {FP8_FORMATS}",
            )
    elif paged and kv_cache != FP8_KV_CACHE and fp8:
        yield _off("use_fp8_context_fmha", "With paged blocks it needs an FP8 KV cache")
    elif paged and kv_cache == FP8_KV_CACHE and not fp8:
        yield (
            {"use_fp8_context_fmha": True},
            Finding(
                "warning",
                f"{PLUGINS}.use_fp8_context_fmha",
                "use_fp8_context_fmha is switched on",
                "Paged attention over an FP8 KV cache computes in FP8",
                f"Leave {PLUGINS}.use_fp8_context_fmha out",
            ),
        )
    if paged and kv_cache == INT8_KV_CACHE:
        yield _no_paged(
            "Paged attention has no kernels for an INT8 KV cache",
            f"Set quantize.kv_cache to null; on SM {MIN_FP8_SM} or later {FP8_FORMATS} weights "
            "with an fp8 KV cache keep both",
        )


def _off(option: str, why: str) -> Override:
    return (
        {option: False},
        Finding(
            "warning",
            f"{PLUGINS}.{option}",
            f"{option} is switched off",
            why,
            f"Leave {PLUGINS}.{option} out",
        ),
    )


def _no_paged(why: str, remedy: str) -> Override:
    return (
        {"use_paged_context_fmha": False},
        Finding(
            "warning",
            f"{PLUGINS}.use_paged_context_fmha",
            "use_paged_context_fmha is switched off: no KV cache reuse and no chunked context",
            why,
            remedy,
        ),
    )


RULES: tuple[Callable[[BuildConfig, CheckpointFacts, Gpu | None], Iterator[Override]], ...] = (
    _clip_input_length,
    _bound_step,
    _fusions,
    _speculation,
    _attention,
)
"""In the order in which upstream applies them."""
