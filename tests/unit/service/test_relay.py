"""The relay of a server's log: whole lines, bounded, and never in the server's way."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.service import relay as relay_module
from pipeline.service.destination import LIMIT_BYTES, default_place, destinations
from pipeline.service.relay import Relay, reopening
from pipeline.service.sink import Sink
from pipeline.triton.log import RECENT_BYTES, lines_since, open_log, written_since


def wait_for(condition: Callable[[], object], within_s: float = 60) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def test_lines_of_the_server_and_ours_are_whole(tmp_path: Path) -> None:
    sink = Sink.open(tmp_path / "log")
    with Relay(sink, sink) as relay, open_log(relay.log) as server:
        for number in range(300):
            # As C++ streams do, a line comes in pieces.
            for piece in (f"server {number} ", "x" * 700, "\n"):
                os.write(server.fileno(), piece.encode())
            relay.say(f"ours {number}")
            if number % 50 == 0:
                time.sleep(0.12)
        os.write(server.fileno(), b"the last one has no end")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line.startswith("ours")] == [
        f"ours {number}" for number in range(300)
    ]
    assert [line for line in lines if line.startswith("server")] == [
        f"server {number} {'x' * 700}" for number in range(300)
    ]
    assert "the last one has no end" in lines
    assert len(lines) == 601


def test_what_was_handed_on_is_given_back_and_the_end_stays_to_be_searched(tmp_path: Path) -> None:
    sink = Sink.open(tmp_path / "log")
    written = 0
    with Relay(sink, sink) as relay, open_log(relay.log) as server:
        for number in range(20):
            written += os.write(
                server.fileno(), (f"{number:04}" + "y" * 995 + "\n").encode() * 1000
            )
            assert wait_for(lambda w=written: (tmp_path / "log").stat().st_size == w)
        os.write(server.fileno(), b"the cause\n")
        assert wait_for(lambda: os.fstat(server.fileno()).st_blocks * 512 < 4 * RECENT_BYTES)
        assert os.fstat(server.fileno()).st_size == written + 10
        recent = written_since(server, 0)
        assert len(recent) == RECENT_BYTES
        assert recent.endswith(b"\nthe cause\n")
        assert b"\0" not in recent
        assert lines_since(server, written) == (b"the cause\n", written + 10)
    assert (tmp_path / "log").stat().st_size == written + 10


def test_a_reader_that_stopped_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MOST_BEHIND", 200_000)
    monkeypatch.setattr(relay_module, "LAST_WORDS_S", 0.2)
    reader, writer = os.pipe()
    try:
        with Relay(Sink(writer), Sink(writer)) as relay, open_log(relay.log) as server:
            for _ in range(100):
                os.write(server.fileno(), (b"z" * 9_999 + b"\n"))
                relay.say("ours")
            time.sleep(0.3)
        os.close(writer)
        told = b""
        while select.select([reader], [], [], 5)[0] and (part := os.read(reader, 1 << 16)):
            told += part
    finally:
        os.close(reader)
    assert told.startswith(b"z" * 9_999 + b"\n")
    assert len(told) < 1 << 17


def test_what_is_left_out_ends_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MOST_BEHIND", 200_000)
    reader, writer = os.pipe()
    with Relay(Sink(writer), Sink.open(tmp_path / "ours")) as relay, open_log(relay.log) as server:
        os.write(server.fileno(), (b"z" * 997 + b"\n") * 1000 + b"the first half")
        mark = 1000 * 998
        assert wait_for(lambda: relay._read == mark, 5)
        told = b""
        os.write(server.fileno(), b" and the second\n")
        while b"second" not in told and select.select([reader], [], [], 5)[0]:
            told += os.read(reader, 1 << 16)
    os.close(writer)
    os.close(reader)
    lines = told.decode().splitlines()
    assert lines[-1] == "the first half and the second"
    assert re.fullmatch(r"\d+ bytes of the log were left out", lines[-2])
    assert set(lines[:-2]) == {"z" * 997}


def test_what_a_full_or_closed_place_did_not_take_is_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    sink = Sink.open(tmp_path / "fifo")
    sink.write(b"one\n")
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)
    sink.write(b"two\nthree\n")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    sink.write(b"four\n")
    assert os.read(reader, 100) == (b"2 lines of the log could not be written: Broken pipe\nfour\n")
    os.close(reader)
    sink.close()


def test_half_a_line_on_a_full_disk_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, write, room = Sink.open(tmp_path / "log"), os.write, [7]

    def limited(number: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(number, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    sink.write(b"one\ntwo or three\n")
    room[0] = 1000
    sink.write(b"four\n")
    sink.close()
    assert (tmp_path / "log").read_text().splitlines() == [
        *("one", "two"),
        "1 lines of the log could not be written: No space left on device",
        "four",
    ]


def test_a_full_device_is_no_reason_to_end() -> None:
    sink = Sink.open(Path("/dev/full"))
    sink.write(b"lost\n")
    assert sink.is_idle
    sink.close()


@contextmanager
def default_hangup() -> Iterator[None]:
    """As in a service; under nohup the signal is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_that_was_moved_is_opened_anew(tmp_path: Path) -> None:
    if os.isatty(1):
        pytest.skip("on a terminal the signal means something else")
    place = tmp_path / "log"
    sink = Sink.open(place)
    with (
        default_hangup(),
        Relay(sink, sink) as relay,
        reopening(relay, wanted=True),
        open_log(relay.log) as server,
    ):
        os.write(server.fileno(), b"before\n")
        assert wait_for(lambda: place.read_text() == "before\n")
        place.rename(tmp_path / "log.1")
        os.kill(os.getpid(), signal.SIGHUP)
        assert wait_for(place.exists)
        os.write(server.fileno(), b"after\n")
        assert wait_for(lambda: place.read_text() == "after\n")
    assert (tmp_path / "log.1").read_text() == "before\n"


