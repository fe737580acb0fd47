"""The matrices of a graph, whose values are in memory or left out until the engine is written."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

from pipeline.checkpoint.layout import Array

Node = Any
Values = Callable[[], Sequence[Array]]
"""Reads a matrix: arrays whose bytes follow each other."""
Bytes = npt.NDArray[np.uint8]


class Constants:
    """Makes constants that have their values in memory."""

    def matrix(self, kind: ov.Type, shape: Sequence[int], values: Values, name: str = "") -> Node:
        """Makes a constant.

        Args:
            kind: Its element type.
            shape: Its shape.
            values: Reads its bytes, elements of less than a byte packed, the first one lowest.
            name: Its friendly name; the graph gives one where it is empty.
        """
        tensor = ov.Tensor(kind, ov.Shape(list(shape)))
        rest = tensor.data.reshape(-1).view(np.uint8)
        for part in map(bytes_of, values()):
            rest[: part.size] = part
            rest = rest[part.size :]
        return _constant(tensor, name)

    def stored(self, array: Array, values: Values, name: str = "") -> Node:
        """Makes a constant in the element type and shape of ``array``, bfloat16 included."""
        return self.matrix(element_type(array), array.shape, values, name)


class LeftOut(Constants):
    """Makes constants of zeros, which take no memory, and remembers how their values are read.

    It has to live as long as their graph does.
    """

    def __init__(self) -> None:
        self._zeros: dict[int, Bytes] = {}
        self._made: list[tuple[Node, Values]] = []

    def __len__(self) -> int:
        """Counts the constants that were made."""
        return len(self._made)

    def matrix(self, kind: ov.Type, shape: Sequence[int], values: Values, name: str = "") -> Node:
        """Makes a constant of zeros; see :meth:`Constants.matrix`."""
        size = -(-math.prod(shape) * kind.bitwidth // 8)
        if size not in self._zeros:
            # The kernel gives all pages that nobody writes to the same zeros.
            self._zeros[size] = np.frombuffer(
                mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE), np.uint8
            )
        zeros = self._zeros[size]
        node = _constant(ov.Tensor(zeros, ov.Shape(list(shape)), kind), name)
        self._made.append((node, values))
        return node

    def values(self) -> Mapping[str, Values]:
        """Returns what reads the values, by the friendly names of the constants."""
        return {node.get_friendly_name(): values for node, values in self._made}


def element_type(array: Array) -> ov.Type:
    """Returns OpenVINO's element type of an array, bfloat16 included."""
    return ov.Type.bf16 if array.dtype.name == "bfloat16" else ov.Type(array.dtype)


def bytes_of(array: Array) -> Bytes:
    """Returns the bytes of an array, which are copied if they do not lie in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _constant(tensor: ov.Tensor, name: str) -> Node:
    constant = op.constant(tensor, shared_memory=True)
    if name:
        constant.set_friendly_name(name)
    return constant
