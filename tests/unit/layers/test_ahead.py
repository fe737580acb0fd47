"""The next layer is read by a thread while this one is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save_file

from pipeline.errors import SourceError
from pipeline.layers.ahead import read_ahead
from pipeline.layers.weights import SnapshotWeights

CPU = torch.device("cpu")


class Noted(SnapshotWeights):
    """Says which tensors were read in which thread, and when a layer's last one was."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.read: list[tuple[str, str]] = []
        self.second = threading.Event()

    def __call__(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        self.read.append((name, threading.current_thread().name))
        tensor = super().__call__(name, rows)
        if name.endswith("1.b"):
            self.second.set()
        return tensor


@pytest.fixture
def weights(tmp_path: Path) -> Any:
    torch.manual_seed(4)
    tensors = {f"model.layers.{n}.{end}": torch.randn(3, 2) for n in (0, 1, 10) for end in "ab"}
    save_file(tensors, tmp_path / "model.safetensors")
    with Noted(tmp_path) as noted:
        yield noted, tensors


def test_the_next_layer_is_read_meanwhile(weights: Any) -> None:
    noted, tensors = weights
    with read_ahead(noted, 2, CPU) as ahead:
        first = ahead.layer(0)
        assert len(noted.read) == 2  # there may be no room for more yet
        for number in (1, 1, 2):
            ahead.begin(number)
        assert noted.second.wait(60)  # nobody asked for layer 1 yet
        second = ahead.layer(1)
        for number, read in enumerate((first, second)):
            for end in "ab":
                name = f"model.layers.{number}.{end}"
                assert torch.equal(read(name), tensors[name])
    # Each once: those of layer 10 belong to nobody who asked, and there is no layer 2.
    assert [name[-3:] for name, _ in noted.read] == ["0.a", "0.b", "1.a", "1.b"]
    threads = [thread for _, thread in noted.read]
    assert threads[:2] == [threading.current_thread().name] * 2
    assert all(thread.startswith("read-ahead") for thread in threads[2:])
    assert not [one for one in threading.enumerate() if one.name.startswith("read-ahead")]


def test_what_the_thread_cannot_read_is_said_where_it_is_asked_for(
    weights: Any, tmp_path: Path
) -> None:
    noted, _ = weights
    path = tmp_path / "model.safetensors"
    # Of six tensors of 24 bytes the last three are gone: 1.b and those of layer 10.
    os.truncate(path, path.stat().st_size - 72)
    with read_ahead(noted, 2, CPU) as ahead:
        ahead.layer(0)
        ahead.begin(1)
        with pytest.raises(SourceError, match=r"model\.layers\.1\.b ended too soon"):
            ahead.layer(1)
