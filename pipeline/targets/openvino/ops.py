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
