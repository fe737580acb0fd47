"""ModelOpt's unified Hugging Face checkpoint, whose linears are not fused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.checkpoint.dequantize import unpack_int4
from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.sources.linear import SourceLinear
from pipeline.formats import FP8, W4A16_AWQ
from pipeline.models.quantized import StoredQuantization


def read(stored: StoredQuantization, tensor: Callable[[str], Array | None]) -> SourceLinear:
    """Reads one linear; see :func:`pipeline.checkpoint.sources.gptq.read`."""
    weight, scales, smoothing = tensor("weight"), tensor("weight_scale"), tensor("pre_quant_scale")
    assert weight is not None
    assert scales is not None
    if stored.quant_algo == W4A16_AWQ:
        # Two rows in a byte, as in TensorRT-LLM's own checkpoint.
        return SourceLinear(unpack_int4(weight.view(np.int8)), scales, smoothing=smoothing)
    step = tensor("input_scale")
    assert step is not None
    rows = scales.reshape(-1).astype(np.float32)
    number = float(step.reshape(-1)[0])
    if stored.quant_algo == FP8:
        return SourceLinear(weight, rows, step=number)
    return SourceLinear(weight, rows, smoothing=smoothing, step=number)
