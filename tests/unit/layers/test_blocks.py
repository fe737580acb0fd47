"""Linears in blocks of rows compute what a linear is, whether their weight is in memory or not."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional

from pipeline.layers import blocks
from pipeline.layers.blocks import InBlocks, block_rows, unread

WEIGHT = torch.randn(1000, 96, generator=torch.Generator().manual_seed(3))
BIAS = torch.arange(1000.0)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_WEIGHTS", 128 * 96 + 95)


@pytest.mark.parametrize(("columns", "rows"), [(96, 128), (97, 64), (192, 64), (12_289, 64)])
def test_blocks_are_of_whole_panels_and_not_empty(columns: int, rows: int) -> None:
    assert block_rows(columns) == rows


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 40)])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_a_weight_that_is_read_meanwhile_gives_what_one_in_memory_gives(
    shape: tuple[int, int], bias: torch.Tensor | None
) -> None:
    read: list[tuple[int, int]] = []

    def fill(rows: slice, out: torch.Tensor) -> None:
        read.append((rows.start, rows.stop))
        out.copy_(WEIGHT[rows])

    x = torch.randn(*shape, 96, generator=torch.Generator().manual_seed(4))
    exact = x.double() @ WEIGHT.double().T + (0 if bias is None else bias.double())
    weight = unread(WEIGHT.shape, fill)
    with InBlocks():
        found = functional.linear(x, weight, bias)
        in_memory = functional.linear(x, WEIGHT, bias)
        # A module's, and by name.
        module = torch.nn.Linear(96, 1000, bias=False, device="meta")
        module.weight = weight
        without = module(x)
        named = functional.linear(input=x, weight=WEIGHT, bias=bias)
    assert read[:8] == [(128 * n, min(128 * (n + 1), 1000)) for n in range(8)]
    assert torch.equal(found, in_memory)
    assert torch.equal(named, in_memory)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    exact = x.double() @ WEIGHT.double().T
    torch.testing.assert_close(without.double(), exact, rtol=1e-5, atol=1e-4)


def test_nothing_is_changed_outside() -> None:
    x = torch.randn(2, 96)
    with pytest.raises(RuntimeError, match="not in memory was multiplied outside of InBlocks"):
        functional.linear(x, unread(WEIGHT.shape, lambda *_: None))
    with InBlocks():
        assert torch.equal(x.softmax(-1), torch.softmax(x, dim=-1))
