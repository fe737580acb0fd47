"""The formats that this project rounds itself, against bitsandbytes and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.checkpoint import Linear, dequantize
from pipeline.checkpoint.cut import packed_rows
from pipeline.checkpoint.nf4 import LEVELS, unpack_rows
from pipeline.quantize.own import nearest_levels, whole_codes

SHAPE = (96, 256)
BLOCK = 64


def weight(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random weights with a loud input channel, so that blocks differ in size."""
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.05
    values[:, ::37] *= 6
    return values.to(dtype)


def nf4_linear(values: torch.Tensor) -> Linear:
    codes, scales = nearest_levels(values.float().numpy(), BLOCK)
    return Linear("fc", "NF4", packed_rows(codes), scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_has_the_codes_and_scales_of_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    values = weight(dtype=dtype)
    packed, state = functional.quantize_4bit(values, blocksize=BLOCK, quant_type="nf4")
    pairs = packed.reshape(-1).numpy()
    # The first of two weights is in the high nibble of its file, along the rows.
    theirs = np.stack([pairs >> 4, pairs & 15], 1).reshape(SHAPE)
    linear = nf4_linear(values)
    assert (unpack_rows(linear.weight) == theirs).all()
    assert linear.weights_scaling_factor is not None
    assert (linear.weights_scaling_factor.reshape(-1) == state.absmax.float().numpy()).all()
    assert tuple(state.code.tolist()) == LEVELS
    if dtype == torch.float32:  # it gives the others back in their own dtype
        back = functional.dequantize_4bit(packed, state).numpy()
        np.testing.assert_array_equal(dequantize(linear), back)


def test_int8_has_the_codes_of_llm_int8() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    values = weight(dtype=torch.float16)
    theirs, largest, _ = functional.int8_vectorwise_quant(values)
    codes, scales = whole_codes(values.float().numpy())
    assert (codes == theirs.numpy()).all()
    np.testing.assert_array_equal(scales, (largest / 127).numpy())
    linear = Linear("fc", "INT8_WO", codes, scales)
    np.testing.assert_allclose(
        dequantize(linear), theirs.float().numpy() * largest.numpy()[:, None] / 127, rtol=1e-6
    )


def test_nf4_by_hand() -> None:
    """Each of a block's 16 levels, times 3, and what lies on either side of a border."""
    values = torch.zeros(2, BLOCK)
    values[0, :16] = torch.tensor(LEVELS) * 3
    border = (LEVELS[9] + LEVELS[10]) / 2
    values[0, 16], values[0, 17] = (border - 1e-3) * 3, (border + 1e-3) * 3
    codes, scales = nearest_levels(values.numpy(), BLOCK)
    assert codes[0, :18].tolist() == [*range(16), 9, 10]
    # Row 0 in the low nibble; zeros have the level of zero, and a scale that is none.
    assert packed_rows(codes)[0, 15] == 0x7F
    assert scales.tolist() == [[3.0], [1.0]]


def test_an_error_is_at_most_half_a_step() -> None:
    values = weight(3)
    codes, scales = whole_codes(values.float().numpy())
    linear = Linear("fc", "INT8_WO", codes, scales)
    error = np.abs(dequantize(linear) - values.numpy())
    assert (error <= scales[:, None] * 0.5001).all()
    widest = max(np.diff(LEVELS)) / 2
    blocks = np.abs(dequantize(nf4_linear(values)) - values.numpy()).reshape(SHAPE[0], -1, BLOCK)
    largest = np.abs(values.numpy()).reshape(SHAPE[0], -1, BLOCK).max(-1, keepdims=True)
    assert (blocks <= largest * widest * 1.0001).all()


def test_packing_is_undone() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (6, 64)).astype(np.uint8)
    assert (unpack_rows(packed_rows(codes)) == codes).all()


def test_a_row_of_zeros_has_a_scale() -> None:
    values = weight(4)
    values[5] = 0
    codes, scales = whole_codes(values.float().numpy())
    assert not codes[5].any()
    assert scales[5] == pytest.approx(1 / 127)
