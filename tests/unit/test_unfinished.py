"""What a stage leaves of work that did not end: who finds it, who does not, and when it goes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.errors import StoreError
from pipeline.running import planner, runner
from pipeline.stages.base import StageContext
from pipeline.store.holder import lock_path
from pipeline.store.store import Store
from pipeline.store.unfinished import OLD_S

from ..processes import started
from .test_run import House
from .test_store_command import call

WEEK = 7 * 86_400


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path)
    monkeypatch.setattr(planner, "STAGES", house.stages())
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    return house


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def leave(store: Store, key: str = "k", size: int = 10_000) -> Path:
    """What a killed stage leaves."""
    with contextlib.suppress(KeyboardInterrupt), store.begun("stage", key, {}) as directory:
        (directory / "state").write_bytes(b"x" * size)
        raise KeyboardInterrupt
    return directory


def folders(house: House) -> list[str]:
    root = house.build.store.root / "unfinished"
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def test_a_stage_that_failed_finds_what_it_left_and_nobody_else_does(house: House) -> None:
    quantize = next(stage for stage in planner.STAGES if stage.name == "quantize")
    found: list[list[str]] = []
    fail = True

    def work(context: StageContext) -> dict[str, str]:
        assert context.unfinished
        found.append([path.name for path in context.unfinished.iterdir()])
        (context.unfinished / f"layer-{len(found)}").write_text("half")
        if fail:
            raise KeyboardInterrupt
        (context.unfinished / f"layer-{len(found)}").rename(context.output / "out")
        return {}

    object.__setattr__(quantize, "run", work)
    for options in ({}, {}, {"force": frozenset({"quantize"})}):
        with pytest.raises(KeyboardInterrupt):
            house.run(**options)
        house.build.store.sweep()
    # A forced stage begins with nothing.
    assert found == [[], ["layer-1"], []]
    assert house.reasons()["quantize"] == "never ran; an earlier run left 4.0 KiB of it"
    with pytest.raises(KeyboardInterrupt):
        house.run("quantize.smoothquant_alpha=0.75")
    assert found[-1] == []
    fail = False
    result = house.run()
    assert found[-1] == ["layer-3"]
    key = result.stages["quantize"].key
    # That of the other key stays.
    assert len(folders(house)) == 1
    assert f"quantize-{key}" not in folders(house)
    assert (house.build.store.root / "quantize" / str(key) / "out").read_text() == "half"


def test_stages_that_leave_nothing_leave_no_folder(house: House) -> None:
    house.fail = {"compile": ValueError("no")}
    with pytest.raises(ValueError, match="no"):
        house.run()
    assert folders(house) == []


def test_what_is_left_of_a_key_whose_artifact_is_there_goes(house: House) -> None:
    key = house.run().stages["quantize"].key
    left = house.build.store.root / "unfinished" / f"quantize-{key}"
    left.mkdir()
    (left / "state").write_text("of a run that was killed after it had published")
    lock = ("quantize", str(key))
    with house.build.store.lock(*lock):
        house.run()
        assert left.exists()  # somebody works in it
    house.run()
    assert not left.exists()


def test_a_killed_process_leaves_it_for_the_next_one(store: Store) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.store.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "with store.lock('stage', 'k'), store.begun('stage', 'k', {}) as directory:\n"
        "    (directory / 'state').write_text('layer 3')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with started([sys.executable, "-c", code, str(store.root)], text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "written\n"
        assert store.unfinished.idle() == []  # it is worked on
        assert not store.unfinished.discard_idle("stage", "k")
        process.send_signal(signal.SIGKILL)
        process.wait()
    store.sweep()
    with store.begun("stage", "k", {}) as directory:
        assert (directory / "state").read_text() == "layer 3"
    assert not directory.exists()


def test_an_empty_folder_of_a_killed_process_is_swept(store: Store) -> None:
    leave(store, "kept")
    (store.root / "unfinished" / "stage-empty").mkdir()
    store.sweep()
    assert [left.key for left in store.unfinished.idle()] == ["kept"]


def _link(state: Path, outside: Path) -> None:
    state.symlink_to(outside)


def _hard_link(state: Path, outside: Path) -> None:
    state.hardlink_to(outside)


def _pipe(state: Path, _outside: Path) -> None:
    os.mkfifo(state)


def _folder(state: Path, outside: Path) -> None:
    state.parent.rmdir()
    state.parent.symlink_to(outside.parent)


def _file(state: Path, _outside: Path) -> None:
    state.parent.rmdir()
    state.parent.write_text("x")


@pytest.mark.parametrize("plant", [_link, _hard_link, _pipe, _folder, _file])
def test_nothing_that_is_planted_leads_out(
    store: Store, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    outside = tmp_path / "outside" / "precious"
    outside.parent.mkdir()
    outside.write_text("precious")
    state = leave(store) / "state"
    state.unlink()
    plant(state, outside)
    with store.begun("stage", "k", {}) as directory:
        assert directory.is_dir()
        assert not directory.is_symlink()
        assert list(directory.iterdir()) == []
        (directory / "state").write_text("mine")
    assert outside.read_text() == "precious"
    assert not os.path.lexists(directory)


def test_why_something_is_not_gone_on_with_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "linked").hardlink_to(leave(store) / "state")
    told: list[str] = []
    with store.begun("stage", "k", {}, note=told.append):
        pass
    assert told == [
        "stage begins anew, and not with what an earlier run left: state is linked from elsewhere"
    ]


def test_what_is_kept_is_told(store: Store) -> None:
    told: list[str] = []
    for name in ("", "state"):
        with (
            contextlib.suppress(KeyboardInterrupt),
            store.begun("stage", "k", {}, note=told.append) as directory,
        ):
            if name:
                (directory / name).write_bytes(bytes(range(256)) * 12 * 1024)
            raise KeyboardInterrupt
    assert told == ["stage: what it has done is kept (3.0 MiB), and another run goes on with it"]


def test_what_a_killed_run_linked_into_its_workspace_is_gone_on_with(store: Store) -> None:
    state = leave(store) / "state"
    workspace = store.root / "tmp" / "stage-k-0123abcd"
    workspace.mkdir(parents=True)
    (workspace / "state").hardlink_to(state)
    other = store.root / "tmp" / "stage-other-0123abcd"
    other.mkdir()
    with store.begun("stage", "k", {}) as directory:
        assert [path.name for path in directory.iterdir()] == ["state"]
        assert not workspace.exists()
        assert other.exists()


def test_who_looks_whether_a_lock_is_held_keeps_nobody_waiting(store: Store) -> None:
    path = lock_path(store.root, "stage-k")
    path.parent.mkdir(parents=True)
    told: list[str] = []
    held = threading.Event()

    def look() -> None:
        with FileLock(path):
            held.set()
            time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    held.wait()
    with store.lock("stage", "k", on_wait=told.append):
        looking.join()
    assert told == []


def test_a_full_disk_says_what_is_left_of_other_work(store: Store) -> None:
    def told(number: int) -> str:
        with pytest.raises(StoreError, match="cannot be written") as caught, store.writing():
            raise OSError(number, os.strerror(number))
        return str(caught.value)

    leave(store, size=3 << 20)
    full = told(errno.ENOSPC)
    assert "1 stage that did not end still holds 3.0 MiB: trtllm-pipeline store list" in full
    assert "store prune --unfinished removes them" in full
    assert "did not end" not in told(errno.EROFS)
    with store.lock("stage", "k"):
        # What this process works on is no space that could be freed.
        assert "did not end" not in told(errno.ENOSPC)


def test_room_is_kept_for_saying_that_the_disk_is_full(store: Store) -> None:
    root = store.root / "unfinished"
    with contextlib.suppress(KeyboardInterrupt), store.begun("stage", "k", {}) as directory:
        (directory / "state").write_text("all that there was room for")
        (reserve,) = (path for path in root.iterdir() if path.is_file())
        assert reserve.stat().st_blocks * 512 >= 1 << 20
        raise KeyboardInterrupt
    assert list(root.iterdir()) == [directory]
    reserve.write_bytes(bytes(1 << 20))  # a killed process leaves it
    with store.lock("stage", "k"):
        store.sweep()
        assert reserve.exists()
    store.sweep()
    assert list(root.iterdir()) == [directory]


def test_old_work_is_listed_and_pruned(tmp_path: Path) -> None:
    build = tmp_path / "build"
    store = Store(build / "store")
    old, young = leave(store, "a" * 64, 5000), leave(store, "b" * 64, 5000)
    assert OLD_S == WEEK
    for path in (old / "state", old):
        os.utime(path, (time.time() - WEEK - 7200,) * 2)
    shown = call(build, "list")
    assert f"not finished: stage {'a' * 12}, 8.0 KiB, 7 d old; prune removes it\n" in shown
    assert f"not finished: stage {'b' * 12}, 8.0 KiB, " in shown
    assert "old; a run of its recipe goes on with it\n" in shown
    rows = json.loads(call(build, "list", "--json"))
    assert [(row["key"][0], row["finished"], row["old"]) for row in rows] == [
        ("a", False, True),
        ("b", False, False),
    ]
    planned = json.loads(call(build, "prune", "--dry-run", "--json"))
    assert planned["unfinished"] == [str(old)]
    assert old.exists()
    shown = call(build, "prune")
    assert shown == f"removed {old}\n0 artifacts and 1 not finished, 8.0 KiB freed\n"
    assert (old.exists(), young.exists()) == (False, True)
    with store.lock("stage", "b" * 64):
        call(build, "prune", "--unfinished")
        assert young.exists()  # somebody works in it
    call(build, "prune", "--unfinished")
    assert not young.exists()
