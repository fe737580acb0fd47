"""What a walk over the layers saves is found again whole, by whoever computes alike."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from pipeline._version import __version__
from pipeline.checkpoint.rank_file import RankFile
from pipeline.layers import state
from pipeline.layers.state import State, computing
from tests.conftest import PROJECT

ONE = {"threads": 1, "processor": "a"}


def hidden() -> list[torch.Tensor]:
    """Of all dtypes that hidden states have; one is no contiguous piece of memory."""
    torch.manual_seed(1)
    wide = torch.randn(4, 6, 10)
    return [wide, wide.to(torch.bfloat16)[:, ::2], wide.half()]


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "state"
    State(path, ONE).save(3, hidden())
    State(path, ONE).save(4, hidden())
    found = State(path, ONE).load()
    assert found is not None
    assert found.finished == 4
    assert len(found.tensors) == len(hidden())
    for one, other in zip(found.tensors, hidden(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    found.tensors[0].add_(1)  # the memory is its own
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    path.unlink()
    assert State(path, ONE).load() is None


def test_what_another_machine_computed_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "state"
    State(path, ONE).save(3, hidden())
    assert State(path, ONE | {"threads": 2}).load() is None
    assert State(path, ONE | {"processor": "b"}).load() is None
    assert State(path, ONE).load() is not None
    assert computing()["threads"] == torch.get_num_threads()
    assert computing()["version"] == __version__


def test_another_order_of_sums_or_other_instructions_are_another_machine() -> None:
    """Products of one processor have other bits then: each is asked of a process of its own."""
    program = (
        "import json; from pipeline.layers.state import computing; print(json.dumps(computing()))"
    )

    def of(**chosen: str) -> str:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MKL_")
        }
        return subprocess.run(
            [sys.executable, "-c", program], env=environment | chosen, cwd=PROJECT, check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip

    if json.loads(of())["order"] is None:
        pytest.skip("this build of torch is without MKL")
    environments: list[dict[str, str]] = [
        {},
        {"MKL_CBWR": "COMPATIBLE"},
        {"MKL_CBWR": "AUTO,STRICT"},
        {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ]
    assert len({of(**chosen) for chosen in environments}) == len(environments)
    assert of() == of()


def test_a_save_that_fails_takes_no_room_and_keeps_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    State(path, ONE).save(3, hidden())

    def full(_file: RankFile) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RankFile, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        State(path, ONE).save(4, hidden())
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    found = State(path, ONE).load()
    assert found is not None
    assert found.finished == 3


@pytest.mark.parametrize("damage", ["cut", "bit", "no file", "no header", "other tensors"])
def test_a_damaged_file_counts_as_none(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    State(path, ONE).save(3, hidden())
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "bit":
        data[-400] ^= 1
        path.write_bytes(data)
    elif damage == "no header":
        path.write_bytes(b"\xff" * 100)
    elif damage == "other tensors":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(2)}, path)
    else:
        path.unlink()
    assert State(path, ONE).load() is None


def test_a_save_is_due_after_its_interval_and_never_takes_much_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 119.9, 120.0, 121.0, 131.0, 330.9, 331.0))
    monkeypatch.setattr(state.time, "monotonic", lambda: next(clock))
    kept = State(tmp_path / "state", ONE)
    assert not kept.due
    assert kept.due
    kept.save(1, hidden())  # takes ten seconds
    assert not kept.due
    assert kept.due


def test_saving_needs_no_second_copy(tmp_path: Path) -> None:
    big = torch.zeros(4 << 20, dtype=torch.uint8).view(torch.float16)
    tracemalloc.start()
    State(tmp_path / "state", ONE).save(1, [big])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
