from __future__ import annotations

from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pipeline.checkpoint import Linear, dequantize, unpack_int4
from pipeline.errors import UnsupportedError


def pack(codes: np.ndarray) -> np.ndarray:
    """int8 codes [N, K] to bytes [N/2, K], one nibble at a time."""
    packed = np.empty((codes.shape[0] // 2, codes.shape[1]), np.uint8)
    for row in range(packed.shape[0]):
        for column in range(packed.shape[1]):
            low, high = int(codes[2 * row, column]), int(codes[2 * row + 1, column])
            packed[row, column] = (low & 0xF) | (high & 0xF) << 4
    return packed.view(np.int8)


def test_unpacking_covers_every_byte() -> None:
    codes = np.array([[low, high] for low in range(-8, 8) for high in range(-8, 8)], np.int8).T
    assert np.array_equal(unpack_int4(pack(codes)), codes)


def test_int4_by_hand() -> None:
    """Rows 0 and 1, groups of two columns, scales 0.5 and 2 then 1 and 0.25."""
    linear = Linear(
        "l",
        "W4A16_AWQ",
        pack(np.array([[1, -8, 3, 7], [-1, 2, -4, 0]], np.int8)),
        weights_scaling_factor=np.array([[0.5, 2.0], [1.0, 0.25]], np.float32),
        prequant_scaling_factor=np.ones(4, np.float16),
    )
    assert dequantize(linear).tolist() == [[0.5, -4.0, 6.0, 14.0], [-1.0, 2.0, -1.0, 0.0]]
    assert (linear.out_features, linear.in_features) == (2, 4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_group_scales_are_rounded_to_the_models_dtype(dtype: type) -> None:
    """As TensorRT-LLM does when it loads them; 0.1 is in neither dtype."""
    linear = Linear(
        "l",
        "W4A16_AWQ",
        pack(np.ones((2, 64), np.int8)),
        weights_scaling_factor=np.full((2, 1), 0.1, np.float32),
        prequant_scaling_factor=np.ones(64, dtype),
    )
    rounded = np.float32(np.array(0.1, dtype))
    assert rounded != np.float32(0.1)
    assert np.all(dequantize(linear) == rounded)


def test_w4a8_rounds_the_scaled_codes_to_float8() -> None:
    """4 * 1.0625 / 0.25 = 17, which lies between the float8 neighbours 16 and 18: a tie to even."""
    linear = Linear(
        "l",
        "W4A8_AWQ",
        pack(np.array([[4, 1], [2, -3]], np.int8)),
        weights_scaling_factor=np.array([[1.0625], [0.25]], np.float32),
        prequant_scaling_factor=np.ones(2, np.float16),
        weights_scaling_factor_2=0.25,
    )
    assert dequantize(linear).tolist() == [[4.0, 1.0], [0.5, -0.75]]


def test_int8_scales_rows_and_fp8_scales_all() -> None:
    int8 = Linear(
        "l",
        "W8A8_SQ_PER_CHANNEL",
        np.array([[127, -128], [2, 0]], np.int8),
        weights_scaling_factor=np.array([0.5, 0.25], np.float32),
    )
    assert dequantize(int8).tolist() == [[63.5, -64.0], [0.5, 0.0]]
    fp8 = Linear(
        "l",
        "FP8",
        np.array([[448.0, -1.5]], ml_dtypes.float8_e4m3fn),
        weights_scaling_factor=np.array([0.5], np.float32),
    )
    assert dequantize(fp8).tolist() == [[224.0, -0.75]]


def test_floating_point_weights_are_widened() -> None:
    linear = Linear("l", "NO_QUANT", np.array([[1.5, -2.0]], ml_dtypes.bfloat16))
    assert dequantize(linear).dtype == np.float32
    assert dequantize(linear).tolist() == [[1.5, -2.0]]


def test_an_unknown_format_is_named() -> None:
    linear = Linear("lay", "NVFP4", np.zeros((2, 2), np.int8), np.ones(1, np.float32))
    with pytest.raises(UnsupportedError, match="lay: quant_algo NVFP4"):
        dequantize(linear)


BYTES = np.random.default_rng(3).integers(-128, 128, (10, 64)).astype(np.int8)
SCALES = np.random.default_rng(4).random((20, 2)).astype(np.float16) + np.float16(0.1)


@pytest.mark.parametrize(
    ("algo", "fields"),
    [
        ("NO_QUANT", {"weight": BYTES.astype(np.float16)}),
        ("INT8_WO", {"weight": BYTES, "weights_scaling_factor": SCALES[:10, 0]}),
        ("FP8", {"weight": BYTES.astype(ml_dtypes.float8_e4m3fn)}),
        ("W4A16_AWQ", {"zero": np.rint(SCALES.T * 5) * SCALES.T}),
        ("W4A16_AWQ", {"input_order": np.random.default_rng(5).permutation(64)}),
        ("W4A8_AWQ", {"weights_scaling_factor_2": 0.3}),
        ("NF4", {"weight": BYTES.view(np.uint8)}),
    ],
)
def test_rows_do_not_depend_on_how_many_are_dequantized_at_once(
    algo: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = np.array([0.7], np.float32) if algo == "FP8" else SCALES
    linear = Linear(
        "l",
        algo,
        **{
            "weight": BYTES,
            "weights_scaling_factor": scale,
            "prequant_scaling_factor": np.ones(64, np.float16),
        }
        | fields,
    )
    whole = dequantize(linear)
    assert len(np.unique(whole)) > 10
    # The package has the function under the module's name.
    module = import_module("pipeline.checkpoint.dequantize")
    for count, threads in ((2, 1), (6, 1), (2, 3)):
        monkeypatch.setattr(module, "BLOCK_WEIGHTS", 64 * count)
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda _, n=threads: range(n))
        assert dequantize(linear).tobytes() == whole.tobytes()
