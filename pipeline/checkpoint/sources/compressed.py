"""compressed-tensors: INT4 weights as ``pack-quantized``, INT8 ones as ``int-quantized``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.sources.linear import SourceLinear, nibbles, signed
from pipeline.errors import SourceError
from pipeline.formats import W4A16_AWQ
from pipeline.models.quantized import StoredQuantization


def read(stored: StoredQuantization, tensor: Callable[[str], Array | None]) -> SourceLinear:
    """Reads one linear; see :func:`pipeline.checkpoint.sources.gptq.read`.

    Raises:
        SourceError: A symmetric linear has zero points, or ``weight_shape`` contradicts the model.
    """
    return _int4(stored, tensor) if stored.quant_algo == W4A16_AWQ else _int8(tensor)


def _int4(stored: StoredQuantization, tensor: Callable[[str], Array | None]) -> SourceLinear:
    packed, scales = tensor("weight_packed"), tensor("weight_scale")
    assert packed is not None
    assert scales is not None
    codes, shape = signed(nibbles(packed)), tensor("weight_shape")
    if shape is not None and tuple(int(size) for size in shape) != codes.shape:
        raise SourceError(
            f"weight_shape says {[int(size) for size in shape]}, and the codes are "
            f"{list(codes.shape)}",
            fix="Use the directory that compressed-tensors wrote, unchanged",
        )
    offsets = None
    if stored.zero_points:
        words = tensor("weight_zero_point")
        assert words is not None
        # Packed along the rows, and signed as the codes are.
        offsets = -signed(nibbles(np.ascontiguousarray(words.T))).T
    index = tensor("weight_g_idx") if stored.ordered else None
    return SourceLinear(
        codes,
        scales,
        offsets=None if offsets is None else np.ascontiguousarray(offsets),
        groups=None if index is None or (index == -1).all() else index.astype(np.int32),
    )


def _int8(tensor: Callable[[str], Array | None]) -> SourceLinear:
    weight, scales, step = tensor("weight"), tensor("weight_scale"), tensor("input_scale")
    assert weight is not None
    assert scales is not None
    assert step is not None
    for name in ("weight_zero_point", "input_zero_point"):
        values = tensor(name)
        if values is not None and values.any():
            raise SourceError(
                f"{name} is not zero",
                why="config.json says symmetric, and the kernels have no place for it",
                fix="Set model.source to the checkpoint that this one was made from",
            )
    rows = np.broadcast_to(scales.reshape(-1).astype(np.float32), weight.shape[0])
    return SourceLinear(weight, np.ascontiguousarray(rows), step=float(step.reshape(-1)[0]))
