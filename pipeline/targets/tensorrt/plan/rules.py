"""What cannot be built or served, and what works otherwise than its recipe suggests.

Sources: ``build()`` and ``PluginConfig.validate()`` of TensorRT-LLM 1.2 for the refusals,
``TrtGptModelInflightBatching`` for in-flight batching, and the public issues of both projects for
the rest. What does not depend on the target is in :mod:`pipeline.preflight.model_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.formats import FP8_KV_CACHE, INT8_KV_CACHE
from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.gpus import MIN_SM, Gpu
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import (
    BUILT_FORMATS,
    NO_FP8_FORMATS,
    NO_INTEGER_FORMATS,
    PLAIN_FORMATS,
    WEIGHT_ONLY_FORMATS,
    CheckpointFacts,
)
from pipeline.targets.tensorrt.plan.overrides import MIN_FP8_SM, PLUGINS

DATA_CENTER_BLACKWELL = range(100, 120)
"""Compute capabilities on which ``build()`` refuses every INT8 and INT4 format."""
HEAD_SIZES = (32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256)
"""Features of a head that masked multi-head attention, which generates, has kernels for:
``MMHA_SUPPORTED_HEAD_SIZES`` of cpp/tensorrt_llm/kernels/decoderMaskedMultiheadAttention.cu. The
attention plugin refuses any other as soon as it is set up, in common/attentionOp.cpp."""
SWIGLU_PLUGINS = ("gemm_swiglu_plugin", "low_latency_gemm_swiglu_plugin")
FP8_PLUGINS = (*SWIGLU_PLUGINS, "low_latency_gemm_plugin")


def check_format(checkpoint: CheckpointFacts) -> Iterator[Finding]:
    """Finds formats that TensorRT-LLM does not have.

    ``QuantAlgo`` of tensorrt_llm/quantization/mode.py has neither of our own; its attention leaves
    the fused kernels for float32 (``AttentionOp::initialize`` of common/attentionOp.cpp), and with
    them paged context attention, which KV reuse and chunked context are.
    """
    row = checkpoint.format
    if row.own:
        instead = WEIGHT_ONLY_FORMATS if row.packed else BUILT_FORMATS
        yield Finding(
            "error",
            "quantize.format",
            f"{row.name} is not executed by TensorRT-LLM",
            f"Its QuantAlgo has no {row.quant_algo}, so there are no kernels for such a checkpoint"
            if row.packed
            else "TensorRT-LLM takes no checkpoint of such weights: it rounds them itself while it "
            "loads 16 bit, which nobody would have measured",
            f"Set quantize.format to {instead}, or compile.target to openvino",
        )
    if checkpoint.dtype == "float32":
        yield Finding(
            "error",
            "quantize.format",
            "a float32 engine is not built",
            "TensorRT-LLM has no fused attention in float32, so neither KV reuse nor chunked "
            "context would work, and weights and KV cache take twice the memory of 16 bit",
            f"Set quantize.format to {PLAIN_FORMATS}, or compile.target to openvino",
        )


def check_gpu(checkpoint: CheckpointFacts, gpu: Gpu | None) -> Iterator[Finding]:
    """Finds what the compute capability rules out.

    Args:
        checkpoint: What is compiled.
        gpu: Where; None for one that is not known, of which a note is all there is to say.
    """
    row, algo, kv_cache = checkpoint.format, checkpoint.quant_algo, checkpoint.kv_cache_algo
    if gpu is None:
        yield Finding(
            "note",
            "compile.gpu",
            "nothing that depends on the GPU was checked",
            "compile.gpu is not set",
            "Set compile.gpu, for example to H100-80GB",
        )
        return
    if gpu.sm < MIN_SM:
        yield Finding(
            "error",
            "compile.gpu",
            f"TensorRT-LLM 1.2 does not run on {gpu.name}",
            f"Its kernels need SM {MIN_SM} (Ampere) or later; {gpu.name} is SM {gpu.sm}",
            "Build on an Ampere, Ada, Hopper or Blackwell GPU and name it in compile.gpu",
        )
        return
    if gpu.sm < MIN_FP8_SM and row.needs_fp8:
        yield Finding(
            "error",
            "quantize.format",
            f"{algo} does not run on {gpu.name}",
            f"FP8 arithmetic needs SM {MIN_FP8_SM} (Ada) or later; {gpu.name} is SM {gpu.sm}",
            f"Set quantize.format to {NO_FP8_FORMATS}, or compile.gpu to an Ada or Hopper GPU",
        )
    if gpu.sm < MIN_FP8_SM and kv_cache == FP8_KV_CACHE and not row.needs_fp8:
        yield Finding(
            "warning",
            "quantize.kv_cache",
            f"the FP8 KV cache only saves memory on {gpu.name}",
            f"SM {gpu.sm} has no FP8 arithmetic, so every read is converted",
            "Set quantize.kv_cache to null",
        )
    if gpu.sm in DATA_CENTER_BLACKWELL and (row.integer_weights or kv_cache == INT8_KV_CACHE):
        refused = algo if row.integer_weights else "an INT8 KV cache"
        yield Finding(
            "error",
            "quantize.format" if row.integer_weights else "quantize.kv_cache",
            f"{refused} is refused on {gpu.name}",
            "TensorRT-LLM 1.2 builds no INT8 and no INT4 engine on SM 100 to 119; "
            f"{gpu.name} is SM {gpu.sm}",
            f"Set quantize.format to {NO_INTEGER_FORMATS} (kv_cache: fp8 or null), or choose "
            "a Hopper or Ada GPU",
        )
    if gpu.sm >= DATA_CENTER_BLACKWELL.stop and row.integer_weights:
        yield Finding(
            "note",
            "compile.gpu",
            f"{algo} on SM {gpu.sm} rests on single reports",
            "Upstream's check lets it pass, but its tests do not cover it",
            "Run make gpu-acceptance on that GPU first",
        )


def check_plugins(
    config: BuildConfig, checkpoint: CheckpointFacts, gpu: Gpu | None
) -> Iterator[Finding]:
    """Finds plugins without kernels for the format or the GPU, or without an option they need.
    Args:
        config: What is asked for, before upstream's overrides.
        checkpoint: What is compiled.
        gpu: Where; None leaves out what depends on it.
    """
    plugins = config.plugin_config
    if plugins.gemm_plugin == "fp8" and not checkpoint.format.fp8_weights:
        yield Finding(
            "error",
            f"{PLUGINS}.gemm_plugin",
            f"gemm_plugin fp8 does not go with {checkpoint.quant_algo}",
            "It multiplies FP8 weights only",
            f"Set {PLUGINS}.gemm_plugin to auto",
        )
    for option in FP8_PLUGINS:
        if getattr(plugins, option) is None:
            continue
        swiglu = option == "gemm_swiglu_plugin"
        if not checkpoint.format.fp8_weights:
            yield _unavailable(option, f"It needs FP8 weights, not {checkpoint.quant_algo}")
        elif gpu and gpu.sm == DATA_CENTER_BLACKWELL.start:
            yield _unavailable(option, f"trtllm-build refuses it on SM {gpu.sm}")
        elif gpu and swiglu and gpu.sm != 90:
            yield _unavailable(option, f"It has kernels for Hopper only; {gpu.name} is not")
        elif option in SWIGLU_PLUGINS and not plugins.use_fused_mlp:
            yield Finding(
                "error",
                f"{PLUGINS}.use_fused_mlp",
                f"{option} does not go with use_fused_mlp false",
                "It computes the gate and up projections in one product; trtllm-build ends with "
                '"GemmSwiGLU plugin requires --use_fused_mlp flag"',
                f"Leave {PLUGINS}.use_fused_mlp or {PLUGINS}.{option} out",
            )


def check_inflight_batching(config: BuildConfig) -> Iterator[Finding]:
    """Finds which of three things is missing, without which Triton's backend loads no engine."""
    plugins = config.plugin_config
    why = "In-flight batching needs the attention plugin, packed input and a paged KV cache"
    if plugins.gpt_attention_plugin is None:
        key = f"{PLUGINS}.gpt_attention_plugin"
        yield Finding("error", key, "the engine would not load", why, f"Set {key} to auto")
    if not plugins.remove_input_padding:
        key = f"{PLUGINS}.remove_input_padding"
        yield Finding("error", key, "the engine would not load", why, f"Set {key} to true")
    if config.kv_cache_type != "paged":
        key = "compile.tensorrt.kv_cache_type"
        yield Finding("error", key, "the engine would not load", why, f"Set {key} to paged")


