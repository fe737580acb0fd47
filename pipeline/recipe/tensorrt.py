"""``compile.tensorrt`` of the recipe: the options that the GPU target alone reads.

Names are those of TensorRT-LLM's ``BuildConfig`` and ``PluginConfig``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.recipe.section import Positive, Section, Unit

GemmPlugin = Literal["auto", "float16", "bfloat16", "float32", "fp8"]

# Options of old tutorials that TensorRT-LLM 1.2 no longer has, and what does their work now.
REMOVED_PLUGIN_OPTIONS = {
    "use_inflight_batching": "in-flight batching is always on with a paged KV cache",
    "use_gpt_attention_plugin": "write gpt_attention_plugin",
    "use_gemm_plugin": "write gemm_plugin",
    "paged_kv_cache": "write compile.tensorrt.kv_cache_type: paged",
    "enable_xqa": "XQA kernels are always on",
    "multi_block_mode": "it is a runtime option since 0.13, not one of the engine",
    "use_custom_all_reduce": "the all-reduce strategy is chosen at run time",
    "context_fmha_fp32_acc": "it is a runtime option, enable_context_fmha_fp32_acc",
    "enable_context_fmha": "write context_fmha",
    "use_context_fmha_for_generation": "the generation kernels are always on",
    "tokens_per_block": "write compile.tokens_per_block",
    "streamingllm": "it cannot go with the paged context FMHA and TensorRT-LLM 1.2 asserts it off",
    "auto_parallel": "write compile.tensor_parallel and compile.pipeline_parallel",
    "smooth_quant_gemm_plugin": "trtllm-build sets the quantization plugins from the checkpoint",
    "smooth_quant_plugins": "trtllm-build sets the quantization plugins from the checkpoint",
    "weight_only_quant_matmul_plugin": "trtllm-build sets it from the checkpoint",
    "weight_only_groupwise_quant_matmul_plugin": "trtllm-build sets it from the checkpoint",
    "lora_plugin": "write compile.tensorrt.lora",
}


class PluginSection(Section):
    """Options of TensorRT-LLM's ``PluginConfig`` that make sense for a dense decoder.

    Upstream drops a misspelt name without a word; here it is an error.

    Attributes:
        gpt_attention_plugin: Attention as a plugin, which in-flight batching needs; ``auto``
            computes in the model's dtype.
        gemm_plugin: Kernels of the linears that are not quantized (and of FP8); None leaves them to
            TensorRT.
        gemm_swiglu_plugin: Fuses an FP8 MLP's first GEMMs with the activation, on Hopper.
        low_latency_gemm_plugin: FP8 GEMM for small batches.
        low_latency_gemm_swiglu_plugin: FP8 GEMM for small batches, fused with the activation.
        gemm_allreduce_plugin: Fuses row-parallel GEMMs with their all-reduce.
        nccl_plugin: trtllm-build replaces it by the dtype for more than one rank, by none for one.
        context_fmha: Fused attention for prompts; without it there is no KV cache reuse.
        remove_input_padding: Packed input; needed for in-flight batching.
        use_paged_context_fmha: Prompts attend to paged blocks: KV cache reuse and chunked context.
        use_fp8_context_fmha: FP8 attention; None wants it where weights and KV cache are FP8.
        multiple_profiles: Several optimization profiles: a faster engine, a longer build.
        norm_quant_fusion: Fuses the norm with FP4 quantization.
        reduce_fusion: Fuses all-reduce, residual and norm (Llama with tensor parallelism).
        user_buffer: Communication buffers without copies; needs ``reduce_fusion``.
        use_fused_mlp: One GEMM for gate and up projection.
    """

    gpt_attention_plugin: Literal["auto", "float16", "bfloat16", "float32"] | None = "auto"
    gemm_plugin: GemmPlugin | None = "auto"
    gemm_swiglu_plugin: Literal["fp8"] | None = None
    low_latency_gemm_plugin: Literal["fp8"] | None = None
    low_latency_gemm_swiglu_plugin: Literal["fp8"] | None = None
    gemm_allreduce_plugin: Literal["float16", "bfloat16"] | None = None
    nccl_plugin: Literal["auto", "float16", "bfloat16", "float32"] | None = "auto"
    context_fmha: bool = True
    remove_input_padding: bool = True
    use_paged_context_fmha: bool = True
    use_fp8_context_fmha: bool | None = None
    multiple_profiles: bool = False
    norm_quant_fusion: bool = False
    reduce_fusion: bool = False
    user_buffer: bool = False
    use_fused_mlp: bool = True

    @model_validator(mode="before")
    @classmethod
    def _removed(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name in REMOVED_PLUGIN_OPTIONS:
                msg = f"there is no {name}: {REMOVED_PLUGIN_OPTIONS[name]}"
                raise ValueError(msg)
        return values


class LookaheadSection(Section):
    """Lookahead decoding: several tokens a step, guessed from n-grams of the text so far.

    The sizes are (W, N, G) of TensorRT-LLM's examples/lookahead; the defaults are its executor's.

    Attributes:
        window_size: N-grams that are made at a time (W).
        ngram_size: Tokens of an n-gram (N), of which a step accepts that many at most.
        verification_set_size: N-grams that a step tries (G).
    """

    window_size: Annotated[Positive, Unit("n-grams")] = 4
    ngram_size: Annotated[int, Field(ge=2), Unit("tokens")] = 3
    verification_set_size: Annotated[Positive, Unit("n-grams")] = 4

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Returns W, N and G."""
        return self.window_size, self.ngram_size, self.verification_set_size

    @property
    def max_draft_len(self) -> int:
        """Counts the tokens that a step guesses for a sequence."""
        return max_draft_len(*self.sizes)


