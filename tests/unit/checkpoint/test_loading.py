"""Scales as TensorRT-LLM loads them, against torch doing what its loader does.

The steps are those of ``preprocess_perlayer_weights`` in tensorrt_llm/models/modeling_utils.py, in
place and in the model's dtype, as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import Linear, dequantize
from pipeline.checkpoint.loading import as_loaded, largest_loadable
from pipeline.checkpoint.reader import numpy_dtype
from tests.unit.checkpoint.test_dequantize import pack

torch: Any = pytest.importorskip("torch")

DTYPES = ("float16", "bfloat16")
SCALE_2, ACTIVATION = np.float32(0.0173), np.float32(0.00321)


def loaded_by_torch(values: np.ndarray, divisor: np.float32, dtype: str) -> Any:
    loaded = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype))
    loaded /= torch.tensor([divisor])
    return loaded


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_scales_of_w4a8_equal_the_loaders_to_the_last_bit(dtype: str) -> None:
    scales = np.random.default_rng(0).uniform(1e-4, 0.05, 20_000).astype(np.float32)
    expected = loaded_by_torch(scales, SCALE_2, dtype).to(torch.float16).float().numpy()
    found = as_loaded(scales, dtype, divisor=float(SCALE_2), last="float16")
    assert np.array_equal(found, expected)
    # Rounded once, after the division, a quarter of them would be others.
    once = (scales / SCALE_2).astype(numpy_dtype(dtype)).astype(np.float32)
    assert (once != expected).mean() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantized_weights_have_the_scales_of_the_loader(dtype: str) -> None:
    scales = np.random.default_rng(1).uniform(1e-3, 0.05, (2048, 3)).astype(np.float32)
    codes = np.random.default_rng(2).integers(-8, 8, (2048, 384)).astype(np.int8)
    linear = Linear(
        "l",
        "W4A8_AWQ",
        pack(codes),
        weights_scaling_factor=scales,
        prequant_scaling_factor=np.ones(384, numpy_dtype(dtype)),
        weights_scaling_factor_2=float(SCALE_2),
    )
    loaded = loaded_by_torch(scales, SCALE_2, dtype).to(torch.float16).float()
    products = torch.from_numpy(codes).float() * loaded.repeat_interleave(128, dim=1)
    expected = products.to(torch.float8_e4m3fn).float().numpy() * SCALE_2
    assert np.array_equal(dequantize(linear), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pre_quant_scales_of_w4a8_equal_the_loaders(dtype: str) -> None:
    scales = np.random.default_rng(3).uniform(0.01, 200, 20_000).astype(numpy_dtype(dtype))
    expected = loaded_by_torch(scales, ACTIVATION, dtype).float().numpy()
    assert np.array_equal(as_loaded(scales, dtype, divisor=float(ACTIVATION)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [1.8e-4, 0.0123, 0.9999, 3.7])
def test_the_largest_scale_is_the_last_one_that_stays_finite(dtype: str, activation: float) -> None:
    kind = getattr(torch, dtype)
    limit = torch.tensor([largest_loadable(dtype, activation)], dtype=kind)
    assert torch.isfinite(limit / torch.tensor([activation])).all()
    assert torch.isfinite((limit / torch.tensor([activation])).to(kind)).all()
    # A few steps of the dtype further it is not, unless the dtype itself ends there.
    further = (limit.float() * 1.02).to(kind) / torch.tensor([activation])
    assert activation > 1 or not torch.isfinite(further.to(kind)).all()


@pytest.mark.parametrize("divisor", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_scale_bounds_nothing(divisor: float) -> None:
    assert largest_loadable("float16", divisor) == 65504.0