def check_model_limits(config: BuildConfig, checkpoint: CheckpointFacts) -> Iterator[Finding]:
    """Finds what the model's own limits and layers rule out."""
    model = checkpoint.model
    if model.family.tensorrt_llm.model_class is None:
        yield Finding(
            "error",
            "compile.target",
            f"TensorRT-LLM 1.2 has no class for {model.architecture}",
            "trtllm-build looks the checkpoint's architecture up in its MODEL_MAP and ends where "
            "it is not there",
            "Set compile.target to openvino, or choose another model",
        )
    if model.head_size not in HEAD_SIZES:
        yield Finding(
            "error",
            "compile.target",
            f"heads of {model.head_size} features do not run on TensorRT-LLM",
            "Its attention has kernels for heads of "
            f"{', '.join(map(str, HEAD_SIZES[:-1]))} and {HEAD_SIZES[-1]} features only",
            "Set compile.target to openvino, which runs heads of any size, or choose another model",
        )
    longest = model.longest_sequence
    if config.max_seq_len > longest:
        yield Finding(
            "error",
            "compile.max_seq_len",
            f"max_seq_len {config.max_seq_len} is longer than the model's {longest} positions",
            "The rotary embedding was not trained beyond them, so the text would fall apart; "
            "trtllm-build only warns",
            f"Set compile.max_seq_len to at most {longest}",
        )
    rows = model.max_position_embeddings
    if rows < config.max_seq_len <= longest:
        # ``Attention.create_attention_const_params`` makes the table, whatever the scaling's
        # factor; the attention kernels take its rows by position and check nothing.
        yield Finding(
            "error",
            "compile.max_seq_len",
            f"max_seq_len {config.max_seq_len} is longer than TensorRT-LLM's table of {rows} "
            "positions",
            f"It has max_position_embeddings {rows} rows, although the model's linear rope scaling "
            f"reaches {longest}; what lies behind it in the GPU's memory would rotate later tokens",
            f"Set compile.max_seq_len to at most {rows}, or compile.target to openvino",
        )
    window = model.sliding_window
    if window is not None and window < config.max_seq_len:
        yield Finding(
            "error",
            "compile.max_seq_len",
            f"max_seq_len {config.max_seq_len} is longer than the sliding window of {window} "
            "tokens",
            "The engine attends to all earlier tokens, which is the same only within the window",
            f"Set compile.max_seq_len to at most {window}",
        )


