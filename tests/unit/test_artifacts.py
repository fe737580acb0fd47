"""The store: complete or absent, damaged counts as missing, two builders make one artifact."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store import store as store_module
from pipeline.store.artifact import Artifact, check_files, read_manifest
from pipeline.store.deploy import deploy
from pipeline.store.digests import DigestMemo, digests, file_digest
from pipeline.store.files import take
from pipeline.store.store import Store

from ..conftest import PROJECT
from ..processes import started


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, key: str = "k1", text: str = "hello") -> Artifact:
    with store.workspace("stage", key) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file.txt").write_text(text)
        return store.publish(
            directory,
            stage="stage",
            key=key,
            material={"a": 1},
            inputs={},
            facts={"size": len(text)},
            seconds=1.0,
        )


def test_what_was_published_is_found_with_its_digests(store: Store) -> None:
    made = publish(store)
    found, damage = store.get("stage", "k1")
    assert damage is None
    assert found == made
    manifest = read_manifest(made.path)
    expected = hashlib.sha256(b"hello").hexdigest()
    assert manifest["files"] == {"sub/file.txt": {"sha256": expected, "bytes": 5}}
    assert manifest["facts"] == {"size": 5}
    assert not list((store.root / "tmp").iterdir())


def test_the_digest_follows_the_bytes_not_the_key(store: Store) -> None:
    first, same, other = publish(store, "a"), publish(store, "b"), publish(store, "c", "other")
    assert first.digest == same.digest
    assert first.digest != other.digest


def _truncate(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("hell")


def _flip(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("jello")


def _add(path: Path) -> None:
    path.with_name("extra.txt").write_text("x")


def _replace_by_link(path: Path) -> None:
    copy = path.parents[2] / "elsewhere.txt"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(copy)


def _replace_folder_by_link(path: Path) -> None:
    path.parent.rename(path.parents[3] / "moved")
    path.parent.symlink_to(path.parents[3] / "moved")


def _link_folder(path: Path) -> None:
    """What a directory walk that does not follow links leaves out without a word."""
    evil = path.parents[3] / "evil"
    evil.mkdir(exist_ok=True)
    (evil / "model.py").write_text("raise SystemExit")
    (path.parent / "2").symlink_to(evil)


def _link_to_nothing(path: Path) -> None:
    (path.parent / "dangling").symlink_to("nowhere")


def _rewrite(path: Path, **changes: object) -> None:
    manifest = path.parents[1] / "artifact.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def _forge(path: Path) -> None:
    _rewrite(path, facts={"size": 6})


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (Path.unlink, "sub/file.txt is missing"),
        (_truncate, "has 4 bytes, not 5"),
        (_flip, "its SHA-256 differs"),
        (_add, "sub/extra.txt is not listed"),
        (_forge, "artifact.json itself was changed"),
        (_replace_by_link, "sub/file.txt is a link, not a file that was built"),
        (_replace_folder_by_link, "sub is a link, not a file that was built"),
        (_link_folder, "sub/2 is a link, not a file that was built"),
        (_link_to_nothing, "sub/dangling is a link"),
        (lambda path: os.mkfifo(path.parent / "pipe"), "sub/pipe is a pipe or a device"),
        (lambda path: (path.parent / "3").mkdir(), "sub/3 is an empty folder"),
        (
            lambda path: (path.parents[1] / "artifact.json").write_text('{"a":' * 100_000),
            "no readable artifact.json. It is not JSON.",
        ),
        (
            lambda path: (path.parents[1] / "artifact.json").write_text("{"),
            "no readable artifact.json. It is not JSON.",
        ),
        (
            lambda path: (path.parents[1] / "artifact.json").unlink(),
            "no readable artifact.json. No such file or directory.",
        ),
        (lambda path: _rewrite(path, facts=None), "no readable"),
        (lambda path: _rewrite(path, files={"sub/file.txt": {"bytes": 5}}), "no readable"),
        (lambda path: _rewrite(path, files={"sub/file.txt": 3}), "no readable"),
        (lambda path: _rewrite(path, created=1), "no readable"),
    ],
)
def test_damage_is_a_miss_that_says_what_is_wrong(store: Store, harm, expected: str) -> None:
    path = publish(store).path / "sub" / "file.txt"
    harm(path)
    found, damage = store.get("stage", "k1")
    assert found is None
    assert damage is not None
    assert expected in damage.problems[0]
    assert [d.path for d in store.verify()] == [damage.path]
    publish(store)
    assert store.get("stage", "k1")[0] is not None
    assert store.verify() == []


def test_what_no_manifest_can_list_is_not_published(store: Store) -> None:
    def build(leave: Callable[[Path], object]) -> Artifact:
        with store.workspace("stage", "k") as directory:
            (directory / "file.txt").write_text("x")
            leave(directory)
            return store.publish(
                directory, stage="stage", key="k", material={}, inputs={}, facts={}, seconds=0
            )

    with pytest.raises(StoreError, match=r"link: a stage left something.* It is a link"):
        build(lambda folder: (folder / "link").symlink_to("file.txt"))
    assert store.artifacts() == []
    made = build(lambda folder: (folder / "a" / "b").mkdir(parents=True))
    assert store.get("stage", "k") == (made, None)


def test_a_failing_builder_leaves_nothing(store: Store) -> None:
    def build() -> None:
        with store.workspace("stage", "k") as directory:
            (directory / "half").write_text("x")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        build()
    assert store.artifacts() == []
    assert not list((store.root / "tmp").iterdir())


def test_what_a_killed_builder_left_is_swept_unless_it_is_alive(store: Store) -> None:
    left = store.root / "tmp" / "stage-k1-deadbeef"
    left.mkdir(parents=True)
    with store.lock("stage", "k2"):
        alive = store.root / "tmp" / "stage-k2-cafecafe"
        alive.mkdir()
        assert store.sweep() == 1
        assert alive.exists()
    assert not left.exists()


def test_the_second_builder_of_a_key_waits_for_the_first(store: Store) -> None:
    order: list[str] = []
    inside, release = threading.Event(), threading.Event()

    def first() -> None:
        with store.lock("stage", "k"):
            inside.set()
            release.wait(60)
            order.append("first")

    def second() -> None:
        with Store(store.root).lock("stage", "k"):
            order.append("second")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    inside.wait(60)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    release.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "second"]


# A process of its own, as another run is.
WAIT = """
import sys
from pathlib import Path
from pipeline.store.store import Store

