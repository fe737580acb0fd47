"""Small pieces of an OpenVINO graph that the opset does not have as one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from pipeline.checkpoint.layout import Array

Node = Any


def integers(*values: int) -> Node:
    """Makes an int64 constant of shape [len(values)]."""
    return op.constant(np.array(values, dtype=np.int64))


def integer(value: int) -> Node:
    """Makes an int64 scalar."""
    return op.constant(np.array(value, dtype=np.int64))


def floats(values: Array | Sequence[float] | float, rank: int = 0) -> Node:
    """Makes a float32 constant; leading axes of length 1 are added up to ``rank``."""
    array = np.asarray(values).astype(np.float32)
    return op.constant(array.reshape((1,) * (rank - array.ndim) + array.shape))


def stored(array: Array, name: str) -> Node:
    """Makes a named constant in the array's own element type, bfloat16 included."""
    if array.dtype.name == "bfloat16":
        constant = _from_bytes(array, ov.Type.bf16, array.shape)
    else:
        constant = op.constant(np.ascontiguousarray(array))
    constant.set_friendly_name(name)
    return constant


def stored_int4(packed: Array, shape: Sequence[int], name: str) -> Node:
    """Makes a named i4 constant from bytes of two consecutive elements, the low nibble first."""
    constant = _from_bytes(packed, ov.Type.i4, shape)
    constant.set_friendly_name(name)
    return constant


def stored_nf4(packed: Array, shape: Sequence[int], name: str) -> Node:
    """Makes a named nf4 constant from bytes of two consecutive elements, the low nibble first.

    OpenVINO's 16 levels are those of bitsandbytes; the constant stays packed at run time.
    """
    constant = _from_bytes(packed, ov.Type.nf4, shape)
    constant.set_friendly_name(name)
    return constant


def stored_uint4(packed: Array, shape: Sequence[int], name: str) -> Node:
    """Makes a named u4 constant from bytes of two consecutive elements, the low nibble first."""
    constant = _from_bytes(packed, ov.Type.u4, shape)
    constant.set_friendly_name(name)
    return constant


def _from_bytes(array: Array, element_type: ov.Type, shape: Sequence[int]) -> Node:
    tensor = ov.Tensor(element_type, ov.Shape(list(shape)))
    tensor.data.reshape(-1).view(np.uint8)[:] = (
        np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    )
    return op.constant(tensor, shared_memory=True)


def as_float32(node: Node) -> Node:
    """Converts the node to float32, or returns it if it is float32 already."""
    return node if node.get_element_type() == ov.Type.f32 else op.convert(node, ov.Type.f32)


def rms_norm(x: Node, weight: Array, epsilon: float) -> Node:
    """Computes x / sqrt(mean(x^2) + epsilon) * weight on the last axis, fused by the CPU plugin."""
    rank = len(x.get_output_partial_shape(0))
    variance = op.reduce_mean(op.power(x, floats(2.0)), integers(-1), True)
    inverse = op.divide(floats(1.0), op.sqrt(op.add(variance, floats(epsilon, rank))))
    return op.multiply(op.multiply(x, inverse), floats(weight, rank))


def dimension(node: Node, axis: int) -> Node:
    """Reads the size of one axis at run time, as int64 [1]."""
    return op.gather(op.shape_of(node), integers(axis), integer(0))


def concat_shape(*parts: Node | int) -> Node:
    """Builds a shape from constants and run-time dimensions of shape [1]."""
    return op.concat([integers(p) if isinstance(p, int) else p for p in parts], 0)
