"""The pre-flight as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.tables import memory_size
from pipeline.targets.findings import finding_lines

if TYPE_CHECKING:
    from pipeline.targets.tensorrt.plan.preview import EnginePreview

SHOWN_PLUGINS = (
    "gpt_attention_plugin",
    "gemm_plugin",
    "context_fmha",
    "remove_input_padding",
    "use_paged_context_fmha",
    "use_fp8_context_fmha",
    "tokens_per_block",
)


def preview_lines(preview: EnginePreview) -> list[str]:
    """Writes a preview for a terminal: effective build configuration, memory plan and findings."""
    findings = finding_lines(preview.effective.findings)
    return [*_engine(preview), "", *_memory(preview), *findings]


def _engine(preview: EnginePreview) -> Iterator[str]:
    checkpoint, effective = preview.checkpoint, preview.effective
    config = effective.config
    kv_cache = f", {checkpoint.kv_cache_algo} KV cache" if checkpoint.kv_cache_algo else ""
    gpu = preview.gpu
    where = f"{gpu.name} (SM {gpu.sm})" if gpu else "a GPU the recipe does not name"
    yield f"engine: {checkpoint.quant_algo}{kv_cache}, {checkpoint.world_size} x {where}"
    yield (
        f"  max_batch_size {config.max_batch_size}, max_input_len {config.max_input_len}, "
        f"max_seq_len {config.max_seq_len}, max_num_tokens {config.max_num_tokens}, "
        f"opt_num_tokens {config.opt_num_tokens or '-'}"
    )
    plugins = config.plugin_config
    shown = (f"{name} {_value(getattr(plugins, name))}" for name in SHOWN_PLUGINS)
    yield f"  kv_cache_type {config.kv_cache_type}, {', '.join(shown)}"
    if config.speculative_decoding_mode:
        yield (
            f"  speculative_decoding_mode {config.speculative_decoding_mode}, "
            f"max_draft_len {config.max_draft_len}"
        )
    if config.lora:
        modules = ", ".join(config.lora.target_modules)
        yield f"  lora_target_modules {modules}, max_lora_rank {config.lora.max_rank}"
    reuse, chunked = (
        preview.served("enable_kv_cache_reuse"),
        preview.served("enable_chunked_context"),
    )
    yield f"  KV cache reuse {reuse}, chunked context {chunked}"


def _memory(preview: EnginePreview) -> Iterator[str]:
    memory, checkpoint = preview.memory, preview.checkpoint
    rank = "each GPU" if checkpoint.world_size > 1 else "the GPU"
    yield f"memory of {rank}:"
    yield f"  weights            {memory_size(memory.weights)}"
    yield f"  activations        {memory_size(memory.activations)}  at most, an estimate"
    yield f"  runtime            {memory_size(memory.runtime)}  an allowance"
    if memory.cuda_graphs:
        yield f"  CUDA graphs        {memory_size(memory.cuda_graphs)}  at most"
    if memory.draft:
        yield f"  draft model        {memory_size(memory.draft)}  with its KV cache"
    yield (
        f"  KV cache           {memory.kv_bytes_per_token / 1024:9.1f} KiB a token, "
        f"{memory_size(memory.kv_bytes_per_sequence).strip()} a sequence of max_seq_len"
    )
    if memory.host_kv_tokens:
        yield (
            f"  KV cache, host     {memory_size(memory.host_kv_cache)}  "
            f"{memory.host_kv_tokens} tokens, of the host's memory"
        )
    if memory.gpu_memory is None or memory.kv_pool is None:
        return
    yield f"  GPU                {memory_size(memory.gpu_memory)}"
    if memory.lora_cache:
        yield f"  LoRA adapters      {memory_size(memory.lora_cache)}"
    yield f"  left for KV cache  {memory_size(memory.kv_pool)}  {memory.kv_tokens} tokens"
    yield (
        f"  sequences          {memory.sequences:9d}      of max_seq_len together "
        f"(max_batch_size {preview.effective.config.max_batch_size})"
    )


def _value(value: str | bool | int | None) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if value is None else str(value)
