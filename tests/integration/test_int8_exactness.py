"""INT8 on processors whose instructions saturate, played by limiting what oneDNN may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ..conftest import PROJECT

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="limits the instructions of x86"
)

# Random codes and the largest ones, against NumPy's integers.
PROGRAM = """
import numpy as np, openvino
from model_repo.tensorrt_llm.exactness import exact_properties, multiplies_int8_exactly
from pipeline.checkpoint.layout import Linear
from pipeline.targets.openvino.linears import Linears

op, random = openvino.opset13, np.random.default_rng(0)
codes = random.integers(-127, 128, (96, 256), np.int8)
codes[:8] = 127
step = np.float32(0.05)
linear = Linear(
    "l", "W8A8_SQ_PER_CHANNEL", codes,
    weights_scaling_factor=np.full(96, 0.01, np.float32),
    prequant_scaling_factor=np.ones(256, np.float16),
    activation_scaling_factor=float(step),
)
x = op.parameter(openvino.PartialShape([-1, -1, 256]), openvino.Type.f32, name="x")
model = openvino.Model([op.result(Linears()(x, lambda: linear))], [x], "linear")
given = random.integers(-127, 128, (1, 32, 256)).astype(np.float32)
given[:, :4] = 127
expected = (given.astype(np.int64) @ codes.T.astype(np.int64)) * (0.05 * 0.01)
for properties in ({}, exact_properties(openvino)):
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties}
    )
    found = compiled({"x": given * step})[0]
    print(np.linalg.norm(found - expected) / np.linalg.norm(expected))
print(multiplies_int8_exactly(openvino))
"""


def errors(instructions: str | None) -> tuple[float, float, bool]:
    """Relative errors left alone and with the properties, and whether the probe is content."""
    limit = {"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        env={**os.environ, **limit},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, exact, content = done.stdout.split()
    return float(plain), float(exact), content == "True"


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_products_that_saturate_are_noticed_and_computed_otherwise(instructions: str) -> None:
    plain, exact, content = errors(instructions)
    print(f"{instructions}: rel-rms {plain:.1e} left alone, {exact:.1e} with the properties")
    assert not content
    assert plain > 1e-3
    assert exact < 1e-5


def test_the_probe_is_content_where_products_are_exact_only() -> None:
    plain, exact, content = errors(None)
    assert content == (plain < 1e-6)
    assert exact < 1e-5
