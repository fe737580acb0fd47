"""What a format may cost in quality, and what other users report of it.

Sources: the public issues of NVIDIA/TensorRT-LLM, by number where a finding rests on one.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.formats import FP8_KV_CACHE, INT8_KV_CACHE
from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts


def check_quality(recipe: Recipe, checkpoint: CheckpointFacts) -> Iterator[Finding]:
    """Finds what is known to cost accuracy, or to need watching, in the recipe's formats."""
    quantization = checkpoint.format
    smoothquant = checkpoint.model.family.tensorrt_llm.smoothquant_note
    if quantization.quantizes and recipe.evaluate is None:
        yield Finding(
            "warning",
            "evaluate",
            f"nothing measures what {checkpoint.quant_algo} costs in quality",
            "The recipe has no evaluate section, so there is no gate before the build",
            "Add evaluate.text and evaluate.gates",
        )
    if quantization.calibration == "smoothquant" and smoothquant:
        yield Finding("note", "quantize.format", *smoothquant)
    if checkpoint.kv_cache_algo == INT8_KV_CACHE:
        yield Finding(
            "warning",
            "quantize.kv_cache",
            "an INT8 KV cache costs quality and all KV cache reuse",
            "It has one static scale per layer, and paged attention has no kernels for it",
            "Set quantize.kv_cache to null unless memory decides",
        )
    if checkpoint.kv_cache_algo == FP8_KV_CACHE:
        yield from _check_fp8_kv_cache(recipe, checkpoint)
    if quantization.scales == "group" and (quantization.needs_fp8 or checkpoint.tp_size > 1):
        yield Finding(
            "note",
            "quantize.format",
            f"trtllm-build may find no kernel for a weight of {checkpoint.quant_algo}",
            "INT4 kernels are tried on the GPU for each shape that a rank has. Where none "
            'runs the build warns "Have not found any valid GEMM config" and goes on; the engine '
            "then fails at its first token (NVIDIA/TensorRT-LLM#1792, #9688)",
            "No action needed before the build: the compile stage passes the warning on and tries "
            f"the engine. If it fails, use format {' or '.join(quantization.instead)}",
        )
    epsilon = checkpoint.model.family.tensorrt_llm.qk_norm_epsilon
    if epsilon is not None and epsilon != checkpoint.model.norm_epsilon:
        yield Finding(
            "note",
            "model.source",
            f"TensorRT-LLM normalizes queries and keys with an epsilon of {epsilon:g}, the model "
            f"says {checkpoint.model.norm_epsilon:g}",
            "Its attention layer takes its own default whatever the checkpoint says; evaluation "
            "and the CPU engine compute what the model says",
            f"No action needed: only heads whose values are around {epsilon**0.5:.3f} notice it",
        )


def _check_fp8_kv_cache(recipe: Recipe, checkpoint: CheckpointFacts) -> Iterator[Finding]:
    """Reports of wrong text that no gate before the engine can see."""
    if note := checkpoint.model.family.tensorrt_llm.fp8_kv_cache_note:
        yield Finding("warning", "quantize.kv_cache", *note)
    if recipe.serve.enable_kv_cache_reuse and checkpoint.format.needs_fp8:
        yield Finding(
            "note",
            "serve.enable_kv_cache_reuse",
            "an FP8 KV cache that is reused between prompts is reported to give wrong text",
            "The report is open (NVIDIA/TensorRT-LLM#2699, TensorRT-LLM 0.16 on an RTX 4090); "
            "evaluation measures engines without reuse and cannot show it",
            "Ask the running server the same prompt several times; if its answers differ, set "
            "serve.enable_kv_cache_reuse to false or quantize.kv_cache to null",
        )
