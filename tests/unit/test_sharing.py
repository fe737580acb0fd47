"""Whether a large model takes disk is foretold as it comes, and the reason is the one there is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.effort import planned
from pipeline.effort.planned import Effort, effort_of
from pipeline.store import files
from pipeline.store.files import take

from ..conftest import PROJECT
from .test_borrowed import WEIGHTS, House, house
from .test_effort import GIB, facts_of, recipe_of
from .test_source import model

__all__ = ["house", "model"]
SIZE = 5 * GIB
NOBODY = "65534"
# How os.link fails, and what of the reason and of the remedy tells it from the others.
REFUSALS = {
    errno.EXDEV: ("are not in one mount", "one volume of a container"),
    errno.EPERM: ("without links, or where files are immutable", "lsattr"),
    errno.EOPNOTSUPP: ("has no links", "ext4 or XFS"),
    errno.ENOSYS: ("has no links", "ext4 or XFS"),
    errno.EMLINK: ("as many links as", "store prune"),
    errno.EACCES: ("was refused: Permission denied", "what ln says"),
}

# Foretells, and then does it; as another user, whom the files of Python may be closed to.
PROGRAM = """
import json, os, sys
from pathlib import Path
from pipeline.store import files
from pipeline.store.sharing import explained, obstacle
files.cloned = lambda _source, _target: False
for user in map(int, sys.argv[2:]):
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
model, build, said = Path(sys.argv[1], "model"), Path(sys.argv[1], "build"), []
weights = model / "model.safetensors"
found = obstacle(model / "config.json", [weights], build)
taken = files.take(weights, build / "copy", link=True, on_refusal=said.append)
print(json.dumps({
    "devices": len({model.stat().st_dev, build.stat().st_dev}),
    "taken": taken,
    "told": explained(said[0], weights).why if said else None,
    "foretold": found.why if found else None,
}))
"""


class Place:
    """A large model, of which no byte is on the disk, and where it goes."""

    def __init__(self, root: Path) -> None:
        self.root, self.model, self.build = root, root / "model", root / "none" / "build"
        self.model.mkdir()
        self.weights = self.model / WEIGHTS
        (self.model / "config.json").write_text("{}")
        self.weights.touch()
        os.truncate(self.weights, SIZE)

    def effort(self) -> Effort:
        return effort_of(
            recipe_of(),
            facts_of("llama-3.1-8b"),
            ["source"],
            directory=self.model,
            build=self.build,
            remembered=None,
            left={},
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # As on most file systems, also where this one could share blocks.
    monkeypatch.setattr(files, "cloned", lambda _source, _target: False)
    return Place(tmp_path)


def fill(folder: Path) -> None:
    """Makes a folder that PROGRAM takes for a model's."""
    (folder / "config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(b"weights")


def asked(root: Path, *user: str, inside: Sequence[str] = ()) -> dict[str, Any]:
    """Runs PROGRAM in a process of its own."""
    command = [*inside, sys.executable, "-B", "-c", PROGRAM, str(root), *user]
    done = subprocess.run(command, cwd=PROJECT, check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def refusing(number: int) -> Callable[..., None]:
    def link(*_paths: Any, **_options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return link


def test_what_is_linked_takes_no_disk_and_asking_leaves_no_trace(place: Place) -> None:
    def marks() -> dict[Path, tuple[int, ...]]:
        found = {path: path.stat() for path in place.root.rglob("*")}
        return {
            path: (one.st_ino, one.st_nlink, one.st_mtime_ns, one.st_ctime_ns)
            for path, one in found.items()
        }

    before = marks()
    effort = place.effort()
    assert (effort.stages[0].disk.kept, effort.stages[0].disk.least) == (0, 0)
    assert effort.warnings == ()
    # The change time is in the marks by which stores tell that somebody wrote into a model.
    assert marks() == before


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_model_that_cannot_be_linked_is_refused_where_the_disk_is_too_small(
    place: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    found = place.effort()
    assert found.stages[0].disk.least == SIZE
    monkeypatch.setattr(planned, "free", lambda _build: 2 * GIB)
    effort = place.effort()
    assert effort.refusal is not None
    assert effort.refusal.why == "source 5.0 GiB"
    (warning,) = (one for one in effort.warnings if one.key == "model.source")
    why, fix = REFUSALS[number]
    assert why in warning.why
    assert fix in warning.remedy
    assert [path.name for path in place.root.iterdir()] == ["model"]


def test_what_shares_blocks_takes_no_disk_wherever_it_lies(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subvolumes of btrfs are devices of their own, and have no links from one to another."""
    monkeypatch.setattr(files, "cloned", lambda _source, _target: True)
    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    monkeypatch.setattr("pipeline.store.sharing._mount", lambda path: (hash(path), 0))
    assert place.effort().stages[0].disk.kept == 0


def test_files_that_are_too_small_to_be_linked_are_copied(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.effort.disk.LINKED_FROM", SIZE + 1)
    effort = place.effort()
    assert effort.stages[0].disk.least == SIZE
    assert "too small to be linked" in effort.warnings[0].why


def test_two_mounts_of_one_disk_have_no_links_between_them(tmp_path: Path) -> None:
    """As two volumes of a container have that are folders of one disk."""
    unshare = shutil.which("unshare")
    for name in ("model", "build", "at/model", "at/build"):
        (tmp_path / name).mkdir(parents=True)
    fill(tmp_path / "model")
    mounted = " && ".join(
        f"mount --bind {tmp_path}/{name} {tmp_path}/at/{name}" for name in ("model", "build")
    )
    if not unshare or subprocess.run([unshare, "-rm", "sh", "-c", mounted], check=False).returncode:
        pytest.skip("this user may not make mounts of its own (unshare -rm)")
    inside = [unshare, "-rm", "sh", "-c", f'{mounted} && exec "$0" "$@"']
    found = asked(tmp_path / "at", inside=inside)
    assert found["devices"] == 1
    assert found["taken"] == "copied"
    assert found["told"] == found["foretold"]
    assert "not in one mount" in found["told"]
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == ["copy"]


def test_a_file_of_another_user_is_linked_by_whoever_may_write_it() -> None:
    protected = Path("/proc/sys/fs/protected_hardlinks")
    if os.geteuid() or not protected.is_file() or protected.read_text().strip() == "0":
        pytest.skip("takes root, to become another user, and a kernel that protects links")
    # Where everybody may come, as not into pytest's folder.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("model", "build"):
            (root / name).mkdir()
        (root / "build").chmod(0o777)
        fill(root / "model")
        found = asked(root, NOBODY)
        assert found["taken"] == "copied"
        assert found["told"] == found["foretold"]
        assert "belong to another user" in found["told"]
        (root / "build" / "copy").unlink()
        (root / "model" / WEIGHTS).chmod(0o666)
        found = asked(root, NOBODY)
        assert (found["taken"], found["told"], found["foretold"]) == ("linked", None, None)


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_run_that_copies_says_why_and_what_to_do(
    house: House, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    taken = house.snapshot()
    assert (taken / WEIGHTS).stat().st_nlink == 1
    note = house.notes.texts[-1]
    why, fix = REFUSALS[number]
    assert "of its own, as" in note
    assert why in note
    assert fix in note


def test_a_run_says_that_the_files_are_of_another_user(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.sharing._may_link", lambda _path: False)
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    house.snapshot()
    assert "belong to another user" in house.notes.texts[-1]
    assert "protected_hardlinks" in house.notes.texts[-1]


def test_whoever_takes_a_file_is_told_why_it_was_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    monkeypatch.setattr(files, "cloned", lambda _source, _target: False)
    told: list[OSError] = []
    assert take(tmp_path / "file", tmp_path / "a", link=True, on_refusal=told.append) == "linked"
    monkeypatch.setattr(os, "link", refusing(errno.EMLINK))
    assert take(tmp_path / "file", tmp_path / "b", link=True, on_refusal=told.append) == "copied"
    assert [error.errno for error in told] == [errno.EMLINK]
