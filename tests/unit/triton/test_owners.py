"""Whose things are removed: those of dead owners, and nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.triton.guardian import SHARED_MEMORY
from pipeline.triton.owners import MARK, Owner, places, sweep
from tests.conftest import PROJECT

OWNS = (
    "import sys, time; from pathlib import Path; from pipeline.triton.owners import Owner\n"
    "owner = Owner(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))\n"
    "print('owns', flush=True); time.sleep(60)"
)


def new_prefix() -> str:
    return f"trtllm_pipeline_{uuid.uuid4().hex[:12]}_"


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    path = tmp_path / "tritonserver-x"
    (path / "lib").mkdir(parents=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = places(tmp_path)
    assert found
    return found


@pytest.fixture
def region() -> Iterator[Path]:
    path = SHARED_MEMORY / f"{new_prefix()}region"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def test_a_dead_owners_things_are_removed_and_a_living_ones_are_not(
    folder: Path, runtime: Path, region: Path
) -> None:
    prefix = region.name.removesuffix("region")
    command = [sys.executable, "-c", OWNS, prefix, str(runtime), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as owner:
        assert owner.stdout
        owner.stdout.readline()
        assert sweep(folder) == []
        assert runtime.is_dir()
        assert region.exists()
        owner.kill()
        owner.wait()
    assert sweep(folder) == [prefix]
    assert not runtime.exists()
    assert not region.exists()
    assert list(folder.iterdir()) == []
    assert sweep(folder) == []


def test_a_co_owner_keeps_it(folder: Path, runtime: Path) -> None:
    owner = Owner(new_prefix(), runtime, folder)
    with subprocess.Popen(["sleep", "60"], pass_fds=owner.shared) as guardian:
        os.close(owner.shared[0])
        assert sweep(folder) == []
        guardian.kill()
    assert len(sweep(folder)) == 1


def test_a_released_server_leaves_no_file(folder: Path, runtime: Path) -> None:
    owner = Owner(new_prefix(), runtime, folder)
    assert len(list(folder.iterdir())) == 1
    owner.release()
    owner.release()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mark", [None, "trtllm_pipeline_000000000000_"])
def test_a_folder_that_is_not_marked_stays(folder: Path, runtime: Path, mark: str | None) -> None:
    if mark:
        (runtime / MARK).write_text(mark)
    prefix = new_prefix()
    (folder / "x.json").write_text(json.dumps({"prefix": prefix, "runtime": str(runtime)}))
    assert sweep(folder) == [prefix]
    assert runtime.is_dir()


@pytest.mark.parametrize("prefix", ["", "trtllm_pipeline_", "x", "trtllm_pipeline_0123456789ab_*"])
def test_a_prefix_that_is_none_of_ours_removes_nothing(
    folder: Path, runtime: Path, region: Path, prefix: str
) -> None:
    (runtime / MARK).write_text(prefix)
    (folder / "x.json").write_text(json.dumps({"prefix": prefix, "runtime": str(runtime)}))
    (folder / "y.json").write_text("[")
    assert sweep(folder) == []
    assert runtime.is_dir()
    assert region.exists()


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    found = places(tmp_path)
    assert found
    found.chmod(0o777)
    assert places(tmp_path) is None
    found.rmdir()
    found.symlink_to(tmp_path)
    assert places(tmp_path) is None
