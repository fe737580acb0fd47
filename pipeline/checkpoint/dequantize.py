"""Turns quantized weights back into float32, with the arithmetic of TensorRT-LLM's kernels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.layout import PACKED_ALGOS, Array, Linear
from pipeline.checkpoint.loading import DIVIDED_SCALES, as_loaded
from pipeline.checkpoint.nf4 import values_of
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.errors import UnsupportedError
from pipeline.formats import (
    FP8,
    INT8_WO,
    NF4,
    NO_QUANT,
    W4A8_AWQ,
    W4A16_AWQ,
    W8A8_SQ_PER_CHANNEL,
)

# Of a linear, dequantized by one thread at a time: so many that what Python does for each block is
# nothing beside it.
BLOCK_WEIGHTS = 1 << 20
# Of a block of INT4, so that a processor's own memory holds their float32.
CACHED_WEIGHTS = 1 << 17


def dequantize(
    linear: Linear, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Computes the weight W of y = (x * prequant_scaling_factor) @ W.T + bias.

    Some rows at a time, so that nothing in between is as large as the weight.

    Args:
        linear: The linear.
        out: Where the weight goes, float32 [N, K]; memory that was written to before is filled in
            half the time of new one. None makes a new array.

    Returns:
        float32 [N, K].

    Raises:
        UnsupportedError: The linear's ``algo`` is not known.
    """
    shape = linear.out_features, linear.in_features
    weight = np.empty(shape, np.float32) if out is None else out
    # Even, since two rows share the bytes of some formats.
    count = max(2, BLOCK_WEIGHTS // linear.in_features // 2 * 2)
    blocks = [
        slice(start, min(start + count, len(weight))) for start in range(0, len(weight), count)
    ]

    def compute(rows: slice) -> None:
        _dequantize(rows_of(linear, rows), weight[rows])

    threads = min(len(os.sched_getaffinity(0)), len(blocks))
    if threads > 1:
        # NumPy lets others run while it computes.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compute, blocks))
    else:
        for rows in blocks:
            compute(rows)
    return weight


def rows_of(linear: Linear, rows: slice) -> Linear:
    """Takes some outputs of a linear.

    Args:
        linear: The linear, of N rows.
        rows: From an even row to another one, or to the last.
    """
    shared = 2 if linear.algo in PACKED_ALGOS else 1
    scale, zero = linear.weights_scaling_factor, linear.zero
    return replace(
        linear,
        weight=linear.weight[rows.start // shared : rows.stop // shared],
        weights_scaling_factor=scale if scale is None or scale.size == 1 else scale[rows],
        zero=None if zero is None else zero[:, rows],
    )


def _dequantize(linear: Linear, out: npt.NDArray[np.float32]) -> None:
    scale = linear.weights_scaling_factor
    if linear.algo == NO_QUANT:
        out[...] = linear.weight
        return
    assert scale is not None
    if linear.algo == FP8:
        np.multiply(linear.weight.astype(np.float32), np.float32(scale.reshape(-1)[0]), out=out)
    elif linear.algo in (W8A8_SQ_PER_CHANNEL, INT8_WO):
        np.multiply(linear.weight, scale.astype(np.float32)[:, None], out=out)
    elif linear.algo == NF4:
        _by_group(values_of(linear.weight), scale.astype(np.float32), out)
    elif linear.algo == W4A16_AWQ:
        _dequantize_int4(linear, as_loaded(scale, _dtype(linear)), out)
    elif linear.algo == W4A8_AWQ:
        # The INT4 weight is rounded once more, to the float8 that the product is made in.
        scale_2 = np.float32(linear.weights_scaling_factor_2 or 0.0)
        loaded = as_loaded(scale, _dtype(linear), divisor=float(scale_2), last=DIVIDED_SCALES)
        _int4_by_group(linear.weight, loaded, out)
        np.multiply(out.astype(numpy_dtype("float8_e4m3fn")).astype(np.float32), scale_2, out=out)
    else:
        raise UnsupportedError(f"quant_algo {linear.algo} cannot be dequantized", where=linear.name)


def _dequantize_int4(
    linear: Linear, scale: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    if linear.zero is not None:
        added = np.repeat(offsets(linear), linear.in_features // scale.shape[1], axis=1)
        _by_group(unpack_int4(linear.weight) + added, scale, out)
    else:
        _int4_by_group(linear.weight, scale, out)
    if linear.input_order is not None:
        out[:, linear.input_order] = out.copy()


def offsets(linear: Linear) -> npt.NDArray[np.int8]:
    """Finds what is added to the codes of each group: 8 minus the zero point, -8 to 8.

    ``zero`` is that integer times the scale, rounded to the model's dtype. It is whole again, since
    rounding moves it by a fiftieth of a scale at most: so weights keep the bits of their source.

    Returns:
        int8 [N, K/g].
    """
    assert linear.zero is not None
    assert linear.weights_scaling_factor is not None
    scale = as_loaded(linear.weights_scaling_factor, _dtype(linear))
    whole: npt.NDArray[np.int8] = np.rint(linear.zero.astype(np.float32).T / scale).astype(np.int8)
    return whole


def unpack_int4(packed: Array) -> npt.NDArray[np.int8]:
    """Unpacks INT4 codes.

    Args:
        packed: int8 [N/2, K]; each byte holds row 2i in its low and row 2i + 1 in its high nibble.

    Returns:
        int8 [N, K], two's complement from -8 to 7, without offset or zero point.
    """
    half, columns = packed.shape
    codes = np.empty((half, 2, columns), np.int8)
    # Shifting left first lets the arithmetic right shift extend the sign of the low nibble.
    np.right_shift(np.left_shift(packed, 4), 4, out=codes[:, 0])
    np.right_shift(packed, 4, out=codes[:, 1])
    return codes.reshape(2 * half, columns)


def _dtype(linear: Linear) -> str:
    # Pre-quant scales are stored in the model's dtype.
    assert linear.prequant_scaling_factor is not None
    return linear.prequant_scaling_factor.dtype.name


def _int4_by_group(
    packed: Array, scale: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """Multiplies what :func:`unpack_int4` gives by the scales of groups of columns.

    Some rows at a time, so that they are in a processor's own memory until they are done.
    """
    half, columns = packed.shape
    # A code in the upper half of a byte, with nothing below it, is 16 times itself; and dividing a
    # float by 16 rounds nothing.
    sixteenths = scale * np.float32(1 / 16)
    count = max(1, CACHED_WEIGHTS // columns // 2)
    for start in range(0, half, count):
        bytes_ = packed[start : start + count]
        rows = slice(2 * start, 2 * (start + len(bytes_)))
        pairs = out[rows].reshape(-1, 2, columns)
        pairs[:, 0] = np.left_shift(bytes_, 4)
        pairs[:, 1] = np.bitwise_and(bytes_, -16)
        _by_group(out[rows], sixteenths[rows], out[rows])


def _by_group(values: Array, scale: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """Multiplies [N, K] by the scales of groups of columns, [N, K/g]."""
    rows, groups = scale.shape
    grouped = rows, groups, -1
    np.multiply(values.reshape(grouped), scale[:, :, None], out=out.reshape(grouped))
