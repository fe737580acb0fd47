"""Weight files of a folder have the bytes that the safetensors library writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint.reader import numpy_dtype
from pipeline.targets import weight_files
from pipeline.targets.weight_files import WeightFiles

safetensors = pytest.importorskip("safetensors.numpy")


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {
        "b": random.normal(size=(9, 7)).astype(np.float16),
        "transposed": random.normal(size=(5, 30)).astype(np.float32).T,
        "a": random.normal(size=(40,)).astype(numpy_dtype("bfloat16")),
        "scalar": np.asarray(0.5, np.float32),
        "packed": random.integers(0, 99, (8, 8)).astype(np.int32),
        "empty": np.zeros((0, 3), np.int8),
    }


@pytest.mark.parametrize(("most", "count"), [(1 << 20, 1), (400, 3)])
def test_the_bytes_are_those_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, count: int
) -> None:
    monkeypatch.setattr(weight_files, "_PIECE", 100)
    files, arrays = WeightFiles(tmp_path, most), tensors()
    for name, array in arrays.items():
        files.add(name, array)
    assert files.close() == sum(array.nbytes for array in arrays.values())
    assert files.count == count
    found = sorted(tmp_path.glob("*.safetensors"))
    names = [list(arrays)]
    if count > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        names = [[name for name in arrays if index[name] == path.name] for path in found]
    assert len(found) == count
    assert len(list(tmp_path.iterdir())) == count + (count > 1)
    for path, held in zip(found, names, strict=True):
        whole = {
            name: np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape) for name in held
        }
        safetensors.save_file(whole, tmp_path / "library", {"format": "pt"})
        assert path.read_bytes() == (tmp_path / "library").read_bytes()
        assert path.stat().st_mode == (tmp_path / "library").stat().st_mode
