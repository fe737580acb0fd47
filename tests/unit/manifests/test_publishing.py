"""Repositories get into a folder whole or not at all, and so do manifests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import StoreError, UsageError
from pipeline.manifests.writing import write_folder
from pipeline.store import publish as publishing
from pipeline.store.publish import publish
from tests.conftest import PROJECT

from .support import write_build


def manifest_of(repository: Path) -> dict[str, object]:
    return dict(json.loads((repository / "artifact.json").read_text()))


def test_it_is_copied_once_under_its_digest(tmp_path: Path) -> None:
    repository = write_build(tmp_path / "m")
    volume = tmp_path / "volume"
    volume.mkdir()
    (repository / "provenance.dsse.json").write_text("{}")  # a signature is not in the manifest
    place, copied = publish(repository, manifest_of(repository), volume)
    assert copied
    assert place == volume / str(manifest_of(repository)["digest"])
    for path in repository.rglob("*"):
        if path.is_file():
            there = place / path.relative_to(repository)
            assert there.read_bytes() == path.read_bytes()
            assert there.stat().st_ino != path.stat().st_ino
            assert there.stat().st_mode & 0o777 == 0o644
    assert publish(repository, manifest_of(repository), volume) == (place, False)
    assert [path.name for path in volume.iterdir()] == [place.name]


def test_a_copy_that_differs_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = write_build(tmp_path / "m")
    manifest = manifest_of(repository)
    # As a disk or a network that loses a bit would.
    (repository / "ensemble/config.pbtxt").write_text('name: "ensemblf"\n')
    with pytest.raises(StoreError, match=r"not the repository: .*config.pbtxt"):
        publish(repository, manifest, tmp_path)
    assert not (tmp_path / str(manifest["digest"])).exists()
    assert not list(tmp_path.glob(f"{publishing.INCOMING}*"))


def test_what_is_damaged_there_is_told(tmp_path: Path) -> None:
    repository, volume = write_build(tmp_path / "m"), tmp_path / "volume"
    volume.mkdir()
    place, _ = publish(repository, manifest_of(repository), volume)
    (place / "ensemble/config.pbtxt").unlink()
    with pytest.raises(StoreError, match=r"config.pbtxt is missing"):
        publish(repository, manifest_of(repository), volume)


def test_one_who_is_slower_takes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, volume = write_build(tmp_path / "m"), tmp_path / "volume"
    volume.mkdir()
    manifest = manifest_of(repository)
    real = publishing._sweep

    def meanwhile(folder: Path) -> None:
        monkeypatch.setattr(publishing, "_sweep", real)
        publish(repository, manifest, volume)  # somebody else, between the look and the rename

    monkeypatch.setattr(publishing, "_sweep", meanwhile)
    place, copied = publish(repository, manifest, volume)
    assert not copied
    assert [path.name for path in volume.iterdir()] == [place.name]


def test_what_a_killed_copy_left_goes_with_the_next_one(tmp_path: Path) -> None:
    repository, volume = write_build(tmp_path / "m"), tmp_path / "volume"
    old, new = (volume / f"{publishing.INCOMING}{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "part").write_text("x")
    long_ago = time.time() - publishing.ABANDONED_S - 1
    os.utime(old, (long_ago, long_ago))
    publish(repository, manifest_of(repository), volume)
    assert not old.exists()
    assert new.exists()  # somebody may be copying


def test_a_folder_of_manifests_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "manifests"
    write_folder({"a.yaml": "1\n", "templates/b.yaml": "2\n"}, folder)
    write_folder({"c.yaml": "3\n"}, folder)
    assert [path.name for path in folder.iterdir() if path.name[0] != "."] == ["c.yaml"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_folder({"a.yaml": "1\n"}, theirs)  # it was empty
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(theirs)
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (other, link, file):
        with pytest.raises(UsageError, match="there is something else already"):
            write_folder({"a.yaml": "1\n"}, place)
    assert (other / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "manifests"
    write_folder({"a.yaml": "1\n"}, folder)
    real = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if Path(target) == folder and ".old-" not in self.name:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(UsageError, match="No space left"):
        write_folder({"b.yaml": "2\n"}, folder)
    assert (folder / "a.yaml").read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_canary_says_why_there_is_no_token() -> None:
    script = PROJECT / "pipeline/manifests/scripts/canary.py"
    nobody = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, str(script), "Once", nobody], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no token: ")


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        (b'data: {"text_output": " upon"}\n\n', 0, ""),
        (b'data: {"error": "the engine stopped working"}\n\n', 1, "the engine stopped working"),
        (b'data: {"text_output": "a"}\n\ndata: {"error": "lost"}\n\n', 1, "lost"),
        (b"", 1, "ended without one"),
        (b"data: nonsense\n\n", 1, "no token"),
    ],
)
def test_the_canary_reads_the_stream(body: bytes, code: int, why: str) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        script = PROJECT / "pipeline/manifests/scripts/canary.py"
        url = f"http://127.0.0.1:{server.server_address[1]}"
        done = subprocess.run(
            [sys.executable, str(script), "Once", url], capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert done.returncode == code, done.stderr
    assert why in done.stderr
