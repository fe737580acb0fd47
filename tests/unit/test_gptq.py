"""Rounding by Hessians, against the algorithm written out in NumPy and what it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from pipeline.quantize.gptq import Rounded, group_scales, round_weight, spread

GROUP = 64


def inputs(columns: int, rows: int = 400, seed: int = 0) -> np.ndarray:
    """Correlated features of very different sizes, as a decoder's are."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(columns, columns)) / np.sqrt(columns) + np.eye(columns)
    return random.normal(size=(rows, columns)) @ mixing * random.uniform(0.1, 4.0, columns)


def weights(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def rounded(weight: np.ndarray, x: np.ndarray, dtype: Any = torch.float16, **keys: Any) -> Rounded:
    by = spread(torch.from_numpy(x.T @ x), **keys)
    return round_weight(torch.from_numpy(weight), by, GROUP, dtype)


def written_out(
    weight: np.ndarray, x: np.ndarray, *, by_size: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Optimal Brain Quantization in a fixed order, as GPTQ's paper starts from it.

    A column that is done is eliminated from the inverse, and there is no Cholesky factor.
    """
    left, (rows, columns) = weight.astype(np.float64), weight.shape
    hessian = x.T @ x
    order = np.argsort(-np.diag(hessian), kind="stable") if by_size else np.arange(columns)
    hessian = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(columns)

    def scale_of(part: np.ndarray) -> np.ndarray:
        largest = np.abs(part.astype(np.float32)).max(axis=1)
        scale: np.ndarray = (largest * np.float32(2 / 15)).astype(np.float16).astype(np.float64)
        return scale

    scales = np.stack([scale_of(part) for part in np.split(left, columns // GROUP, axis=1)], 1)
    codes = np.zeros((rows, columns), np.int8)
    inverse = np.linalg.inv(hessian)
    for column in order:
        group = column // GROUP
        if column % GROUP == 0 and not by_size:
            scales[:, group] = scale_of(left[:, column : column + GROUP])
        scale = scales[:, group]
        codes[:, column] = np.clip(np.rint(left[:, column] / scale), -8, 7)
        error = (left[:, column] - codes[:, column] * scale) / inverse[column, column]
        left -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column], inverse[:, column] = 0, 0
    return codes, scales


@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_the_algorithm_written_out(act_order: bool) -> None:
    """192 columns are a block and a half, and three groups."""
    weight, x = weights(6, 192), inputs(192)
    found = rounded(weight, x, act_order=act_order)
    codes, scales = written_out(weight, x, by_size=act_order)
    assert np.array_equal(found.scales.numpy(), scales)
    assert np.array_equal(found.codes.numpy(), codes)
    # All sixteen are used.
    assert set(np.unique(codes)) == set(range(-8, 8))


def to_nearest(weight: np.ndarray) -> np.ndarray:
    parts = weight.reshape(len(weight), -1, GROUP)
    scale = (np.abs(parts).max(2, keepdims=True) * (2 / 15)).astype(np.float16).astype(np.float64)
    scale[scale == 0] = 1
    values: np.ndarray = np.clip(np.rint(parts / scale), -8, 7) * scale
    return values.reshape(weight.shape)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_are_nearer_than_those_of_rounding_to_nearest(seed: int, act_order: bool) -> None:
    weight, x = weights(32, 256, seed), inputs(256, seed=seed)
    error = (rounded(weight, x, act_order=act_order).values().numpy() - weight) @ x.T
    nearest = (to_nearest(weight) - weight) @ x.T
    assert np.sum(error**2) < 0.5 * np.sum(nearest**2)


def test_the_error_is_within_what_half_a_step_of_each_column_can_make() -> None:
    """Column j adds at most (scale / 2)^2 / inverse[0, 0] of those that are left, if none clips."""
    x = inputs(128)
    # One large weight in each group keeps the others, which take in errors, off the last codes.
    weight = 0.2 * weights(16, 128)
    weight[:, ::GROUP] = 4.0
    found = rounded(weight, x)
    assert found.codes.abs().max() == 7
    hessian = x.T @ x
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(128)
    error = found.values().double().numpy() - weight
    loss = np.einsum("ni,ij,nj->n", error, hessian, error)
    most = np.zeros(16)
    for column in range(128):
        half = found.scales[:, column // GROUP].double().numpy() / 2
        # Its first weight lies at 7.5 steps, and the code is 7.
        most += half**2 / np.linalg.inv(hessian[column:, column:])[0, 0]
    assert (loss < most * 1.01).all()


def test_a_feature_that_no_text_moves_is_rounded_to_nearest() -> None:
    """The paper sets its weights to zero, which other text would notice."""
    weight, x = weights(8, 128), inputs(128)
    x[:, [3, 77]] = 0
    found = rounded(weight, x)
    for column in (3, 77):
        scale = found.scales[:, column // GROUP].numpy()
        assert np.array_equal(
            found.codes[:, column], np.clip(np.rint(weight[:, column] / scale), -8, 7)
        )
    assert np.abs(found.codes[:, 3]).max() > 0


def test_text_that_moves_nothing_rounds_to_nearest() -> None:
    weight = weights(8, 128)
    found = rounded(weight, np.zeros((4, 128)))
    np.testing.assert_array_equal(found.values().numpy(), to_nearest(weight))


@pytest.mark.parametrize("act_order", [False, True])
def test_fewer_rows_of_text_than_features_are_enough(act_order: bool) -> None:
    x = np.repeat(inputs(128, rows=3), 2, axis=0)
    x[:, 64:] = x[:, :64]
    weight = weights(8, 128)
    found = rounded(weight, x, act_order=act_order)
    error = (found.values().numpy() - weight) @ x.T
    assert np.sum(error**2) < np.sum(((to_nearest(weight) - weight) @ x.T) ** 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_told(value: float) -> None:
    x = inputs(64)
    x[5, 7] = value
    with pytest.raises(StageError, match=r"inputs of a linear are not finite"):
        spread(torch.from_numpy(x.T @ x))


def test_a_hessian_that_no_damping_mends_is_told() -> None:
    hessian = torch.eye(64, dtype=torch.float64)
    hessian[0, 1] = hessian[1, 0] = 1e6
    with pytest.raises(StageError, match=r"no positive definite second moment.*more varied text"):
        spread(hessian)


def test_a_weight_that_is_not_finite_is_told() -> None:
    weight = weights(4, 64)
    weight[1, 2] = np.nan
    with pytest.raises(StageError, match="a weight is not finite"):
        rounded(weight, inputs(64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_those_that_the_file_and_the_kernel_hold(dtype: torch.dtype) -> None:
    found = rounded(weights(8, 128), inputs(128), dtype)
    assert torch.equal(found.scales.to(dtype).float(), found.scales)
    # The export stores seven times the scale and divides by 7.
    assert torch.equal(found.scales * 7 / 7, found.scales)


def test_groups_of_zeros_and_of_tiny_weights_have_scales() -> None:
    weight = torch.zeros(3, GROUP)
    weight[1] = 1e-9
    weight[2] = 3e-6
    zero, tiny, small = group_scales(weight, torch.float16).tolist()
    # ModelOpt writes 1 for a group of zeros; 2^-24 is float16's smallest number.
    assert (zero, tiny) == (1.0, 2.0**-24)
    assert small == pytest.approx(4e-7, rel=0.1)
    assert (group_scales(weight, torch.bfloat16) > 0).all()
