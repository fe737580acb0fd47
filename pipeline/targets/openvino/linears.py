"""Linears of a TensorRT-LLM checkpoint as OpenVINO operations, weights kept as they are stored.

The patterns are the ones the CPU plugin recognizes, so that no float copy of a quantized weight
exists at run time: INT4 and NF4 are unpacked inside the matrix multiplication, INT8 is multiplied
as INT8 where its input is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from openvino import opset13 as op

from pipeline.checkpoint.layout import Array, Linear
from pipeline.errors import CompileError
from pipeline.formats import INT8_WO, NF4, NO_QUANT, W4A16_AWQ, W8A8_SQ_PER_CHANNEL
from pipeline.targets.openvino.ops import (
    Node,
    as_float32,
    floats,
    integers,
    stored,
    stored_int4,
    stored_nf4,
)
from pipeline.targets.openvino.refusals import EXECUTED_FORMATS
from pipeline.targets.openvino.zero_points import in_order, uint4_weight


class Linears:
    """Adds linears to a graph; linears that read the same quantized input share its quantizer."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[str, bytes, float | None, bytes], Node] = {}

    def __call__(self, x: Node, linear: Linear) -> Node:
        """y = x @ W.T + bias.

        Args:
            x: float32 [batch, length, K].
            linear: Floating point, ``W4A16_AWQ``, ``NF4``, ``W8A8_SQ_PER_CHANNEL`` or ``INT8_WO``.

        Returns:
            float32 [batch, length, N]; its matrix multiplication carries the linear's name.

        Raises:
            CompileError: The CPU has no exact execution for the linear's ``quant_algo``.
        """
        y = op.matmul(self._input(x, linear), _weight(linear), False, True)
        y.set_friendly_name(linear.name)
        return y if linear.bias is None else op.add(y, floats(linear.bias, 3))

    def _input(self, x: Node, linear: Linear) -> Node:
        scale = linear.prequant_scaling_factor
        step = linear.activation_scaling_factor
        order = linear.input_order
        if scale is None and step is None and order is None:
            return x
        parts = [b"" if part is None else part.tobytes() for part in (scale, order)]
        key = (x.get_friendly_name(), parts[0], step, parts[1])
        if key not in self._inputs:
            y = x if scale is None else op.multiply(x, floats(scale, 3))
            y = y if order is None else in_order(y, order)
            self._inputs[key] = y if step is None else _quantized(y, step)
        return self._inputs[key]


def fused(first: Linear, second: Linear) -> Linear | None:
    """Joins two linears of one input into one that gives both outputs, ``first``'s in front.

    One product over the input costs less than two where weights are in floating point. Quantized
    linears scale their input each by their own factors, and are left as they are.

    Returns:
        The linear, with the name of ``first``; None where there cannot be one.
    """
    pair = (first, second)
    if any(one.algo != NO_QUANT or one.prequant_scaling_factor is not None for one in pair):
        return None
    if (first.bias is None) != (second.bias is None):
        return None
    biases = [one.bias for one in pair if one.bias is not None]
    return replace(
        first,
        weight=np.concatenate([one.weight for one in pair]),
        bias=np.concatenate(biases) if biases else None,
    )


def _quantized(x: Node, step: float) -> Node:
    """clamp(round(x / step), -128, 127) * step, to the last bit as ModelOpt calibrated it.

    FakeQuantize alone computes round(x / step + 128): the sum drops bits of x, so that one
    activation in 10^5, next to a half, takes the other code. It gets whole codes instead.
    """
    largest = np.float32(127.0)
    scale = float(largest / (np.float32(step) * largest))
    # The range leaves every code as it is. Without it the compiler would merge this multiplication
    # with the pre-quant one, and round differently.
    x = op.clamp(x, -129.0 * step, 128.0 * step)
    codes = op.round(op.multiply(x, floats(scale, 3)), "half_to_even")
    low, high = floats([-128.0]), floats([127.0])
    return op.fake_quantize(codes, low, high, floats([-128.0 * step]), floats([127.0 * step]), 256)


def _weight(linear: Linear) -> Node:
    name = f"{linear.name}.weight"
    if linear.algo == NO_QUANT:
        return as_float32(stored(linear.weight, name))
    if linear.algo in (W8A8_SQ_PER_CHANNEL, INT8_WO):
        assert linear.weights_scaling_factor is not None
        steps = floats(linear.weights_scaling_factor.reshape(-1, 1))
        return op.multiply(as_float32(stored(linear.weight, name)), steps)
    if linear.algo == W4A16_AWQ:
        return _int4_weight(linear, name)
    if linear.algo == NF4:
        assert linear.weights_scaling_factor is not None
        return _in_groups(linear, linear.weights_scaling_factor, stored_nf4, name)
    raise CompileError(
        f"the CPU target does not execute {linear.algo}",
        where=linear.name,
        fix=f"Quantize to {EXECUTED_FORMATS}",
    )


def _int4_weight(linear: Linear, name: str) -> Node:
    steps, prequant = linear.weights_scaling_factor, linear.prequant_scaling_factor
    assert steps is not None
    assert prequant is not None
    # TensorRT-LLM casts group scales to the model's dtype, which the pre-quant scale is stored in.
    steps = steps.astype(prequant.dtype).astype(np.float32)
    if linear.zero is not None:
        return uint4_weight(nibbles_along_rows(linear.weight), linear, steps, name)
    return _in_groups(linear, steps, stored_int4, name)


def _in_groups(
    linear: Linear, steps: Array, store: Callable[[Array, Sequence[int], str], Node], name: str
) -> Node:
    """Four-bit weights times the step of their group; ``steps`` is float32 [N, K/g]."""
    rows, columns = linear.out_features, linear.in_features
    groups = steps.shape[1]
    shape = (rows, groups, columns // groups)
    nibbles = store(nibbles_along_rows(linear.weight), shape, name)
    weight = op.multiply(as_float32(nibbles), floats(steps.reshape(rows, groups, 1)))
    return op.reshape(weight, integers(rows, columns), False)


def nibbles_along_rows(packed: Array) -> Array:
    """Repacks 4-bit pairs of neighbouring rows into pairs of neighbouring columns.

    Args:
        packed: 8-bit [N/2, K]; row 2i in the low nibble of byte row i, row 2i+1 in the high one.

    Returns:
        uint8 [N, K/2]; column 2j in the low nibble.
    """
    pairs = packed.view(np.uint8)
    rows = np.stack([pairs & 0xF, pairs >> 4], axis=1).reshape(-1, packed.shape[1])
    repacked: Array = rows[:, 0::2] | (rows[:, 1::2] << 4)
    return repacked
