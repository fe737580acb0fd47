"""The rows of an embedding are those that torch looks up, also across pieces of the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from pipeline.layers import embedding
from pipeline.layers.arrays import as_array
from pipeline.layers.embedding import EMBEDDING, embedded
from pipeline.layers.weights import SnapshotWeights


def test_rows_are_looked_up_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "ROWS", 10)
    torch.manual_seed(2)
    table = torch.randn(37, 6).bfloat16()
    save_file({EMBEDDING: table}, tmp_path / "model.safetensors")
    batches = [[[0, 9, 10, 36], [36, 20, 0, 19]], [[5]]]
    with SnapshotWeights(tmp_path) as read:
        assert read.names("model.embed") == [EMBEDDING]
        assert read.names("lm_head") == []
        found = embedded(read, batches, torch.float32)
    assert len(found) == 2
    for batch, states in zip(batches, found, strict=True):
        assert states.dtype == torch.float32
        assert torch.equal(states, table.float()[torch.tensor(batch)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
def test_an_array_has_the_bytes_of_its_tensor(dtype: torch.dtype) -> None:
    tensor = torch.arange(-6, 6).reshape(3, 4).to(dtype).T
    array = as_array(tensor)
    assert array.dtype.name == str(dtype).removeprefix("torch.")
    assert array.astype(float).tolist() == tensor.double().tolist()
