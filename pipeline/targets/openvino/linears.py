"""Linears of a TensorRT-LLM checkpoint as OpenVINO operations, weights kept as they are stored.

The patterns are the ones the CPU plugin recognizes, so that no float copy of a quantized weight
exists at run time: INT4 and NF4 are unpacked inside the matrix multiplication, INT8 is multiplied
as INT8 where its input is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as op

from pipeline.checkpoint.layout import Layer, Linear
from pipeline.errors import CompileError
from pipeline.formats import INT8_WO, NF4, NO_QUANT, W4A16_AWQ, W8A8_SQ_PER_CHANNEL
from pipeline.targets.openvino.constants import Constants, element_type
from pipeline.targets.openvino.four_bits import group_steps, nibbles_along_rows
from pipeline.targets.openvino.ops import Node, as_float32, floats, integers
from pipeline.targets.openvino.refusals import EXECUTED_FORMATS
from pipeline.targets.openvino.zero_points import in_order, uint4_weight

Read = Callable[[], Linear]
"""Reads a linear. It is called again when its weight is written, and nothing is kept meanwhile."""


@dataclass(frozen=True)
class LayerAt:
    """A layer that is read whenever it is looked at.

    Attributes:
        layers: All of them.
        number: Which one it is.
    """

    layers: Sequence[Layer]
    number: int

    def __call__(self) -> Layer:
        """Reads it."""
        return self.layers[self.number]

    def linear(self, name: str) -> Read:
        """Returns what reads one of its linears, such as ``qkv``."""
        return lambda: self().linear(name)


class Linears:
    """Adds linears to a graph; linears that read the same quantized input share its quantizer.

    Args:
        constants: Makes the weights; None has their values in memory.
    """

    def __init__(self, constants: Constants | None = None) -> None:
        self._constants = Constants() if constants is None else constants
        self._inputs: dict[tuple[str, bytes, float | None, bytes], Node] = {}

    def __call__(self, x: Node, *reads: Read) -> Node:
        """y = x @ W.T + bias.

        Args:
            x: float32 [batch, length, K].
            reads: A linear in floating point, ``W4A16_AWQ``, ``NF4``, ``W8A8_SQ_PER_CHANNEL`` or
                ``INT8_WO``; or several that are :func:`joinable`, computed as one.

        Returns:
            float32 [batch, length, N], of several one behind the other; its matrix multiplication
            carries the first one's name.

        Raises:
            CompileError: The CPU has no exact execution for the linear's ``quant_algo``.
        """
        linears = [read() for read in reads]
        first, biases = linears[0], [one.bias for one in linears if one.bias is not None]
        weight = self._weight(first, *reads) if len(reads) == 1 else self._joined(linears, reads)
        y = op.matmul(self._input(x, first), weight, False, True)
        y.set_friendly_name(first.name)
        return op.add(y, floats(np.concatenate(biases), 3)) if biases else y

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

    def _weight(self, linear: Linear, read: Read) -> Node:
        name = f"{linear.name}.weight"
        if linear.algo == NO_QUANT:
            return self._stored(linear, read, name)
        if linear.algo in (W8A8_SQ_PER_CHANNEL, INT8_WO):
            assert linear.weights_scaling_factor is not None
            steps = floats(linear.weights_scaling_factor.reshape(-1, 1))
            return op.multiply(self._stored(linear, read, name), steps)
        if linear.algo == W4A16_AWQ and linear.zero is not None:
            return uint4_weight(linear, read, self._constants, name)
        if linear.algo == W4A16_AWQ:
            return self._in_groups(linear, read, ov.Type.i4, name)
        if linear.algo == NF4:
            # OpenVINO's 16 levels are those of bitsandbytes.
            return self._in_groups(linear, read, ov.Type.nf4, name)
        raise CompileError(
            f"the CPU target does not execute {linear.algo}",
            where=linear.name,
            fix=f"Quantize to {EXECUTED_FORMATS}",
        )

    def _stored(self, linear: Linear, read: Read, name: str) -> Node:
        return as_float32(self._constants.stored(linear.weight, lambda: [read().weight], name))

    def _joined(self, linears: Sequence[Linear], reads: Sequence[Read]) -> Node:
        """The weights of linears in floating point, rows behind rows."""
        first = linears[0]
        shape = (sum(one.out_features for one in linears), first.in_features)
        stored = self._constants.matrix(
            element_type(first.weight),
            shape,
            lambda: [read().weight for read in reads],
            f"{first.name}.weight",
        )
        return as_float32(stored)

    def _in_groups(self, linear: Linear, read: Read, kind: ov.Type, name: str) -> Node:
        """Four-bit weights times the step of their group, float32 [N, K]."""
        rows, columns = linear.out_features, linear.in_features
        assert linear.weights_scaling_factor is not None
        groups = linear.weights_scaling_factor.shape[1]
        nibbles = self._constants.matrix(
            kind,
            (rows, groups, columns // groups),
            lambda: [nibbles_along_rows(read().weight)],
            name,
        )
        steps = self._constants.matrix(
            ov.Type.f32, (rows, groups, 1), lambda: [group_steps(read())]
        )
        return op.reshape(op.multiply(as_float32(nibbles), steps), integers(rows, columns), False)


def joinable(first: Linear, second: Linear) -> bool:
    """Says whether two linears of one input can be computed as one that gives both outputs.

    One product over the input costs less than two where weights are in floating point. Quantized
    linears scale their input each by their own factors, and are left as they are.
    """
    pair = (first, second)
    if any(one.algo != NO_QUANT or one.prequant_scaling_factor is not None for one in pair):
        return False
    return (first.bias is None) == (second.bias is None)


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
