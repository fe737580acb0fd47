"""Weights that cannot be read are the source's fault, and leave no file open."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from pipeline.errors import SourceError
from pipeline.layers.weights import SnapshotWeights


def broken(*_: Any, **_named: Any) -> int:
    raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_does_not_read_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    with SnapshotWeights(tmp_path) as read:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(SourceError, match=r"weights cannot be read\. Input/output error"):
            read("a")


def test_files_are_closed_when_one_is_damaged(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "one.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"\xff" * 100)
    index = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(SourceError, match=r"two\.safetensors"):
        SnapshotWeights(tmp_path)
    assert set(Path("/proc/self/fd").iterdir()) == before


STORED = torch.arange(60, dtype=torch.float32).reshape(12, 5) / 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 7), slice(11, 40), slice(4, 4)])
def test_rows_are_read_into_memory_that_is_there(
    tmp_path: Path, dtype: torch.dtype, rows: slice
) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.float16), "b": STORED.to(dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    out = torch.full(tensors["b"][rows].shape, torch.nan)
    with SnapshotWeights(tmp_path) as read:
        read.into(out, "b", rows)
    assert torch.equal(out, tensors["b"][rows].float())
    # Rows behind which others of the same matrix are not touched.
    whole = torch.zeros(12, 7)
    with SnapshotWeights(tmp_path) as read:
        read.into(whole[:, 1:6], "b")
    assert torch.equal(whole[:, 1:6], tensors["b"].float())
    assert not whole[:, [0, 6]].any()


def test_a_tensor_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    header = b'{"b":{"dtype":"F32","shape":[12,5],"data_offsets":[0,240]}}'
    assert len(header) % 2
    data = STORED.numpy().tobytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    out = torch.empty(4, 5)
    with SnapshotWeights(tmp_path) as read:
        read.into(out, "b", slice(2, 6))
    assert torch.equal(out, STORED[2:6])


@pytest.mark.parametrize("way", ["call", "into"])
def test_a_file_that_was_cut_is_told(tmp_path: Path, way: str) -> None:
    save_file({"a": torch.ones(3), "b": STORED}, tmp_path / "model.safetensors")
    with SnapshotWeights(tmp_path) as read:
        path = tmp_path / "model.safetensors"
        os.truncate(path, path.stat().st_size - 4)
        out = torch.empty(12, 5)
        with pytest.raises(SourceError, match="the file of b ended too soon"):
            read("b") if way == "call" else read.into(out, "b")


@pytest.mark.parametrize("refuses", ["the map", "to read ahead"])
def test_where_nothing_can_be_mapped_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    save_file({"b": STORED}, tmp_path / "model.safetensors")

    class Unwilling(mmap.mmap):
        madvise = broken

    monkeypatch.setattr(mmap, "mmap", broken if refuses == "the map" else Unwilling)
    out = torch.empty(12, 5)
    with SnapshotWeights(tmp_path) as read:
        read.into(out, "b")
    assert torch.equal(out, STORED)


def test_no_file_stays_mapped(tmp_path: Path) -> None:
    save_file({"b": STORED}, tmp_path / "model.safetensors")
    with SnapshotWeights(tmp_path) as read:
        read.into(torch.empty(12, 5), "b")
        with pytest.raises(RuntimeError, match="must match"):
            read.into(torch.empty(12, 6), "b")
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
