"""The rounding of a quantized KV cache, as an attention function of transformers.

ModelOpt calibrates INT8 and FP8 caches with ``k_bmm_quantizer`` and ``v_bmm_quantizer``, which see
rotated keys and values of all positions; TensorRT-LLM stores both with one scale, the larger.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.formats import INT8_KV_CACHE
from pipeline.reference.linear import round_to_float8, round_to_int8

ATTENTION_NAME = "sdpa_quantized_kv_cache"


def set_kv_cache(attention: torch.nn.Module, algo: str, step: float) -> None:
    """Makes one attention module round its keys and values.

    Args:
        attention: A module whose model was built with ``attn_implementation=ATTENTION_NAME``.
        algo: ``INT8`` or ``FP8``.
        step: ``kv_cache_scaling_factor``: amax / 127 for INT8; multiplies the codes for FP8.
    """
    attention.kv_cache_rounding = (  # type: ignore[assignment]
        round_to_int8 if algo == INT8_KV_CACHE else round_to_float8,
        step,
    )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    rounding: Any = getattr(module, "kv_cache_rounding", None)
    if rounding is not None:
        quantize, step = rounding
        key, value = quantize(key, step), quantize(value, step)
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **options
    )
    return output


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
