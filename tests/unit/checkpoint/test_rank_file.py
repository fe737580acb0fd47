"""A rank file has the bytes that the safetensors library writes of the same tensors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint.rank_file import ORDER, Described, RankFile
from pipeline.checkpoint.reader import DTYPE_NAMES, numpy_dtype

safetensors = pytest.importorskip("safetensors.numpy")


def tensors() -> dict[str, np.ndarray]:
    """Two of every dtype, of shapes that end odd, under names out of order."""
    generator, found = np.random.default_rng(3), {}
    for number, stored in enumerate(ORDER):
        dtype = numpy_dtype(DTYPE_NAMES[stored])
        for name, shape in ((f"b{number}", (3, 5)), (f"a{99 - number}.é", (7,))):
            found[name] = generator.integers(0, 2, shape).astype(dtype)
    return found


def described(arrays: dict[str, np.ndarray]) -> dict[str, Described]:
    return {name: Described(array.dtype.name, array.shape) for name, array in arrays.items()}


def test_the_bytes_are_those_of_the_library_whatever_the_order(tmp_path: Path) -> None:
    arrays = tensors()
    safetensors.save_file(arrays, tmp_path / "library")
    with RankFile(tmp_path / "own", described(arrays)) as file:
        for name in sorted(arrays, reverse=True):
            file.write(name, arrays[name])
        file.sync()
    assert (tmp_path / "own").read_bytes() == (tmp_path / "library").read_bytes()
    assert (tmp_path / "own").stat().st_mode == (tmp_path / "library").stat().st_mode


def test_pieces_are_put_where_they_belong_and_the_rest_is_zero(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float16).reshape(4, 3)
    with RankFile(tmp_path / "own", {"x": Described("float16", (6, 3))}) as file:
        file.write("x", whole[2:], at=2 * 3 * 2)
        file.write("x", whole[:2].T.copy().T)  # not contiguous
    found = safetensors.load_file(tmp_path / "own")["x"]
    assert np.array_equal(found, np.pad(whole, ((0, 2), (0, 0))))


def test_a_file_that_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    arrays = tensors()
    safetensors.save_file(arrays, tmp_path / "library")
    one, *others = arrays
    with RankFile(tmp_path / "own", described(arrays)) as file:
        file.write(one, arrays[one])
    with RankFile(tmp_path / "own", described(arrays), keep=True) as file:
        for name in others:
            file.write(name, arrays[name])
    assert (tmp_path / "own").read_bytes() == (tmp_path / "library").read_bytes()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with (
        RankFile(tmp_path / "own", {"x": Described("int8", (4,))}) as file,
        pytest.raises(ValueError, match="x has 4 bytes, and 2 \\+ 3 were written"),
    ):
        file.write("x", np.zeros(3, np.int8), at=2)


def test_a_file_that_cannot_be_begun_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(OSError, match="No space left"):
        RankFile(tmp_path / "own", {"x": Described("int8", (4,))})
    assert set(Path("/proc/self/fd").iterdir()) == before
