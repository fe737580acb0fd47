"""The arguments of ``trtllm-build`` 1.2, no more and no fewer."""

from __future__ import annotations

import argparse

DTYPES = ("auto", "float16", "float32", "bfloat16", "int32")
# Plugins that the command line exposes: name, values and default.
PLUGINS: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    ("bert_attention_plugin", DTYPES, "auto"),
    ("gpt_attention_plugin", DTYPES, "auto"),
    ("gemm_plugin", (*DTYPES, "fp8", "nvfp4"), None),
    ("gemm_swiglu_plugin", ("fp8",), "disable"),
    ("fp8_rowwise_gemm_plugin", DTYPES, "disable"),
    ("lora_plugin", DTYPES, "disable"),
    ("moe_plugin", DTYPES, "auto"),
    ("mamba_conv1d_plugin", DTYPES, "auto"),
    ("nccl_plugin", DTYPES, "auto"),
    ("low_latency_gemm_plugin", ("fp8",), "disable"),
    ("low_latency_gemm_swiglu_plugin", ("fp8",), "disable"),
    ("gemm_allreduce_plugin", ("float16", "bfloat16"), "disable"),
)
# Switches that the command line exposes, with their defaults.
SWITCHES = {
    "dora_plugin": False,
    "context_fmha": True,
    "bert_context_fmha_fp32_acc": False,
    "remove_input_padding": True,
    "use_paged_context_fmha": True,
    "use_fp8_context_fmha": True,
    "fuse_fp4_quant": False,
    "multiple_profiles": False,
    "paged_state": True,
    "streamingllm": False,
    "norm_quant_fusion": False,
    "reduce_fusion": False,
    "user_buffer": False,
    "use_fused_mlp": True,
    "pp_reduce_scatter": False,
}
# Fields of PluginConfig that only the program sets.
INTERNAL_PLUGINS = {
    "qserve_gemm_plugin": None,
    "identity_plugin": None,
    "weight_only_groupwise_quant_matmul_plugin": None,
    "weight_only_quant_matmul_plugin": None,
    "smooth_quant_plugins": True,
    "smooth_quant_gemm_plugin": None,
    "layernorm_quantization_plugin": None,
    "rmsnorm_quantization_plugin": None,
    "quantize_per_token_plugin": False,
    "quantize_tensor_plugin": False,
    "paged_kv_cache": None,
    "manage_weights": False,
}
# LoraManager.LORA_MODULE_IDS.
LORA_MODULES = (
    *("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_dense"),
    *("mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"),
    *("cross_attn_qkv", "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_dense"),
    *("moe_h_to_4h", "moe_4h_to_h", "moe_gate", "moe_router", "mlp_router", "mlp_gate_up"),
)
# The IntFlag SpeculativeDecodingMode; without the option it is NONE.
SPECULATION = {
    None: 1,
    "draft_tokens_external": 2,
    "medusa": 4,
    "lookahead_decoding": 8,
    "explicit_draft_tokens": 16,
    "eagle": 32,
}


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    it = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=False)
    for name in ("checkpoint_dir", "model_config", "build_config", "model_cls_file"):
        it.add_argument(f"--{name}")
    it.add_argument("--model_cls_name")
    it.add_argument("--output_dir", default="engine_outputs")
    it.add_argument("--max_batch_size", type=int, default=2048)
    it.add_argument("--max_input_len", type=int, default=1024)
    it.add_argument("--max_seq_len", "--max_decoder_seq_len", dest="max_seq_len", type=int)
    it.add_argument("--max_beam_width", type=int, default=1)
    it.add_argument("--max_num_tokens", type=int, default=8192)
    it.add_argument("--opt_num_tokens", type=int)
    it.add_argument("--max_encoder_input_len", type=int, default=1024)
    it.add_argument("--max_prompt_embedding_table_size", type=int, default=0)
    it.add_argument("--kv_cache_type", type=_kv_cache_type)
    it.add_argument("--paged_kv_cache")
    it.add_argument("--input_timing_cache")
    it.add_argument("--output_timing_cache", default="model.cache")
    it.add_argument(
        "--profiling_verbosity",
        choices=("layer_names_only", "detailed", "none"),
        default="layer_names_only",
    )
    for name in ("strip_plan", "weight_sparsity", "weight_streaming", "fast_build"):
        it.add_argument(f"--{name}", action="store_true")
    it.add_argument("--workers", type=int, default=1)
    it.add_argument(
        "--log_level",
        default="info",
        choices=("internal_error", "error", "warning", "info", "verbose", "debug", "trace"),
    )
    for name in ("enable_debug_output", "dry_run", "monitor_memory"):
        it.add_argument(f"--{name}", action="store_true")
    it.add_argument("--visualize_network")
    it.add_argument("--logits_dtype", choices=("float16", "float32"))
    for name in ("gather_context_logits", "gather_generation_logits", "gather_all_token_logits"):
        it.add_argument(f"--{name}", action="store_true")
    it.add_argument("--lora_dir", nargs="+")
    it.add_argument("--lora_ckpt_source", choices=("hf", "nemo"), default="hf")
    it.add_argument("--lora_target_modules", nargs="+", choices=LORA_MODULES)
    it.add_argument("--max_lora_rank", type=int, default=64)
    it.add_argument(
        "--speculative_decoding_mode",
        choices=tuple(name for name in SPECULATION if name),
    )
    it.add_argument("--max_draft_len", type=int, default=0)
    for name, values, default in PLUGINS:
        it.add_argument(f"--{name}", choices=(*values, "disable"), default=default)
    for name, on in SWITCHES.items():
        default = "enable" if on else "disable"
        it.add_argument(f"--{name}", choices=("enable", "disable"), default=default)
    it.add_argument("--tokens_per_block", type=int, default=32)
    return it


def plugin_config(arguments: argparse.Namespace, dtype: str) -> dict[str, object]:
    """PluginConfig as it is written into ``config.json``."""
    values = vars(arguments)
    config: dict[str, object] = {"dtype": dtype, **INTERNAL_PLUGINS}
    for name, _, _ in PLUGINS:
        config[name] = None if values[name] == "disable" else values[name]
    for name in SWITCHES:
        config[name] = values[name] == "enable"
    config["tokens_per_block"] = values["tokens_per_block"]
    return config


def _kv_cache_type(value: str) -> str:
    if value.upper() not in ("CONTINUOUS", "PAGED", "DISABLED"):
        message = f"Invalid value '{value}'. Expected one of ['continuous', 'paged', 'disabled']"
        raise argparse.ArgumentTypeError(message)
    return value.upper()