def told(whom):
    print(whom, flush=True)

with Store(Path(sys.argv[1])).lock("stage", "k", doing="the second", on_wait=told):
    print("mine", flush=True)
"""


def test_whoever_waits_is_told_for_whom(store: Store) -> None:
    command = [sys.executable, "-c", WAIT, str(store.root)]
    with contextlib.ExitStack() as processes:
        with store.lock("stage", "k", doing="quantize of demo"):
            waiting = processes.enter_context(started(command, text=True))
            assert waiting.stdout
            told = waiting.stdout.readline()
        rest, _ = waiting.communicate(timeout=60)
    assert re.fullmatch(
        rf"waiting for another process: quantize of demo, pid {os.getpid()}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n",
        told,
    )
    assert rest == "mine\n"
    # Nobody holds it now, so nobody is told of, and no note is left.
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "mine\n"
    assert not list((store.root / "locks").glob("*.holder"))


def test_a_holder_without_a_note_is_waited_for_all_the_same(store: Store) -> None:
    command = [sys.executable, "-c", WAIT, str(store.root)]
    with contextlib.ExitStack() as processes:
        with store.lock("stage", "k"):
            (store.root / "locks" / "stage-k.holder").write_text("[]")
            waiting = processes.enter_context(started(command, text=True))
            assert waiting.stdout
            told = waiting.stdout.readline()
        rest, _ = waiting.communicate(timeout=60)
    assert (told, rest) == ("waiting for another process: the second\n", "mine\n")


def test_a_copy_is_equal_and_has_a_life_of_its_own(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than is copied at once
    source, copy = tmp_path / "model.safetensors", tmp_path / "copy"
    source.write_bytes(content)
    told: list[int] = []
    take(source, copy, told.append)
    assert sum(told) == len(content)
    assert copy.read_bytes() == content
    # As a training run does that saves into its folder again.
    with source.open("r+b") as file:
        file.write(b"other")
    assert copy.read_bytes() == content
    with copy.open("r+b") as file:
        file.write(b"third")
    assert source.read_bytes() == b"other" + content[5:]
    with pytest.raises(FileExistsError, match="copy"):
        take(source, copy)


def test_a_copy_through_a_link_to_another_file_system(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system here")
    with tempfile.NamedTemporaryFile(dir=elsewhere) as file:
        file.write(b"weights")
        file.flush()
        (tmp_path / "link").symlink_to(file.name)
        assert take(tmp_path / "link", tmp_path / "copy", link=True) == "copied"
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert not (tmp_path / "copy").is_symlink()


def test_a_full_disk_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device", "store/file")

    monkeypatch.setattr(store_module, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*--build-dir") as caught:
        publish(store)
    assert caught.value.exit_code == 5


def test_a_disk_that_fills_while_a_stage_writes_is_named(store: Store) -> None:
    with (
        pytest.raises(StoreError, match="No space left on device"),
        store.workspace("stage", "k"),
    ):
        raise OSError(28, "No space left on device")


def test_other_errors_of_a_stage_pass_through(store: Store) -> None:
    with (
        pytest.raises(FileNotFoundError, match="gone"),
        store.lock("stage", "k"),
        store.workspace("stage", "k"),
    ):
        raise FileNotFoundError(2, "gone")


def test_a_linked_file_keeps_its_mode_for_its_other_owner(store: Store, tmp_path: Path) -> None:
    cached = tmp_path / "blob"
    cached.write_text("x")
    cached.chmod(0o644)
    with store.workspace("stage", "k") as directory:
        (directory / "linked").hardlink_to(cached)
        (directory / "own").write_text("y")
        made = store.publish(
            directory, stage="stage", key="k", material={}, inputs={}, facts={}, seconds=0
        )
    assert cached.stat().st_mode & 0o777 == 0o644
    assert (made.path / "own").stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("content", ["[]", "{}", '{"x": [1]}', "{", '{"PATH": [1, 2, 3]}'])
def test_a_damaged_memo_costs_time_only(store: Store, content: str) -> None:
    made = publish(store)
    path = made.path / "sub" / "file.txt"
    (store.root / "digests.json").write_text(content.replace("PATH", str(path)))
    assert Store(store.root).get("stage", "k1")[0] == made


def test_a_memo_that_cannot_be_written_stops_nothing(store: Store) -> None:
    (store.root / "digests.json").mkdir(parents=True)
    publish(store)
    store.memo.save()
    assert store.get("stage", "k1")[0] is not None


def test_a_memo_is_written_when_something_was_learnt_and_keeps_what_others_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text(file.name)
    path = tmp_path / "memo"
    ours, theirs = DigestMemo(path), DigestMemo(path)
    wanted = [ours.digest(files[0]), theirs.digest(files[1])]
    ours.save()
    theirs.save()
    written = path.stat().st_ino
    for memo in (ours, theirs):
        memo.save()  # knows nothing that it has not written
    assert path.stat().st_ino == written
    wanted.append(ours.digest(files[2]))
    ours.save()
    monkeypatch.setattr("pipeline.store.digests.file_digest", lambda path: pytest.fail(path.name))
    assert DigestMemo(path).digests(files) == wanted


def test_deployment_is_a_checked_copy(store: Store, tmp_path: Path) -> None:
    artifact = publish(store)
    target = tmp_path / "out" / "repository"
    assert deploy(artifact, target, store)
    assert (target / "sub" / "file.txt").read_text() == "hello"
    assert check_files(target, read_manifest(target), memo=None) == []
    assert not deploy(artifact, target, store)
    (target / "sub" / "file.txt").unlink()
    (target / "sub" / "file.txt").write_text("edited")
    assert deploy(artifact, target, store)
    assert (target / "sub" / "file.txt").read_text() == "hello"
    assert [path.name for path in target.parent.iterdir()] == ["repository"]


def test_the_chain_of_custody_names_every_ancestor(store: Store) -> None:
    def descend(stage: str, key: str, inputs: dict[str, Artifact]) -> Artifact:
        with store.workspace(stage, key) as directory:
            (directory / "file").write_text(key)
            return store.publish(
                directory, stage=stage, key=key, material={}, inputs=inputs, facts={}, seconds=0
            )

    parent = publish(store, "parent")
    child = descend("child", "c", {"stage": parent})
    last = descend("grandchild", "g", {"child": child})
    chain = read_manifest(last.path)["chain"]
    assert chain["stage"] == {"key": "parent", "digest": parent.digest}
    assert chain["child"] == {"key": "c", "digest": child.digest}


def test_an_unmoved_file_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    store.memo.save()
    reread: list[Path] = []
    monkeypatch.setattr(
        "pipeline.store.digests.file_digest", lambda path: reread.append(path) or "x"
    )
    fresh = Store(store.root)
    assert fresh.get("stage", "k1")[0] is not None
    assert reread == []


def test_a_link_to_a_known_file_is_not_read_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = publish(store)
    target = tmp_path / "out" / "repository"
    deploy(artifact, target, store)
    reread: list[Path] = []

    def read(path: Path) -> str:
        reread.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("pipeline.store.digests.file_digest", read)
    assert not deploy(artifact, target, store)
    assert reread == []
    copy = target / "sub" / "file.txt"
    equal = copy.stat()
    copy.unlink()
    copy.write_text("jello")
    os.utime(copy, ns=(equal.st_atime_ns, equal.st_mtime_ns))
    # As on another file system, where a file may have the same number.
    monkeypatch.setattr("pipeline.store.digests.mark_of", lambda *_a, **_k: [5, equal.st_mtime, 7])
    fresh = Store(store.root)
    assert fresh.memo.digest(artifact.path / "sub" / "file.txt") == read(
        artifact.path / "sub/file.txt"
    )
    assert fresh.memo.digest(copy) == read(copy)


def test_digests_of_many_files_are_theirs_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / str(number) for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (12 - number) * 50_000)
    paths[5].unlink()
    wanted = [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.exists()]
    monkeypatch.setattr("pipeline.store.digests.WORTH_THREADS", 1)
    memo, calls = DigestMemo(tmp_path / "memo"), set()
    own = threading.get_ident()

    def read(path: Path) -> str:
        calls.add(threading.get_ident())
        time.sleep(0.01)
        return file_digest(path)

    monkeypatch.setattr("pipeline.store.digests.os.sched_getaffinity", lambda _pid: range(4))
    found = digests(paths, read)
    assert len(calls) == 4
    assert own not in calls
    for result in (found, memo.digests(paths), memo.digests(paths)):
        missing = result.pop(5)
        assert isinstance(missing, FileNotFoundError)
        assert missing.filename == str(paths[5])
        assert result == wanted
    memo.save()
    # What was learnt by threads is all there.
    monkeypatch.setattr("pipeline.store.digests.file_digest", lambda path: pytest.fail(path.name))
    assert DigestMemo(tmp_path / "memo").digests([p for p in paths if p.exists()]) == wanted