def test_a_log_that_was_cut_is_read_from_its_beginning(tmp_path: Path) -> None:
    """As logrotate's copytruncate cuts it; otherwise no crash would be seen until it is as long."""
    with open_log(tmp_path / "log") as log:
        log.write(b"x" * 1000 + b"\n")
        log.flush()
        _, place = lines_since(log, 0)
        assert place == 1001
        os.truncate(tmp_path / "log", 0)
        log.write(b"Signal (11) received.\nand half a l")
        log.flush()
        assert lines_since(log, place) == (b"Signal (11) received.\n", 22)


def test_the_default_file_is_put_aside_when_it_is_long(tmp_path: Path) -> None:
    sink = Sink.open(tmp_path / "log", limit=100)
    for number in range(10):
        sink.write(f"{number}".encode() * 29 + b"\n")
    sink.close()
    kept, older = (tmp_path / "log").read_bytes(), (tmp_path / "log.1").read_bytes()
    assert kept == b"8" * 29 + b"\n" + b"9" * 29 + b"\n"
    assert older.startswith(b"4" * 29 + b"\n")
    assert len(older) == 120
    assert LIMIT_BYTES < 1 << 30


def test_a_log_that_cannot_be_put_aside_goes_on(tmp_path: Path) -> None:
    (tmp_path / "log.1" / "occupied").mkdir(parents=True)
    sink = Sink.open(tmp_path / "log", limit=100)
    sink.write(b"x" * 200 + b"\n")
    sink.write(b"more\n")
    sink.close()
    _, told, last = (tmp_path / "log").read_text().splitlines()
    assert told.startswith("the log cannot be put aside: ")
    assert last == "more"


def test_a_long_log_that_was_removed_is_begun_anew(tmp_path: Path) -> None:
    sink = Sink.open(tmp_path / "log", limit=100)
    (tmp_path / "log").unlink()
    sink.write(b"1" * 149 + b"\n")
    sink.write(b"2" * 29 + b"\n")
    sink.close()
    assert (tmp_path / "log").read_bytes() == b"2" * 29 + b"\n"


def test_a_long_log_whose_folder_was_removed_grows_on(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    sink = Sink.open(folder / "log", limit=100)
    kept = os.open(folder / "log", os.O_RDONLY)
    (folder / "log").unlink()
    folder.rmdir()
    sink.write(b"1" * 149 + b"\n")
    sink.write(b"2" * 149 + b"\n")
    sink.close()
    assert os.pread(kept, 1000, 150) == (
        b"the log cannot be put aside: No such file or directory\n" + b"2" * 149 + b"\n"
    )
    os.close(kept)


def test_two_servers_with_one_log_put_it_aside_once(tmp_path: Path) -> None:
    one, other = (Sink.open(tmp_path / "log", limit=100) for _ in range(2))
    one.write(b"1" * 149 + b"\n")
    one.write(b"2" * 29 + b"\n")
    other.write(b"3" * 29 + b"\n")  # into the older one still, which it finds too long
    other.write(b"4" * 29 + b"\n")
    one.close()
    other.close()
    assert (tmp_path / "log").read_bytes() == b"2" * 29 + b"\n" + b"4" * 29 + b"\n"
    assert (tmp_path / "log.1").read_bytes() == b"1" * 149 + b"\n" + b"3" * 29 + b"\n"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, r"--log .*fifo: the log cannot be written\. It is a FIFO that nobody reads"),
        (lambda folder: folder, r"--log .*: this is a folder\. Name a file in it"),
        (lambda folder: folder / "no" / "log", "the folder of this file does not exist"),
        (lambda _folder: Path("/proc/new.log"), "the log cannot be written"),
    ],
)
def test_a_place_that_takes_no_log_is_refused_with_the_reason(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        destinations(str(make(tmp_path)), tmp_path, json=False)


def built(folder: Path) -> Path:
    (folder / "repository").mkdir(parents=True)
    (folder / "history.jsonl").write_text("{}\n")
    return folder / "repository"


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mine = built(tmp_path / "build" / "mine")
    assert default_place(mine) == tmp_path / "build" / "mine" / "triton.log"
    moved = tmp_path / "My model"
    moved.mkdir()
    elsewhere = tmp_path / "state" / "trtllm-pipeline" / "triton-my-model.log"
    assert default_place(moved) == elsewhere
    if os.geteuid():  # root may write everywhere
        (tmp_path / "build" / "mine").chmod(0o500)
        assert default_place(mine) == elsewhere.with_name("triton-mine.log")


def test_streams_by_name_are_ours(tmp_path: Path) -> None:
    """JSON stays alone on standard output."""
    for name in ("-", "/dev/stdout", "/dev/fd/1"):
        log, voice = destinations(name, tmp_path, json=False)
        assert log is voice
        log, voice = destinations(name, tmp_path, json=True)
        assert log is voice
    log, voice = destinations("/dev/stderr", tmp_path, json=False)
    assert log is not voice
    assert log.path is None


def test_the_thread_ends_with_the_block(tmp_path: Path) -> None:
    sink = Sink.open(tmp_path / "log")
    with Relay(sink, sink):
        assert any(thread.name == "log-relay" for thread in threading.enumerate())
    assert not any(thread.name == "log-relay" for thread in threading.enumerate())
