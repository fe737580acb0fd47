"""Written files against the fake-quantized model that ModelOpt holds in memory.

The export changes that model in two ways, which are applied to it before it is compared: q, k and v
share one pre-quant scale and one activation scale (for FP8 also gate and up), by ModelOpt's own
``preprocess_linear_fusion``; and pre-quant scales are rounded to the checkpoint's dtype.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import Layer, Linear, dequantize, open_checkpoint, unpack_int4
from pipeline.models.facts import ModelFacts
from pipeline.progress import Silent
from pipeline.quantize.calibrate import calibrate
from pipeline.quantize.export import export
from pipeline.quantize.loading import load_model
from pipeline.source.lines import read_texts, sample
from pipeline.source.runtime import deterministic, offline_and_quiet
from pipeline.source.tokens import batches, load_tokenizer, token_rows
from tests.integration.quantize_support import ARCHITECTURES, FORMATS, recipe, write_source

QUANTIZED = tuple(name for name in FORMATS if name != "float16")
# Group scales are float16 in TensorRT-LLM and in dequantize(): half a unit in the last place.
FLOAT16_ROUNDING = 2.0**-11
# A weight this close to the middle of two codes, in codes, may be rounded to either: the export
# multiplies the pre-quant scale in again, and the last bit of it depends on the CPU.
TIE = 1e-4


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write_source(name, folder / name) for name in ARCHITECTURES}


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_equals_modelopts(
    architecture: str, name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    import torch

    source = sources[architecture]
    settings = recipe(source, format=name)
    facts = ModelFacts.from_directory(source)
    texts = sample(read_texts(source / "calibration.txt"), 24, seed=1234)
    rows = token_rows(texts, load_tokenizer(source), 30)
    with offline_and_quiet(Silent()), deterministic(parameters=1), torch.inference_mode():
        model = calibrate(
            load_model(source, settings), settings.quantize, batches(rows, 12), Silent()
        )
        export(model, facts, settings, tmp_path)
        layers = open_checkpoint(tmp_path).weights().layers
        for written, module in zip(layers, model.model.layers, strict=True):
            merge_as_exported(module, name)
            for linear, parts in counterparts(written, module):
                compare(linear, parts)


def merge_as_exported(module: Any, name: str) -> None:
    from modelopt.torch.export.quant_utils import preprocess_linear_fusion

    attention, mlp = module.self_attn, module.mlp
    preprocess_linear_fusion([attention.q_proj, attention.k_proj, attention.v_proj])
    if name == "fp8":
        preprocess_linear_fusion([mlp.gate_proj, mlp.up_proj])
    for part in (*linears(attention), *linears(mlp)):
        quantizer = part.input_quantizer
        if quantizer.pre_quant_scale is not None:
            quantizer.pre_quant_scale = quantizer.pre_quant_scale.half().float()


def linears(module: Any) -> list[Any]:
    return [child for name, child in module.named_children() if name.endswith("_proj")]


def counterparts(written: Layer, module: Any) -> list[tuple[Linear, list[Any]]]:
    attention, mlp = module.self_attn, module.mlp
    return [
        (written.qkv, [attention.q_proj, attention.k_proj, attention.v_proj]),
        (written.dense, [attention.o_proj]),
        (written.fc, [mlp.gate_proj]),
        (written.gate, [mlp.up_proj]),
        (written.proj, [mlp.down_proj]),
    ]


def compare(linear: Linear, parts: list[Any]) -> None:
    """Weights to the last bits, outputs on identical input to float32 noise."""
    import torch

    expected = torch.cat([part.weight_quantizer(part.weight) for part in parts]).numpy()
    exact = without_rounding(linear)
    apart = np.abs(exact - expected) > 1e-6 * np.abs(expected).max()
    weight = torch.cat([part.weight for part in parts]).numpy()
    assert np.all(ties(exact, expected, weight)[apart]), linear.name
    assert apart.mean() <= 1e-4, linear.name
    rounded = dequantize(linear)
    if linear.algo == "W4A16_AWQ":
        assert np.all(np.abs(rounded - exact) <= 1.01 * FLOAT16_ROUNDING * np.abs(exact) + 1e-7)
    elif linear.algo != "W4A8_AWQ":
        assert np.array_equal(rounded, exact)

    x = torch.randn(64, linear.in_features, generator=torch.Generator().manual_seed(3))
    outputs = torch.cat([part(x) for part in parts], dim=-1).numpy()
    found = activations(linear, x.numpy()) @ expected.T
    if linear.bias is not None:
        # The model keeps its biases in float32.
        found += torch.cat([part.bias for part in parts]).numpy()
        assert np.allclose(linear.bias, torch.cat([part.bias for part in parts]), rtol=1e-3)
    error = np.linalg.norm(found - outputs) / np.linalg.norm(outputs)
    assert error <= 2e-6, linear.name


def ties(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Where a weight is in the middle of the two values it was rounded to."""
    step = np.abs(a - b)
    return np.abs(weight - (a + b) / 2) <= TIE * step


def without_rounding(linear: Linear) -> np.ndarray:
    """The weight of a model in float32, in whose dtype group scales are not rounded."""
    import ml_dtypes

    prequant, scales = linear.prequant_scaling_factor, linear.weights_scaling_factor
    if prequant is None:
        return dequantize(linear)
    if linear.weights_scaling_factor_2 is None:
        return dequantize(replace(linear, prequant_scaling_factor=prequant.astype(np.float32)))
    assert scales is not None
    scale_2 = np.float32(linear.weights_scaling_factor_2)
    spread = np.repeat(scales.astype(np.float32) / scale_2, 128, axis=1)
    codes = (unpack_int4(linear.weight) * spread).astype(ml_dtypes.float8_e4m3fn)
    weight: np.ndarray = codes.astype(np.float32) * scale_2
    return weight


def activations(linear: Linear, x: np.ndarray) -> np.ndarray:
    """x after pre-quant and activation quantization, in NumPy and ml_dtypes alone."""
    import ml_dtypes

    if linear.prequant_scaling_factor is not None:
        x = x * linear.prequant_scaling_factor.astype(np.float32)
    if linear.activation_scaling_factor is None:
        return x
    step = np.float32(linear.activation_scaling_factor)
    if linear.algo == "W8A8_SQ_PER_CHANNEL":
        scale = np.float32(127.0) / (step * np.float32(127.0))
        return np.clip(np.round(x * scale), -128, 127) / scale
    scale = np.float32(448.0) / (step * np.float32(448.0))
    codes = np.clip(x * scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float32) / scale
