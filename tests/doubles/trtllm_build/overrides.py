"""What ``build()`` of TensorRT-LLM 1.2 changes in its options, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Log = Callable[[str, str], None]
FP8_WEIGHTS = ("FP8", "W4A8_AWQ", "NVFP4")


def apply(build: dict[str, Any], config: dict[str, Any], sm: int, log: Log) -> None:
    """Changes ``build`` (``build_config`` with ``plugin_config`` inside) in place.

    Raises:
        AssertionError: Two options contradict each other.
        RuntimeError: The GPU cannot run the format.
    """
    plugins = build["plugin_config"]
    # It belongs to Mamba; update_kv_cache_type switches it off for all others.
    if plugins["paged_state"]:
        log("W", "Overriding paged_state to False")
        plugins["paged_state"] = False
    _lengths(build, config, log)
    _step(build, plugins, log)
    _fusions(plugins, config, log)
    _speculation(build, log)
    _attention(plugins, config["quantization"], sm, log)
    _refuse(config["quantization"], sm)
    _optimize(plugins)
    _plugins(plugins, config)
    _lora(build, config)


def _lengths(build: dict[str, Any], config: dict[str, Any], log: Log) -> None:
    scaling = config.get("rotary_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type"))
    factor = 1 if kind in ("su", "longrope", "llama3") else scaling.get("factor", 1)
    positions = config["max_position_embeddings"]
    if build["max_seq_len"] is None:
        build["max_seq_len"] = int((positions or 2048) * factor)
        log("I", f"max_seq_len is not specified, using deduced value {build['max_seq_len']}")
    elif positions is not None and build["max_seq_len"] > positions * factor:
        log(
            "W",
            f"max_seq_len {build['max_seq_len']} is larger than max_position_embeddings "
            f"{positions} * rotary scaling {factor}, the model accuracy might be affected",
        )
    if build["max_input_len"] > build["max_seq_len"]:
        log(
            "W",
            f"max_input_len is {build['max_input_len']} is larger than max_seq_len "
            f"{build['max_seq_len']}, clipping it to max_seq_len",
        )
        build["max_input_len"] = build["max_seq_len"]


def _step(build: dict[str, Any], plugins: dict[str, Any], log: Log) -> None:
    limit = build["max_seq_len"] * build["max_batch_size"]
    if not plugins["remove_input_padding"]:
        log(
            "W",
            "remove_input_padding is not enabled, the specified max_num_tokens/opt_num_tokens "
            "will be ignored.",
        )
        build["max_num_tokens"] = limit
        return
    tokens = build["max_num_tokens"]
    if build["opt_num_tokens"] is None and not plugins["multiple_profiles"]:
        build["opt_num_tokens"] = min(build["max_batch_size"] * build["max_beam_width"], tokens)
    if tokens > 16384:
        log(
            "W",
            "Specifying a `max_num_tokens` larger than 16384 is usually not recommended. "
            f"Got `max_num_tokens` = {tokens}",
        )
    if tokens > limit:
        log(
            "W",
            f"max_num_tokens ({tokens}) shouldn't be greater than max_seq_len * max_batch_size "
            f"({limit}), specifying to max_seq_len * max_batch_size ({limit}).",
        )
        tokens = limit
    fmha, block = plugins["context_fmha"], plugins["tokens_per_block"]
    if tokens < build["max_input_len"] and not fmha:
        tokens = build["max_input_len"]
        log("W", f"max_num_tokens should be at least max_input_len, specifying to ({tokens}).")
    elif tokens < block and fmha:
        tokens = block
        log("W", f"max_num_tokens should be at least tokens_per_block, specifying to ({tokens}).")
    build["max_num_tokens"] = tokens
    if build["opt_num_tokens"] is not None:
        build["opt_num_tokens"] = min(build["opt_num_tokens"], tokens)


def _fusions(plugins: dict[str, Any], config: dict[str, Any], log: Log) -> None:
    def off(name: str) -> None:
        log("W", f"Overriding {name} to False")
        plugins[name] = False

    llama = config["architecture"] in (
        "LlamaForCausalLM",
        "Gemma2ForCausalLM",
        "MedusaForCausalLM",
    )
    if plugins["reduce_fusion"] and (config["mapping"]["tp_size"] == 1 or not llama):
        off("reduce_fusion")
    if plugins["user_buffer"] and not plugins["reduce_fusion"]:
        off("user_buffer")
    if plugins["norm_quant_fusion"] and config["quantization"]["quant_algo"] != "NVFP4":
        off("norm_quant_fusion")


def _speculation(build: dict[str, Any], log: Log) -> None:
    if build["speculative_decoding_mode"] == 1:
        return
    length, draft = build["max_seq_len"], build["max_draft_len"]
    build["max_seq_len"] = length + draft
    log("I", f"Increasing max_seq_len ({length}) by max_draft_len ({draft})")
    tokens = build["max_batch_size"] * (draft + 1)
    if build["max_num_tokens"] < tokens:
        log(
            "I",
            f"max_num_tokens ({build['max_num_tokens']}) is smaller than max_batch_size * "
            f"(max_draft_len + 1). New max_num_tokens is set to {tokens}.",
        )
        build["max_num_tokens"] = tokens


def _attention(plugins: dict[str, Any], quantization: dict[str, Any], sm: int, log: Log) -> None:
    algo, cache = quantization["quant_algo"], quantization["kv_cache_quant_algo"]
    if not plugins["context_fmha"]:
        plugins["use_fp8_context_fmha"] = plugins["use_paged_context_fmha"] = False
        log(
            "W",
            "Context FMHA is disabled, FP8 Context FMHA and Paged Context FMHA are disabled.",
        )
        return
    fp8_possible = algo in FP8_WEIGHTS and sm >= 89
    if not fp8_possible:
        if plugins["use_fp8_context_fmha"]:
            plugins["use_fp8_context_fmha"] = False
            log(
                "W",
                "FP8 Context FMHA is disabled because it must be used together with the fp8 "
                "quantization workflow."
                if algo not in FP8_WEIGHTS
                else "FP8 context FMHA is disabled because it is only supported on Ada and Hopper "
                "Arch.",
            )
        if plugins["use_paged_context_fmha"] and cache == "FP8":
            plugins["use_paged_context_fmha"] = False
            log(
                "W",
                "FP8 Paged Context FMHA is disabled because FP8 context FMHA is disabled.",
            )
    elif plugins["use_paged_context_fmha"]:
        if cache != "FP8" and plugins["use_fp8_context_fmha"]:
            plugins["use_fp8_context_fmha"] = False
            log(
                "W",
                "FP8 Paged Context FMHA is disabled because it must be used together with fp8 KV "
                "Cache.",
            )
        elif cache == "FP8" and not plugins["use_fp8_context_fmha"]:
            plugins["use_fp8_context_fmha"] = True
            log("W", "FP8 Context FMHA is enabled to support FP8 Paged Context FMHA.")
    if plugins["use_paged_context_fmha"] and cache == "INT8":
        plugins["use_paged_context_fmha"] = False
        log(
            "W",
            "Paged Context FMHA is disabled because it doesn't work with int8 kv cache currently.",
        )


def _refuse(quantization: dict[str, Any], sm: int) -> None:
    if not 100 <= sm < 120:
        return
    algo = quantization["quant_algo"]
    weight_only = ("W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ")
    if algo in weight_only or quantization["kv_cache_quant_algo"] == "INT8":
        raise RuntimeError("INT8/INT4 quantization is not supported on SM>=100.")
    if algo and algo.startswith("W8A8_SQ"):
        raise RuntimeError("SmoothQuant is not supported on SM>=100.")


def _lora(build: dict[str, Any], config: dict[str, Any]) -> None:
    """Asserts of the layers, met while the network is made."""
    modules = set(build["lora_config"]["lora_target_modules"])
    if not modules:
        return
    separate = modules & {"attn_q", "attn_k", "attn_v"}
    assert len(separate) in (0, 3), (
        "q_lora_params, k_lora_params and v_lora_params should be all enabled or all disabled at "
        "the same time."
    )
    algo = config["quantization"]["quant_algo"] or ""
    assert not algo.startswith("W8A8_SQ"), "lora is not supported on SmoothQuantGatedMLP now"


def validate_plugins(plugins: dict[str, Any], sm: int) -> None:
    """``PluginConfig.validate``, before anything is loaded.

    Raises:
        NotImplementedError: A plugin has no kernels for the GPU.
    """
    unsupported = (
        "gemm_swiglu_plugin",
        "fp8_rowwise_gemm_plugin",
        "low_latency_gemm_plugin",
        "low_latency_gemm_swiglu_plugin",
        "bert_context_fmha_fp32_acc",
    )
    for name in unsupported if sm == 100 else ():
        if plugins[name] not in (None, False):
            raise NotImplementedError(f"{name}={plugins[name]} is not supported on SM {sm}.")


def _optimize(plugins: dict[str, Any]) -> None:
    swiglu = plugins["gemm_swiglu_plugin"] or plugins["low_latency_gemm_swiglu_plugin"]
    if swiglu and not plugins["use_fused_mlp"]:
        raise RuntimeError("GemmSwiGLU plugin requires --use_fused_mlp flag")


def _plugins(plugins: dict[str, Any], config: dict[str, Any]) -> None:
    dtype = config["dtype"]
    if config["quantization"]["quant_algo"] in ("W4A16_AWQ", "W4A8_AWQ"):
        plugins["weight_only_groupwise_quant_matmul_plugin"] = dtype
    plugins["nccl_plugin"] = dtype if config["mapping"]["world_size"] > 1 else None
