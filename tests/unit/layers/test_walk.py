"""A walk through the parts of a model, where its state cannot be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from pipeline.layers import state
from pipeline.layers.parts import Part
from pipeline.layers.state import State
from pipeline.layers.walk import Walker
from pipeline.progress import Silent


class Ones:
    """Parts that add 1 each."""

    layers, hidden_size, vocabulary, device = 5, 4, 4, torch.device("cpu")

    def part(self, number: int) -> Part:
        """Makes a part of no modules."""
        return Part(number, {}, lambda hidden: hidden + 1)


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Keeps it."""
        self.notes.append(message)


def test_a_disk_that_is_full_is_written_to_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "INTERVAL_S", 0.0)
    tried: list[int] = []

    def save(_self: State, finished: int, *_tensors: Any) -> None:
        tried.append(finished)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(State, "save", save)
    progress = Notes()
    walker = Walker(Ones(), "source", progress=progress, unfinished=tmp_path)
    for _ in range(2):
        (found,) = walker.logits([torch.zeros(1, 3)])
        assert found.unique().tolist() == [7.0]
    assert tried == [0]
    assert len(progress.notes) == 1
    assert "source is computed cannot be kept (No space left on device)" in progress.notes[0]
