"""Weights that are rounded in pieces have the bits that ModelOpt gives to whole ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("modelopt")

import torch

from pipeline.dependencies import require
from pipeline.quantize import pieces
from pipeline.quantize.pieces import in_pieces

GROUP = 32
# Of what ModelOpt imports.
pytestmark = pytest.mark.filterwarnings("ignore")


def quantizers() -> Any:
    return require("modelopt.torch.quantization.nn", "quantize").TensorQuantizer


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of everything that ModelOpt's own quantizers are given."""
    rows: list[int] = []
    whole = quantizers().forward

    def forward(quantizer: Any, inputs: torch.Tensor) -> Any:
        rows.append(len(inputs))
        return whole(quantizer, inputs)

    monkeypatch.setattr(quantizers(), "forward", forward)
    monkeypatch.setattr(pieces, "PIECE_WEIGHTS", 10 * 96)
    yield rows
    assert quantizers().forward is forward


def quantizer(**changes: Any) -> Any:
    settings = {"num_bits": 4, "block_sizes": {-1: GROUP, "type": "static"}, "enable": True}
    config = require("modelopt.torch.quantization.config", "quantize")
    made = quantizers()(config.QuantizerAttributeConfig(**settings | changes))
    made.disable_calib()
    return made


def weight(dtype: torch.dtype, features: int = 96) -> torch.Tensor:
    """Of 33 rows, some of whose groups are zero, tiny or far from the others."""
    torch.manual_seed(3)
    drawn = torch.randn(33, features)
    drawn[4] = 0
    drawn[5] *= 1e-7
    drawn[6, 3] = 500
    return drawn.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_groups_of_some_rows_are_rounded_as_those_of_all(
    dtype: torch.dtype, scaled: bool, seen: list[int]
) -> None:
    ours, theirs, given = quantizer(), quantizer(), weight(dtype)
    with torch.inference_mode():
        for again in range(2):
            if scaled:
                for one in (ours, theirs):
                    torch.manual_seed(again)
                    one.pre_quant_scale = (torch.rand(96) + 0.5).to(dtype)
            expected = theirs(given)
            seen.clear()
            with in_pieces():
                found = ours(given)
            assert seen == [10, 10, 10, 3]
            assert found.dtype == dtype
            assert torch.equal(found, expected)
        # It knows its weight as before.
        assert torch.equal(ours(given), expected)


@pytest.mark.parametrize("case", ["ranges", "padding", "a scale for each row", "one", "off", "few"])
def test_whatever_else_is_rounded_is_rounded_at_once(case: str, seen: list[int]) -> None:
    given, ours = weight(torch.float32), quantizer()
    if case == "ranges":
        ours.amax = torch.full((33 * 3, 1), 2.0)
    elif case == "padding":
        given = weight(torch.float32, 100)
    elif case == "a scale for each row":
        ours = quantizer(block_sizes=None, axis=0)
    elif case == "one":
        ours = quantizer(block_sizes=None, axis=None, num_bits=(4, 3))
    elif case == "off":
        ours.disable()
    else:
        given = given[:9]
    with torch.inference_mode(), in_pieces():
        found = ours(given)
        assert seen == [len(given)]
        again = ours(given)
    assert found.shape == given.shape
    assert torch.equal(found, again)
    assert torch.equal(found, given) == (case == "off")


def test_one_that_collects_ranges_sees_all_rows(seen: list[int]) -> None:
    ours = quantizer()
    ours.enable_calib()
    with torch.inference_mode(), in_pieces():
        ours(weight(torch.float32))
    assert seen == [33]