def max_draft_len(window: int, ngram: int, verification: int) -> int:
    """Computes ``--max_draft_len`` of lookahead decoding.

    The formula is that of TensorRT-LLM's examples/lookahead/README.md and of
    ``LookaheadDecodingConfig::calculateSpeculativeResourceTuple``.
    """
    return (0 if ngram == 1 else ngram - 2) + (window - 1 + verification) * (ngram - 1)


class DraftSection(Section):
    """Draft-target speculation: a smaller model guesses tokens, and a step accepts several.

    Attributes:
        max_draft_len: Tokens that a request may have guessed at a time (``num_draft_tokens``).
    """

    max_draft_len: Annotated[Positive, Unit("tokens")] = 4


LoraModule = Literal[
    "attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"
]
ATTENTION_INPUTS: tuple[LoraModule, ...] = ("attn_q", "attn_k", "attn_v")


class LoraSection(Section):
    """LoRA: an engine whose requests may each choose one of several adapters.

    Attributes:
        target_modules: The linears that adapters may change; ``attn_q``, ``attn_k`` and ``attn_v``
            go together, ``mlp_h_to_4h`` is Hugging Face's ``gate_proj``, ``mlp_gate`` its
            ``up_proj``, ``mlp_4h_to_h`` its ``down_proj`` and ``attn_dense`` its ``o_proj``.
        max_rank: The largest rank of an adapter.
    """

    target_modules: Annotated[list[LoraModule], Field(min_length=1)] = Field(
        default=list(ATTENTION_INPUTS)
    )
    max_rank: Annotated[Positive, Unit("features")] = 64

    @model_validator(mode="after")
    def _attention(self) -> LoraSection:
        names = self.target_modules
        if len(set(names)) != len(names):
            msg = "target_modules names a linear twice; name each once"
            raise ValueError(msg)
        if 0 < len(set(names) & set(ATTENTION_INPUTS)) < len(ATTENTION_INPUTS):
            # TensorRT-LLM asserts it while the network is made (layers/attention.py).
            msg = f"{', '.join(ATTENTION_INPUTS)} go together; name all of them, or none"
            raise ValueError(msg)
        return self


class TensorRtSection(Section):
    """Options of ``trtllm-build`` beyond the sizes; names are ``BuildConfig``'s.

    Attributes:
        opt_num_tokens: Size of the step that kernels are chosen for; None is ``max_batch_size``.
        kv_cache_type: How keys and values are stored; only ``paged`` can be served with in-flight
            batching.
        gather_context_logits: Returns prompt logits, which switches KV cache reuse off; for an
            evaluation engine.
        workers: How many ranks are built at the same time, on one GPU each; None is all of them.
        lookahead: Lookahead decoding of the text that greedy decoding gives; None decodes one token
            a step, and samples.
        draft: An engine that takes guesses of another one, which ``serve.draft_repository`` names;
            None takes none.
        lora: Which linears adapters may change, and by how much; None builds an engine for the
            model alone. ``serve.lora_adapters`` are the adapters.
        plugin_config: Options of ``PluginConfig``.
    """

    opt_num_tokens: Annotated[Positive | None, Unit("tokens per step")] = None
    kv_cache_type: Literal["paged", "continuous", "disabled"] = "paged"
    gather_context_logits: bool = False
    workers: Annotated[Positive | None, Unit("ranks")] = None
    lookahead: LookaheadSection | None = None
    draft: DraftSection | None = None
    lora: LoraSection | None = None
    plugin_config: PluginSection = PluginSection()

    @model_validator(mode="after")
    def _profiles(self) -> TensorRtSection:
        if self.plugin_config.multiple_profiles and self.opt_num_tokens is not None:
            msg = "opt_num_tokens cannot go with multiple_profiles; leave one of them out"
            raise ValueError(msg)
        if self.lookahead is not None and self.draft is not None:
            msg = "lookahead and draft are two ways to guess tokens; leave one of them out"
            raise ValueError(msg)
        return self
