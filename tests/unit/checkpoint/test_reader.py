from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pipeline.checkpoint.reader import TensorFile
from pipeline.errors import CheckpointError
from tests.unit.checkpoint.support import write_safetensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rank0.safetensors"
    write_safetensors(
        path,
        {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.array([1.5, -448.0, 0.0625], ml_dtypes.float8_e4m3fn),
            "c": np.array([1.0, 3.0e38], ml_dtypes.bfloat16),
            "empty": np.zeros((0, 4), np.float16),
        },
    )
    return path


def rewrite_header(path: Path, **changes: object) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length]) | changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_every_dtype_reads_back(path: Path) -> None:
    file = TensorFile(path)
    assert file.read("a").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert file.read("b").astype(np.float32).tolist() == [1.5, -448.0, 0.0625]
    assert file.read("c").dtype == ml_dtypes.bfloat16
    assert file.read("empty").shape == (0, 4)


def test_it_agrees_with_the_reference_implementation(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"x": np.random.default_rng(0).normal(size=(5, 7)).astype(np.float16)}
    safetensors.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert np.array_equal(TensorFile(tmp_path / "x.safetensors").read("x"), arrays["x"])


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_named(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors: .*not a complete safetensors"):
        TensorFile(path)


def test_bytes_after_the_last_tensor_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="Its tensors end at byte"):
        TensorFile(path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]}, "a has 24 bytes"),
        ({"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}, "negative size"),
        ({"dtype": "Q4", "shape": [6], "data_offsets": [0, 24]}, "entry of a is malformed"),
        ({"dtype": "F32", "shape": [6]}, "entry of a is malformed"),
        ({"dtype": "F32", "shape": [6], "data_offsets": [4, 28]}, "overlaps another|leaves a gap"),
        (7, "entry of a is malformed"),
    ],
)
def test_a_lying_header_is_refused(path: Path, entry: object, reason: str) -> None:
    rewrite_header(path, a=entry)
    with pytest.raises(CheckpointError, match=reason):
        TensorFile(path)


HUGE = "9" * 4000


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ('"F32", "shape": [1e999], "data_offsets": [0, 24]', "the number 1e999, which is not fini"),
        ('"F32", "shape": [6], "data_offsets": [0, 1e999]', "the number 1e999, which is not fini"),
        ('"F32", "shape": [NaN], "data_offsets": [0, 24]', "the number NaN, which is not finite"),
        ('"F32", "shape": [6.0], "data_offsets": [0, 24]', "a has 6.0 for a size or an offset"),
        ('"F32", "shape": [true, 6], "data_offsets": [0, 24]', "a has True for a size or an off"),
        ('"F32", "shape": ["6"], "data_offsets": [0, 24]', "a has 6 for a size or an offset"),
        ('"F32", "shape": [[6]], "data_offsets": [0, 24]', r"a has \[6\] for a size or an offset"),
        ('"F32", "shape": "6", "data_offsets": [0, 24]', "a has 6 for a size or an offset"),
        ('"F32", "shape": [6], "data_offsets": [-1, 23]', "negative size or offset"),
        ('"F32", "shape": [6], "data_offsets": [24, 0]', "a has -24 bytes"),
        ('"F32", "shape": [6], "data_offsets": [0, 24, 30]', "entry of a is malformed"),
        ('"F32", "shape": null, "data_offsets": [0, 24]', "entry of a is malformed"),
        ('["F32"], "shape": [6], "data_offsets": [0, 24]', "entry of a is malformed"),
        (f'"F32", "shape": [{HUGE}], "data_offsets": [0, 24]', "a number of 4000 digits"),
        (f'"F32", "shape": [6], "data_offsets": [0, {HUGE}]', "a number of 4000 digits"),
        (
            f'"F32", "shape": [{",".join([HUGE] * 2000)}], "data_offsets": [0, 24]',
            "a number of 4000 digits",
        ),
        (
            f'"F32", "shape": [{",".join(["9" * 60] * 20_000)}], "data_offsets": [0, 24]',
            "a has 20000 dimensions",
        ),
        (
            f'"F32", "shape": [{",".join(["9" * 60] * 60)}], "data_offsets": [0, 24]',
            "a has 24 bytes, its shape .* needs another",
        ),
        ('"F32", "shape": [6], "data_offsets": [0, 24]}, "a": {"dtype": "F32"', "names a twice"),
        (f'"F32", "shape": {"[" * 50_000}{"]" * 50_000}', "nested too deeply"),
        (f'"F32", "shape": {"[" * 200}{"]" * 200}', "nested too deeply"),
    ],
    ids=lambda value: value[:40],
)
def test_numbers_that_no_tensor_has_are_refused_at_once(
    path: Path, entry: str, reason: str
) -> None:
    header = f'{{"a": {{"dtype": {entry}}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with pytest.raises(CheckpointError, match=reason) as caught:
        TensorFile(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("header", [b"[]", b"7", b'"a"', b"null", b'{"a"', b"\xff", b""])
def test_a_header_that_is_no_object_is_refused(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with pytest.raises(CheckpointError, match="Its header is not"):
        TensorFile(path)


def test_a_pickle_is_not_mistaken_for_safetensors(path: Path) -> None:
    path.write_bytes(b"\x80\x02}q\x00X\x05\x00\x00\x00hello" * 10)
    with pytest.raises(CheckpointError, match="Its header claims"):
        TensorFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: the file cannot be read"):
        TensorFile(tmp_path / "gone.safetensors")


def test_pages_that_were_read_can_be_let_go(tmp_path: Path) -> None:
    size = 32 << 20
    write_safetensors(tmp_path / "big", {"a": np.ones(size, np.int8)})
    file = TensorFile(tmp_path / "big")
    values, before = file.read("a"), mapped_bytes()
    assert int(values.sum(dtype=np.int64)) == size
    assert mapped_bytes() - before > size * 0.9
    file.release()
    assert mapped_bytes() - before < size * 0.1
    assert values[-1] == 1  # a view is still good


def mapped_bytes() -> int:
    """Pages of files that count as memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("RssFile"))
    return int(line.split()[1]) << 10
