"""Each kind of linear, run by OpenVINO alone, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from pipeline.checkpoint.cut import packed_rows
from pipeline.checkpoint.layout import Linear
from pipeline.checkpoint.nf4 import LEVELS
from pipeline.errors import CompileError
from pipeline.formats import ALGOS
from pipeline.targets.openvino.four_bits import nibbles_along_rows
from pipeline.targets.openvino.linears import Linears, joinable
from pipeline.targets.openvino.refusals import EXECUTED_ALGOS
from tests.integration.openvino_support import executed_nodes
from tests.unit.checkpoint.test_dequantize import pack

EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def reads(*linears: Linear) -> list[Callable[[], Linear]]:
    return [partial(lambda linear: linear, linear) for linear in linears]


def compiled(*joined: Linear) -> Any:
    x = op.parameter(ov.PartialShape([-1, -1, joined[0].in_features]), ov.Type.f32, name="x")
    result = op.result(Linears()(x, *reads(*joined)))
    return ov.Core().compile_model(ov.Model([result], [x], "linear"), "CPU", EXACT)


def run(*joined: Linear, x: np.ndarray) -> np.ndarray:
    found = compiled(*joined)({"x": x[None].astype(np.float32)})[0][0]
    return np.asarray(found)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nibbles_are_repacked_from_rows_to_columns() -> None:
    codes = np.array([[1, -2, 3, -4], [-8, 7, 0, 5]])
    repacked = nibbles_along_rows(pack(codes))
    assert repacked.tolist() == [[0xE1, 0xC3], [0x78, 0x50]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_floating_point_linear_with_bias(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    weight, bias, x = draw(32, 64).astype(kind), draw(32, seed=1).astype(kind), draw(5, 64, seed=2)
    found = run(Linear("dense", "NO_QUANT", weight, bias=bias), x=x)
    expected = x @ weight.astype(np.float32).T + bias.astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_two_linears_of_one_input_are_one_product(biased: bool) -> None:
    weights = [draw(rows, 64, seed=rows).astype(np.float16) for rows in (32, 48)]
    biases = [draw(rows, seed=rows + 1) if biased else None for rows in (32, 48)]
    pair = [
        Linear(name, "NO_QUANT", weight, bias=bias)
        for name, weight, bias in zip(("fc", "gate"), weights, biases, strict=True)
    ]
    assert joinable(*pair)
    x = draw(5, 64, seed=2)
    expected = np.concatenate(
        [
            x @ weight.astype(np.float32).T + (0 if bias is None else bias)
            for weight, bias in zip(weights, biases, strict=True)
        ],
        axis=1,
    )
    np.testing.assert_allclose(run(*pair, x=x), expected, rtol=1e-4, atol=1e-4)


def test_linears_with_scales_of_their_own_input_stay_two() -> None:
    plain = Linear("fc", "NO_QUANT", draw(32, 64))
    scaled = replace(plain, prequant_scaling_factor=np.ones(64, np.float16))
    assert not joinable(scaled, scaled)
    assert not joinable(plain, replace(plain, algo="W8A8_SQ_PER_CHANNEL"))
    assert not joinable(plain, replace(plain, bias=draw(32)))


@pytest.mark.parametrize("group", [64, 128])
def test_int4_groups_prequant_and_float16_scales(group: int) -> None:
    random = np.random.default_rng(3)
    codes = random.integers(-8, 8, (64, 256))
    # Between two float16 values, so that leaving the rounding out would show.
    scales = (1 + 2.0**-11 + random.integers(1, 9, (64, 256 // group)) / 8).astype(np.float32)
    prequant = random.uniform(0.5, 2, 256).astype(np.float16)
    x = draw(7, 256)
    found = run(Linear("fc", "W4A16_AWQ", pack(codes), scales, prequant), x=x)
    weight = codes * np.repeat(scales.astype(np.float16).astype(np.float64), group, axis=1)
    expected = (x * prequant.astype(np.float64)) @ weight.T
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 1e-6


def int8_linear(name: str, prequant: np.ndarray, step: float) -> Linear:
    random = np.random.default_rng(4)
    return Linear(
        name,
        "W8A8_SQ_PER_CHANNEL",
        random.integers(-127, 128, (64, 128)).astype(np.int8),
        random.uniform(0.001, 0.01, 64).astype(np.float32),
        prequant,
        step,
    )


def test_int8_rounds_halves_to_even_and_saturates_at_minus_128_and_127() -> None:
    step = 0.25
    linear = int8_linear("qkv", np.full(128, 2.0, np.float16), step)
    codes = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 500.0, -127.6, -128.4, -500.0, 3.0])
    whole = np.array([0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0, 127.0, -128.0, -128.0, -128.0, 3.0])
    x = np.zeros((12, 128), np.float32)
    x[np.arange(12), np.arange(12)] = codes * step / 2
    assert linear.weights_scaling_factor is not None
    weight = linear.weight * linear.weights_scaling_factor[:, None]
    expected = (whole * step)[:, None] * weight[:, :12].T
    np.testing.assert_allclose(run(linear, x=x), expected, rtol=1e-5, atol=1e-6)


def test_every_int8_code_is_modelopts() -> None:
    random = np.random.default_rng(5)
    step = float(np.float32(0.0317))
    prequant = random.uniform(0.5, 2, 128).astype(np.float16)
    linear = int8_linear("qkv", prequant, step)
    # A million activations: plain FakeQuantize gets about ten of them wrong.
    x = draw(8192, 128, seed=6)
    amax = np.float32(step) * np.float32(127)
    codes = np.clip(np.round(x * prequant.astype(np.float32) * (np.float32(127) / amax)), -128, 127)
    assert linear.weights_scaling_factor is not None
    product = codes.astype(np.int64) @ linear.weight.T.astype(np.int64)
    expected = product * step * linear.weights_scaling_factor.astype(np.float64)
    error = np.abs(run(linear, x=x) - expected).max() / np.sqrt((expected**2).mean())
    assert error < 1e-5


def test_linears_that_read_the_same_input_share_one_quantizer() -> None:
    same, other = np.full(128, 2.0, np.float16), np.full(128, 3.0, np.float16)
    x = op.parameter(ov.PartialShape([-1, -1, 128]), ov.Type.f32, name="x")
    add = Linears()
    results = [
        op.result(add(x, read))
        for read in reads(
            int8_linear("fc", same, 0.1),
            int8_linear("gate", same, 0.1),
            int8_linear("another prequant", other, 0.1),
            int8_linear("another step", same, 0.2),
        )
    ]
    model = ov.Model(results, [x], "linears")
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert kinds.count("FakeQuantize") == 3


def test_a_format_without_an_execution_is_named() -> None:
    linear = Linear("proj", "FP8", np.zeros((64, 128), np.int8), np.ones(1, np.float32))
    with pytest.raises(CompileError, match="proj: the CPU target does not execute FP8"):
        compiled(linear)


@pytest.mark.parametrize("algo", ALGOS)
def test_what_the_pre_flight_lets_pass_has_a_graph(algo: str) -> None:
    row = ALGOS[algo]
    codes = np.ones((32 if row.packed else 64, 128), np.int8)
    linear = Linear(
        "dense",
        algo,
        codes if row.quantizes else codes.astype(np.float32),
        weights_scaling_factor=np.ones((64, 1), np.float32),
        prequant_scaling_factor=np.ones(128, np.float16),
    )
    if algo in EXECUTED_ALGOS:
        assert run(linear, x=draw(2, 128)).shape == (2, 64)
    else:
        with pytest.raises(CompileError, match=f"does not execute {algo}"):
            compiled(linear)


def test_nf4_is_multiplied_packed() -> None:
    random = np.random.default_rng(8)
    codes = random.integers(0, 16, (64, 256))
    scales = random.uniform(0.01, 2, (64, 4)).astype(np.float32)
    linear = Linear("fc", "NF4", packed_rows(codes.astype(np.uint8)), scales)
    x = draw(7, 256)
    weight = np.array(LEVELS)[codes] * np.repeat(scales.astype(np.float64), 64, axis=1)
    expected = x.astype(np.float64) @ weight.T
    found = run(linear, x=x)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-6
    (node,) = [n for n in executed_nodes(compiled(linear)) if n["type"] == "FullyConnected"]
    assert node["inputs"][1] == "nf4"


def test_int8_weights_of_float_inputs_stay_int8() -> None:
    random = np.random.default_rng(9)
    codes = random.integers(-127, 128, (64, 256)).astype(np.int8)
    scales = random.uniform(0.01, 2, 64).astype(np.float32)
    linear = Linear("fc", "INT8_WO", codes, scales)
    x = draw(7, 256)
    expected = x.astype(np.float64) @ (codes * scales.astype(np.float64)[:, None]).T
    found = run(linear, x=x)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-6
    (node,) = [n for n in executed_nodes(compiled(linear)) if n["type"] == "FullyConnected"]
    assert (node["inputs"][0], node["inputs"][1]) == ("f32", "i8")
