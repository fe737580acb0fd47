"""What torch turns back has the bits of what NumPy turns back, whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoint import dequantize, open_checkpoint
from pipeline.checkpoint.dequantize import rows_of
from pipeline.reference.turning import turn_back
from tests.unit.checkpoint.drawn import drawn_checkpoint


@pytest.mark.parametrize(
    ("algo", "changes"),
    [
        ("NO_QUANT", {}),
        ("NO_QUANT", {"dtype": "bfloat16"}),
        ("NO_QUANT", {"dtype": "float32"}),
        ("W4A16_AWQ", {}),
        ("W4A16_AWQ", {"dtype": "bfloat16"}),
        ("W8A8_SQ_PER_CHANNEL", {}),
        ("INT8_WO", {}),
        # Left to NumPy.
        *((algo, {}) for algo in ("NF4", "FP8")),
    ],
)
@pytest.mark.parametrize("rows", [slice(0, 256), slice(64, 130), slice(254, 256)])
def test_bits_are_those_of_numpy(
    algo: str, changes: dict[str, Any], rows: slice, tmp_path: Path
) -> None:
    folder = drawn_checkpoint(tmp_path / "checkpoint", algo, tp=2, **changes)
    linear = open_checkpoint(folder).weights().layers[1].linear("proj")
    out = torch.full((rows.stop - rows.start, 512), torch.nan)
    turn_back(rows_of(linear, rows), out)
    expected = dequantize(linear)[rows]
    assert np.unique(expected).size > 8
    assert out.numpy().tobytes() == expected.tobytes()
