"""Weights that cannot be read are the source's fault, and leave no file open."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from pipeline.errors import SourceError
from pipeline.layers.weights import SnapshotWeights


def broken(*_: Any) -> int:
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
