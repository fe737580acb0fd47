"""A linear of a checkpoint in torch: dequantized weight, activations rounded as the format says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.checkpoint import dequantize
from pipeline.checkpoint.dequantize import rows_of
from pipeline.checkpoint.layout import Array, Linear
from pipeline.checkpoint.loading import as_loaded
from pipeline.formats import ALGOS
from pipeline.layers.blocks import unread
from pipeline.reference.turning import turn_back

# The largest finite float8_e4m3fn; TensorRT saturates to it.
FLOAT8_MAX = 448.0


def float32_tensor(array: Array) -> torch.Tensor:
    """Copies an array of any floating or integer dtype to float32."""
    return torch.from_numpy(np.array(array, dtype=np.float32))


def round_to_int8(x: torch.Tensor, step: float) -> torch.Tensor:
    """Rounds x to the grid of a static INT8 quantizer, -128 * step to 127 * step.

    The order of operations is that of ModelOpt 0.37's ``_tensor_quant``, which decides ties. So
    does dividing tensor by tensor: torch divides a number by one through the reciprocal.

    Args:
        x: float32, any shape.
        step: amax / 127.
    """
    largest = torch.tensor(127.0, device=x.device)
    scale = largest / (torch.tensor(step, device=x.device) * largest)
    return torch.clamp(torch.round(x * scale), -128.0, 127.0) / scale


def round_to_float8(x: torch.Tensor, step: float) -> torch.Tensor:
    """Rounds x to the grid of a static float8_e4m3fn quantizer whose ``step`` is amax / 448."""
    largest = torch.tensor(FLOAT8_MAX, device=x.device)
    scale = largest / (torch.tensor(step, device=x.device) * largest)
    return _float8(x * scale) / scale


def _float8(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(x, -FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).to(torch.float32)


class CheckpointLinear(torch.nn.Module):
    """y = quantize(x * prequant) @ W.T + bias in float32.

    With a pre-quant scale and FP8 activations, as W4A8 has them, TensorRT-LLM has one factor for
    both: x is multiplied by their quotient, which is rounded to the model's dtype when it is
    loaded, and what comes out is the FP8 code.

    Args:
        linear: Where the quantizer of x comes from.
        weight: float32 [N, K], dequantized; or one that is :func:`unread`.
        bias: float32 [N].
    """

    def __init__(self, linear: Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        prequant = linear.prequant_scaling_factor
        self.algo = linear.algo
        self.step = linear.activation_scaling_factor
        if not isinstance(weight, torch.nn.Parameter):
            weight = torch.nn.Parameter(weight, requires_grad=False)
        self.weight = weight
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        # The step of the FP8 codes that x times the quotient is rounded to.
        self._code: float | None = None
        if prequant is not None and ALGOS[self.algo].divides_prequant:
            self._code = self.step
            prequant = as_loaded(prequant, prequant.dtype.name, divisor=self.step)
        self.prequant: torch.Tensor | None
        self.register_buffer("prequant", None if prequant is None else float32_tensor(prequant))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps float32 [..., K] to [..., N]."""
        if self.prequant is not None:
            x = x * self.prequant
        if self._code is not None:
            x = _float8(x) * self._code
        elif self.step is not None:
            integer = ALGOS[self.algo].activations == "int8"
            x = (round_to_int8 if integer else round_to_float8)(x, self.step)
        return functional.linear(x, self.weight, self.bias)


def split_linear(
    linear: Linear, sizes: Sequence[int], out: npt.NDArray[np.float32] | None = None
) -> list[CheckpointLinear]:
    """Splits a fused linear into those that it was made of, by their numbers of rows.

    They share the quantizer of x, as the fused one does.

    Args:
        linear: The fused one, of N rows.
        sizes: Rows of each part, in order; N together.
        out: Where their weights go, see :func:`pipeline.checkpoint.dequantize.dequantize`.
    """
    weights = torch.split(torch.from_numpy(dequantize(linear, out)), list(sizes))
    return _of_one(linear, sizes, weights)


def unread_linears(linear: Linear, sizes: Sequence[int]) -> list[CheckpointLinear]:
    """Splits a fused linear as :func:`split_linear`, into those that are read when they are needed.

    Args:
        linear: The fused one, of N rows.
        sizes: Rows of each part, in order; N together.
    """

    def fill(first: int, rows: slice, out: torch.Tensor) -> None:
        turn_back(rows_of(linear, slice(first + rows.start, first + rows.stop)), out)

    weights = [
        unread((size, linear.in_features), partial(fill, end - size))
        for end, size in zip(accumulate(sizes), sizes, strict=True)
    ]
    return _of_one(linear, sizes, weights)


def _of_one(
    linear: Linear, sizes: Sequence[int], weights: Sequence[torch.Tensor]
) -> list[CheckpointLinear]:
    biases: Sequence[torch.Tensor | None] = [None] * len(sizes)
    if linear.bias is not None:
        biases = torch.split(float32_tensor(linear.bias), list(sizes))
    return [CheckpointLinear(linear, w, b) for w, b in zip(weights, biases, strict=True)]


def whole_linear(linear: Linear) -> CheckpointLinear:
    """Makes one torch linear of a checkpoint's, without splitting it."""
    return split_linear(linear, [linear.out_features])[0]
