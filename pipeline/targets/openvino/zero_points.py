"""INT4 weights with zero points, and inputs out of order, as OpenVINO operations.

Codes and zero points are constants of u4, a pattern that the CPU plugin multiplies without
unpacking the weights first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
from openvino import opset13 as op

from pipeline.checkpoint.dequantize import offsets
from pipeline.checkpoint.layout import Array, Linear
from pipeline.targets.openvino.constants import Constants
from pipeline.targets.openvino.four_bits import group_steps, nibbles_along_rows
from pipeline.targets.openvino.ops import Node, as_float32, integer, integers

# What a code of two's complement is counted from, and the largest number of four bits.
_MIDDLE, _LARGEST = 8, 15


def uint4_weight(
    linear: Linear, read: Callable[[], Linear], constants: Constants, name: str
) -> Node:
    """Computes (code - zero point) * step, float32 [N, K].

    Args:
        linear: With a ``zero``.
        read: Reads it again when its values are written.
        constants: Makes the matrices.
        name: Of the codes.
    """
    rows, columns = linear.out_features, linear.in_features
    zeros = _zero_points(linear)
    groups = zeros.shape[1]
    # Flipping the highest bit counts from 0 what was counted from -8.
    codes = constants.matrix(
        ov.Type.u4,
        (rows, groups, columns // groups),
        lambda: [nibbles_along_rows(read().weight) ^ 0x88],
        name,
    )
    # GPTQ's first layout has 1 to 16, and 16 is no number of four bits.
    packed = zeros.max(initial=0) <= _LARGEST and zeros.size % 2 == 0
    constant = constants.matrix(
        ov.Type.u4 if packed else ov.Type.u8,
        (rows, groups, 1),
        lambda: [_in_pairs(_zero_points(read())) if packed else _zero_points(read())],
        f"{name}.zero",
    )
    steps = constants.matrix(ov.Type.f32, (rows, groups, 1), lambda: [group_steps(read())])
    weight = op.multiply(op.subtract(as_float32(codes), as_float32(constant)), steps)
    return op.reshape(weight, integers(rows, columns), False)


def _zero_points(linear: Linear) -> Array:
    """uint8 [N, K/g]."""
    return (_MIDDLE - offsets(linear).astype(np.int16)).astype(np.uint8)


def _in_pairs(values: Array) -> Array:
    flat = values.reshape(-1)
    pairs: Array = flat[0::2] | (flat[1::2] << 4)
    return pairs


def in_order(x: Node, order: Array) -> Node:
    """Takes the features of x [batch, length, K] in the order that a weight's columns have."""
    return op.gather(x, op.constant(np.ascontiguousarray(order.astype(np.int32))), integer(-1))
