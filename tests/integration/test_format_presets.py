"""The table of formats says of each what ModelOpt's own preset does."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.dependencies import require
from pipeline.formats import FORMATS, KV_CACHES, Format
from pipeline.progress import Silent
from pipeline.source.runtime import offline_and_quiet

# ModelOpt's num_bits: bits of an integer, or of exponent and mantissa.
NUM_BITS = {"int8": 8, "int4": 4, "fp8": (4, 3)}
QUANTIZING = [row for row in FORMATS.values() if row.quantizes and not row.own]


@pytest.fixture(scope="module")
def mtq() -> Any:
    with offline_and_quiet(Silent()):
        return require("modelopt.torch.quantization", "quantize")


def _first(quantizer: Any) -> dict[str, Any]:
    return dict(quantizer[0] if isinstance(quantizer, list) else quantizer)


@pytest.mark.parametrize("row", QUANTIZING, ids=[row.name for row in QUANTIZING])
def test_a_row_says_what_the_preset_does(row: Format, mtq: Any) -> None:
    assert row.preset is not None
    preset = getattr(mtq, row.preset)
    algorithm = preset["algorithm"]
    if not row.rounds_by_hessian:
        # Rounding by Hessians is no algorithm of ModelOpt; the preset gives the numbers alone.
        method = algorithm if isinstance(algorithm, str) else algorithm["method"]
        assert row.calibration == method
    weights = _first(preset["quant_cfg"]["*weight_quantizer"])
    assert weights["num_bits"] == NUM_BITS[row.weights]
    blocks = weights.get("block_sizes", {})
    assert (row.scales == "group") == (-1 in blocks)
    assert not blocks or blocks[-1] in row.group_sizes
    if row.scales != "group":
        # One scale along axis 0 is one for each row.
        assert weights["axis"] == {"row": 0, "tensor": None}[row.scales or ""]
    inputs = preset["quant_cfg"]["*input_quantizer"]
    if row.activations == "float":
        assert inputs["enable"] is False
    else:
        assert inputs["num_bits"] == NUM_BITS[row.activations]


def test_the_fp8_kv_cache_is_modelopts(mtq: Any) -> None:
    quantizer = mtq.FP8_KV_CFG["quant_cfg"]["*[kv]_bmm_quantizer"]
    assert quantizer["num_bits"] == KV_CACHES["fp8"].num_bits
