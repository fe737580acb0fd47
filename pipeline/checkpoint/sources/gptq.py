"""GPTQ folders, as AutoGPTQ and GPTQModel write them.

``qweight`` holds eight consecutive inputs per word, ``qzeros`` eight consecutive outputs; the first
layout stores zero points minus one (``pack`` of AutoGPTQ's ``qlinear_*``), the second as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.sources.linear import MIDDLE, SourceLinear, nibbles, signed
from pipeline.models.quantized import StoredQuantization


def read(stored: StoredQuantization, tensor: Callable[[str], Array | None]) -> SourceLinear:
    """Reads one linear.

    Args:
        stored: The model's quantization.
        tensor: Gives a tensor of the linear by the end of its name; None where it has none.
    """
    qweight, qzeros, scales = tensor("qweight"), tensor("qzeros"), tensor("scales")
    assert qweight is not None
    assert qzeros is not None
    assert scales is not None
    offsets = None
    if stored.zero_points:
        zero_points = nibbles(qzeros).T.astype(np.int8) + np.int8(not stored.v2)
        offsets = np.ascontiguousarray(np.int8(MIDDLE) - zero_points)
    return SourceLinear(
        signed(nibbles(np.ascontiguousarray(qweight.T))),
        np.ascontiguousarray(scales.T),
        offsets=offsets,
        groups=tensor("g_idx") if stored.ordered else None,
    )
