"""INT4 weights with zero points, and inputs out of order, as OpenVINO operations.

Codes and zero points are constants of u4, a pattern that the CPU plugin multiplies without
unpacking the weights first.
"""

from __future__ import annotations

import numpy as np
from openvino import opset13 as op

from pipeline.checkpoint.dequantize import offsets
from pipeline.checkpoint.layout import Array, Linear
from pipeline.targets.openvino.ops import (
    Node,
    as_float32,
    floats,
    integer,
    integers,
    stored,
    stored_uint4,
)

# What a code of two's complement is counted from, and the largest number of four bits.
_MIDDLE, _LARGEST = 8, 15


def uint4_weight(packed: Array, linear: Linear, steps: Array, name: str) -> Node:
    """Computes (code - zero point) * step, float32 [N, K].

    Args:
        packed: uint8 [N, K/2], codes of two's complement, column 2j in the low nibble.
        linear: With a ``zero``.
        steps: float32 [N, K/g].
        name: Of the constant.
    """
    rows, columns = linear.out_features, linear.in_features
    groups = steps.shape[1]
    # Flipping the highest bit counts from 0 what was counted from -8.
    codes = stored_uint4(packed ^ 0x88, (rows, groups, columns // groups), name)
    zero_points = (_MIDDLE - offsets(linear).astype(np.int16)).astype(np.uint8)
    zeros = zero_points.reshape(rows, groups, 1)
    if zero_points.max(initial=0) <= _LARGEST and zeros.size % 2 == 0:
        flat = zero_points.reshape(-1)
        constant = stored_uint4(flat[0::2] | (flat[1::2] << 4), zeros.shape, f"{name}.zero")
    else:
        # GPTQ's first layout has 1 to 16, and 16 is no number of four bits.
        constant = stored(zeros, f"{name}.zero")
    centred = op.subtract(as_float32(codes), as_float32(constant))
    weight = op.multiply(centred, floats(steps.reshape(rows, groups, 1)))
    return op.reshape(weight, integers(rows, columns), False)


def in_order(x: Node, order: Array) -> Node:
    """Takes the features of x [batch, length, K] in the order that a weight's columns have."""
    return op.gather(x, op.constant(np.ascontiguousarray(order.astype(np.int32))), integer(-1))
