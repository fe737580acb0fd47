"""Weights of a checkpoint in float32, turned back by torch and not by NumPy.

Behind a product torch's threads watch for the next one for a while and leave no processor to
others. So where products and weights take turns, torch turns back what it has operations for.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.checkpoint import dequantize
from pipeline.checkpoint.layout import Array, Linear
from pipeline.checkpoint.loading import as_loaded
from pipeline.formats import INT8_WO, NO_QUANT, W4A16_AWQ, W8A8_SQ_PER_CHANNEL


def turn_back(linear: Linear, out: torch.Tensor) -> None:
    """Computes what :func:`pipeline.checkpoint.dequantize.dequantize` does, to the same bits.

    Args:
        linear: The linear, of N rows.
        out: Where its weight goes, float32 [N, K].
    """
    scale = linear.weights_scaling_factor
    if linear.algo == NO_QUANT:
        out.copy_(_tensor(linear.weight))
    elif linear.algo in (W8A8_SQ_PER_CHANNEL, INT8_WO) and scale is not None:
        out.copy_(_tensor(linear.weight)).mul_(_tensor(scale).float().reshape(-1, 1))
    elif linear.algo == W4A16_AWQ and linear.zero is None and linear.input_order is None:
        assert scale is not None
        assert linear.prequant_scaling_factor is not None
        dtype = linear.prequant_scaling_factor.dtype.name
        # A code in the upper half of a byte, with nothing below it, is 16 times itself; and
        # dividing a float by 16 rounds nothing.
        steps = torch.from_numpy(as_loaded(scale, dtype)) / 16
        packed, pairs = _tensor(linear.weight), out.view(-1, 2, out.shape[1])
        pairs[:, 0] = packed << 4
        pairs[:, 1] = packed & -16
        out.view(*steps.shape, -1).mul_(steps.unsqueeze(-1))
    else:
        dequantize(linear, out.numpy())


def _tensor(array: Array) -> torch.Tensor:
    """Copies an array bit by bit, bfloat16 included."""
    copied = torch.from_numpy(np.array(array).reshape(-1).view(np.uint8))
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    return copied.view(dtype).reshape(array.shape)