def check_serving(recipe: Recipe, effective: BuildConfig) -> Iterator[Finding]:
    """Finds what the engine will not do at run time although the recipe asks for it.

    Args:
        recipe: ``serve`` is read.
        effective: The engine, after upstream's overrides.
    """
    plugins, serve = effective.plugin_config, recipe.serve
    paged = plugins.use_paged_context_fmha
    cache = serve.max_tokens_in_paged_kv_cache
    if cache is not None and cache < effective.max_seq_len:
        # The repository stage says the same of the built engine, which is hours too late.
        yield Finding(
            "error",
            "serve.max_tokens_in_paged_kv_cache",
            f"a KV cache of {cache} tokens does not hold one sequence",
            f"The engine's sequences have up to {effective.max_seq_len} tokens, and Triton loads "
            "no engine whose KV cache is smaller",
            f"Set it to at least {effective.max_seq_len}, leave it out, or lower "
            "compile.max_seq_len",
        )
    if effective.gather_context_logits and serve.enable_kv_cache_reuse:
        yield Finding(
            "warning",
            "compile.tensorrt.gather_context_logits",
            "KV cache reuse is switched off at run time",
            "An engine that returns the logits of the prompt must compute the whole prompt",
            "Leave gather_context_logits out; the evaluate stage builds an engine of its own",
        )
    if not (paged and serve.enable_chunked_context):
        longest = min(effective.max_num_tokens, effective.max_seq_len)
        if longest < effective.max_input_len:
            yield Finding(
                "warning",
                "compile.max_num_tokens",
                f"prompts of more than {longest} tokens are refused",
                "Without chunked context a prompt must fit into one step of max_num_tokens",
                f"Set compile.max_num_tokens to at least {effective.max_input_len}"
                + (", or serve.enable_chunked_context to true" if paged else ""),
            )
        # What executorImpl.cpp checks: all but the last token are a prompt after an eviction.
        most = effective.max_num_tokens + 1
        if serve.batch_scheduler_policy == "max_utilization" and most < effective.max_seq_len:
            yield Finding(
                "warning",
                "serve.batch_scheduler_policy",
                f"streams of more than {most} tokens, prompt and max_tokens together, are refused",
                "max_utilization may pause a stream and compute all of it again as one prompt, "
                "which without chunked context must fit into one step; requests with stop words "
                "are streams inside tensorrt_llm_bls",
                "Set serve.batch_scheduler_policy to guaranteed_no_evict"
                + (", or serve.enable_chunked_context to true" if paged else ""),
            )


def _unavailable(option: str, why: str) -> Finding:
    key = f"{PLUGINS}.{option}"
    return Finding("error", key, f"{option} is not available", why, f"Leave {key} out")
