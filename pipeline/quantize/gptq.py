"""Rounds one weight to INT4 by GPTQ: each column makes up for the errors of the columns before it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2022), Algorithm 1: with H = X^T X of the inputs and U the upper Cholesky factor of H's inverse,
column j is rounded and its error, divided by U[j, j], is spread over the columns that are still to
come along U[j, :]. The output error is then the sum of those squares.

What is settled here and not there: scales are rounded to the dtype that TensorRT-LLM loads them in
before a code is chosen, so that the file holds what was rounded to; and a feature that no
calibration text moved is rounded to nearest instead of being set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.errors import StageError

LOWEST, HIGHEST = -8, 7
# Columns whose errors are spread within their block first, and over the rest of the matrix at once.
# Groups of 64 and 128 lie within one.
BLOCK = 128
# The paper's share of the mean diagonal that is added to it, and what is tried where rounding
# leaves the sum indefinite.
DAMPINGS = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Spread:
    """How errors are handed on among the features of one input.

    Attributes:
        factor: float64 [K, K], upper triangular, in the order below.
        order: int64 [K], the features in the order in which they are rounded.
        ordered: Whether that is the order in which they stand.
    """

    factor: torch.Tensor
    order: torch.Tensor
    ordered: bool


@dataclass(frozen=True)
class Rounded:
    """A weight in the format.

    Attributes:
        codes: int8 [N, K], from -8 to 7.
        scales: float32 [N, K / group], each exact in the dtype that was asked for.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def values(self) -> torch.Tensor:
        """Returns the float32 [N, K] that it stands for; every product is exact."""
        group = self.codes.shape[1] // self.scales.shape[1]
        return self.codes.float() * self.scales.repeat_interleave(group, dim=1)


def spread(hessian: torch.Tensor, *, act_order: bool = False) -> Spread:
    """Factorizes the inverse of a Hessian.

    Args:
        hessian: float64 [K, K], the sum of x x^T over the inputs; its scale does not matter. It is
            overwritten.
        act_order: Rounds the features of the largest activations first.

    Raises:
        StageError: It has values that are not finite, or no factor at any damping.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise StageError(
            "the inputs of a linear are not finite",
            why="Calibration text gives activations that are NaN or infinite there",
            fix="Set model.dtype to bfloat16, or look at what evaluate says of the source: its "
            "weights may be broken",
        )
    mean = float(diagonal.mean())
    # Nothing is known of a feature that was always zero: alone in its row, it is just rounded.
    diagonal[diagonal == 0] = mean if mean > 0 else 1.0
    order = torch.arange(len(diagonal), device=hessian.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        hessian = hessian[order][:, order]
        diagonal = hessian.diagonal()
    added = 0.0
    for damping in DAMPINGS:
        diagonal += damping * mean - added
        added = damping * mean
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed.item():
            inverse = torch.cholesky_inverse(lower)
            del lower
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed.item():
                return Spread(factor, order, ordered=not act_order)
    raise StageError(
        "the inputs of a linear have no positive definite second moment",
        why=f"It was damped by up to {DAMPINGS[-1]:g} times its mean diagonal",
        fix="Give more or more varied text in quantize.calibration.text",
    )


def round_weight(weight: torch.Tensor, by: Spread, group: int, dtype: torch.dtype) -> Rounded:
    """Rounds a weight so that its outputs on the calibration text change least.

    In order, the scale of a group is chosen when its first column is reached, of weights that have
    taken in the errors so far. Out of order all scales are chosen first, of the weights as they
    are: groups stay neighbours, and no index of them has to be stored.

    Args:
        weight: [N, K].
        by: Of the Hessian of its inputs.
        group: Neighbouring features that share a scale; it divides K and :data:`BLOCK`.
        dtype: What scales are rounded to.

    Raises:
        StageError: The weight has values that are not finite.
    """
    rows, columns = weight.shape
    if not torch.isfinite(weight).all():
        raise StageError("a weight is not finite", why="It holds NaN or infinite values")
    left = weight.to(by.factor.device, torch.float64)[:, by.order]
    scales = group_scales(weight.reshape(rows, columns // group, group), dtype).to(left)
    codes = torch.empty(rows, columns, dtype=torch.int8, device=left.device)
    groups = (by.order // group).tolist()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty(rows, stop - start, dtype=torch.float64, device=left.device)
        for column in range(start, stop):
            if by.ordered and column % group == 0:
                own = left[:, column : column + group]
                scales[:, column // group] = group_scales(own.float(), dtype).to(left)
            step, value = scales[:, groups[column]], left[:, column]
            code = torch.clamp(torch.round(value / step), LOWEST, HIGHEST)
            codes[:, column] = code.to(torch.int8)
            error = (value - code * step) / by.factor[column, column]
            left[:, column:stop] -= torch.outer(error, by.factor[column, column:stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ by.factor[start:stop, stop:]
    if not by.ordered:
        codes = codes[:, torch.argsort(by.order)]
    return Rounded(codes, scales.float())


def group_scales(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Chooses the scale of each group of weights.

    It is 2/15 of the largest absolute value, which uses all sixteen codes: the largest weight lies
    at 7.5 of them, half a step beyond the last one.

    Args:
        weight: [..., group].
        dtype: What they are rounded to.

    Returns:
        float32 [...]; 1 for a group of zeros, as ModelOpt writes, and never 0.
    """
    largest = weight.abs().amax(dim=-1).float()
    # The export divides float32 by it, in which less than its own smallest number is none.
    numbers, single = torch.finfo(dtype), torch.finfo(torch.float32)
    smallest = max(numbers.smallest_normal * numbers.eps, single.smallest_normal)
    scales = (largest * (2.0 / (HIGHEST - LOWEST))).clamp(min=smallest).to(dtype).float()
    return torch.where(largest > 0, scales, torch.ones_like(scales))
