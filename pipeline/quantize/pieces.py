"""Weights that ModelOpt rounds some rows at a time, while they are in the processor's cache.

AWQ's search rounds every weight once for each exponent, by some twenty operations of torch, each
of which goes through all of it (ModelOpt 0.37, ``nn/modules/tensor_quantizer.py``). Groups lie
within rows, so some rows by themselves are rounded to the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.dependencies import require

# Of a weight, rounded at a time: 8 MB in float32, of which several copies are made. Fewer are no
# faster: each operation is shared by all threads.
PIECE_WEIGHTS = 1 << 21


@contextlib.contextmanager
def in_pieces() -> Iterator[None]:
    """Lets ModelOpt round weights in pieces on the CPU meanwhile."""
    quantizers: Any = require("modelopt.torch.quantization.nn", "quantize").TensorQuantizer
    whole = quantizers.forward

    def forward(quantizer: Any, inputs: torch.Tensor) -> torch.Tensor:
        rows = PIECE_WEIGHTS // inputs.shape[-1] if inputs.dim() == 2 else 0
        if not 0 < rows < len(inputs) or not _rounds_rows(quantizer, inputs):
            found: torch.Tensor = whole(quantizer, inputs)
            return found
        # It keeps the shape of what it sees first, and refuses another one.
        quantizer._setup_for_blockquant(inputs)
        shape = quantizer._original_shape
        found = torch.empty_like(inputs)
        try:
            for start in range(0, len(inputs), rows):
                piece = inputs[start : start + rows]
                quantizer._original_shape = piece.shape
                found[start : start + rows] = whole(quantizer, piece)
        finally:
            quantizer._original_shape = shape
        return found

    quantizers.forward = forward
    try:
        yield
    finally:
        quantizers.forward = whole


def _rounds_rows(quantizer: Any, inputs: torch.Tensor) -> bool:
    """Whether a quantizer does nothing but round groups within rows, by ranges of their own."""
    sizes = quantizer.block_sizes
    return bool(
        inputs.device.type == "cpu"
        and sizes is not None
        and sizes.get("type") != "dynamic"
        and [axis for axis in sizes if isinstance(axis, int)] == [-1]
        and inputs.shape[-1] % sizes[-1] == 0
        and getattr(quantizer, "_original_shape", inputs.shape) == inputs.shape
        # It knows ranges of the whole weight, or collects them.
        and not hasattr(quantizer, "_amax")
        and not quantizer._if_calib
        and quantizer._if_quant
        and quantizer.fake_quant
        and quantizer.is_enabled
        and quantizer.bias_calibrator is None
        and not quantizer._rotate
    )
