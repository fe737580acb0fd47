"""AutoAWQ folders of the version GEMM: eight outputs per word, in the order of its kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.sources.linear import MIDDLE, SourceLinear, nibbles, signed
from pipeline.models.quantized import StoredQuantization

# AWQ_ORDER of AutoAWQ's packing puts outputs 0 2 4 6 1 3 5 7 into the nibbles from the lowest on;
# this is where each output is.
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def read(stored: StoredQuantization, tensor: Callable[[str], Array | None]) -> SourceLinear:
    """Reads one linear; see :func:`pipeline.checkpoint.sources.gptq.read`."""
    qweight, qzeros, scales = tensor("qweight"), tensor("qzeros"), tensor("scales")
    assert qweight is not None
    assert scales is not None
    offsets = None
    if stored.zero_points:
        assert qzeros is not None
        zero_points = nibbles(qzeros, ORDER).T.astype(np.int8)
        offsets = np.ascontiguousarray(np.int8(MIDDLE) - zero_points)
    return SourceLinear(
        np.ascontiguousarray(signed(nibbles(qweight, ORDER)).T),
        np.ascontiguousarray(scales.T),
        offsets=offsets,
    )
