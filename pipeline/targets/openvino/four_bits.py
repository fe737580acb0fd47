"""Four-bit weights of a checkpoint in the order and with the steps that OpenVINO multiplies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.layout import Array, Linear

# Of packed bytes that are unpacked at a time.
_ROWS = 256


def group_steps(linear: Linear) -> npt.NDArray[np.float32]:
    """Returns the steps of the groups of a four-bit weight as they are multiplied, [N, K/g]."""
    steps, prequant = linear.weights_scaling_factor, linear.prequant_scaling_factor
    assert steps is not None
    if prequant is not None:
        # TensorRT-LLM casts group scales to the model's dtype, which the pre-quant scale has.
        steps = steps.astype(prequant.dtype)
    return steps.astype(np.float32)


def nibbles_along_rows(packed: Array) -> Array:
    """Repacks 4-bit pairs of neighbouring rows into pairs of neighbouring columns.

    Args:
        packed: 8-bit [N/2, K]; row 2i in the low nibble of byte row i, row 2i+1 in the high one.

    Returns:
        uint8 [N, K/2]; column 2j in the low nibble.
    """
    half, columns = packed.shape
    repacked = np.empty((half, 2, columns // 2), np.uint8)
    for start in range(0, half, _ROWS):
        pairs = packed[start : start + _ROWS].view(np.uint8)
        left, right = pairs[:, 0::2], pairs[:, 1::2]
        rows = repacked[start : start + _ROWS]
        rows[:, 0] = (left & 0xF) | (right << 4)
        rows[:, 1] = (left >> 4) | (right & 0xF0)
    return repacked.reshape(2 * half, columns // 2)
