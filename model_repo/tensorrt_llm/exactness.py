"""INT8 products that are exact on every processor.

Without VNNI the INT8 instructions of x86 add two products in 16 bits and saturate silently
(oneDNN's "Nuances of int8 Computations"), and a SmoothQuant model answers something else. Where
that is so, OpenVINO's low-precision transformations are left out: the same integers are multiplied
in float32, exactly and more slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLOAT_PRODUCTS = {"LP_TRANSFORMS_MODE": "NO", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Properties of OpenVINO's CPU plugin: no low-precision transformations, and no activations that
are quantized as they come, which would be multiplied by the same instructions."""

_FEATURES, _ROWS = 256, 64
_CODE = 127


def exact_properties(openvino: Any) -> dict[str, str]:
    """The properties with which this processor multiplies INT8 exactly; none where it does anyway.

    Args:
        openvino: The module.
    """
    return {} if multiplies_int8_exactly(openvino) else dict(FLOAT_PRODUCTS)


def multiplies_int8_exactly(openvino: Any) -> bool:
    """Whether a product of the largest codes, which need the most room, is right.

    Asking the processor would not do: what counts is the kernel that the plugin chooses.
    """
    op = openvino.opset13
    x = op.parameter(openvino.PartialShape([-1, _FEATURES]), openvino.Type.f32, name="x")
    low, high = (op.constant(np.float32(code)) for code in (-128, 127))
    codes = op.fake_quantize(x, low, high, low, high, 256)
    weight = op.constant(np.full((_ROWS, _FEATURES), _CODE, np.int8))
    scaled = op.multiply(op.convert(weight, "f32"), op.constant(np.ones((_ROWS, 1), np.float32)))
    product = op.matmul(codes, scaled, transpose_a=False, transpose_b=True)
    compiled = openvino.Core().compile_model(
        openvino.Model([op.result(product)], [x], "int8_product"),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    found = compiled({"x": np.full((4, _FEATURES), _CODE, np.float32)})[0]
    return bool((found == np.float32(_CODE * _CODE * _FEATURES)).all())
