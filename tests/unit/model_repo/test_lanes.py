"""Both ends of a lane on real sockets, in processes of their own where that counts.

The layout of a frame is held against ``struct``, by what lane_frames.py says of it.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from model_repo.tensorrt_llm.answer import Answer
from model_repo.tensorrt_llm.lanes import Lane as EngineLane
from model_repo.tensorrt_llm.lanes import LaneCall as EngineCall
from model_repo.tensorrt_llm.lanes import Lanes
from model_repo.tensorrt_llm.request import RequestError
from model_repo.tensorrt_llm.responder import Responder
from model_repo.tensorrt_llm.responses import ResponseStream
from model_repo.tensorrt_llm_bls.lane import Lane, Lost
from model_repo.tensorrt_llm_bls.lane_frames import (
    END,
    TOKENS,
    Frame,
    Reader,
    addresses,
    encoded,
    is_sibling,
)
from pipeline.triton.sources import model_sources
from tests.unit.model_repo.fake_triton import Logger, Sender, TritonError

SERVER = os.getppid()
WANTED = frozenset({"output_ids"})

CALLER = """
import sys
sys.path.insert(0, sys.argv[1])
from tensorrt_llm_bls.lane import Lane
lane = Lane(sys.argv[2], print, server=int(sys.argv[3]))
call = lane.begin()
print(call and call.ticket, flush=True)
while call is not None:
    frame = call.get()
    print(type(frame).__name__, {n: a.tolist() for n, a in getattr(frame, "arrays", {}).items()},
          flush=True)
    if not hasattr(frame, "arrays"):
        break
"""

ENGINE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tensorrt_llm.lanes import Lanes
lanes = Lanes(sys.argv[2])
print("ready", flush=True)
call = lanes.find(input())
for ids, last in (([1, 2], False), ([3], True)):
    call.put({"output_ids": np.array([[ids]], np.int32)}, last=last)
call.lane.flush()
print("sent", flush=True)
input()
"""

FORGED = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0" + sys.argv[1])
listener.listen()
print("ready", flush=True)
connection, _ = listener.accept()
connection.sendall(bytes.fromhex("10000000" + "00" * 10 + "11" * 16))
input()
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A name that no other test, of this run or another, has at the same time."""
    return f"engine-{os.getpid()}-{id(request)}"


@pytest.fixture
def lanes(model: str) -> Iterator[Lanes]:
    made = Lanes(model)
    yield made
    made.close()


@pytest.fixture
def lane(model: str, lanes: Lanes) -> Iterator[Lane]:
    made = Lane(model, Logger.log_error)
    yield made
    made.close()


def joined(lanes: Lanes, lane: Lane) -> tuple[EngineCall, object]:
    """Both ends of a new call."""
    theirs = lane.begin()
    assert theirs is not None
    ours = lanes.find(theirs.ticket)
    assert ours is not None
    return ours, theirs


def outputs(*ids: int) -> dict[str, np.ndarray]:
    return {"output_ids": np.array([[ids]], np.int32).reshape(1, 1, -1)}


def tokens_of(frame: object) -> list[int]:
    assert isinstance(frame, Frame)
    return frame.arrays["output_ids"].reshape(-1).tolist()


def test_a_frame_is_what_it_is_described_as() -> None:
    ids, scores = np.array([[[7, 300]]], np.int32), np.array([[-0.5]], np.float32)
    frame = encoded(9, END, {"output_ids": ids, "cum_log_probs": scores})
    length, call, kind, count = struct.unpack_from("<IQBB", frame)
    assert (length, call, kind, count) == (len(frame) - 14, 9, 2, 2)
    assert frame[14:] == (
        bytes((10, 0, 3))
        + struct.pack("<3I", 1, 1, 2)
        + b"output_ids"
        + struct.pack("<2i", 7, 300)
        + bytes((13, 2, 2))
        + struct.pack("<2I", 1, 1)
        + b"cum_log_probs"
        + struct.pack("<f", -0.5)
    )


def test_frames_survive_being_cut_anywhere() -> None:
    numbers = np.random.default_rng(3)
    sent, stream = [], b""
    for call in range(40):
        shape = tuple(numbers.integers(0, 4, numbers.integers(0, 4)))
        arrays = {
            "a": numbers.integers(-(2**31), 2**31, shape).astype(np.int32),
            "bé": numbers.standard_normal(shape).astype(np.float32),
            "c": numbers.integers(-(2**62), 2**62, shape),
        }
        sent.append(arrays)
        stream += encoded(call, TOKENS, arrays)
    reader, found, at = Reader(), [], 0
    while at < len(stream):
        size = int(numbers.integers(1, 60))
        found += list(reader.feed(stream[at : at + size]))
        at += size
    assert [frame.call for frame in found] == list(range(40))
    for frame, arrays in zip(found, sent, strict=True):
        assert frame.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            assert frame.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(frame.arrays[name], array, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 14,
        struct.pack("<IQBB", 0, 1, 3, 0),
        struct.pack("<IQBB", 0, 1, 1, 1),
        struct.pack("<IQBB", 3, 1, 1, 1) + bytes((0, 9, 0)),
        struct.pack("<IQBB", 7, 1, 1, 1) + bytes((0, 0, 1)) + struct.pack("<I", 2**31),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a frame|buffer"):
        list(Reader().feed(data))


def test_another_process_gets_the_outputs_of_its_call(model: str, lanes: Lanes) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(model_sources()), model, str(os.getpid())],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # It is this process's child, and so no sibling of it: the engine's server is another.
        assert child.communicate(timeout=60)[0] == "None\n"
    finally:
        child.kill()
        child.wait()


def test_a_sibling_process_is_let_in(model: str) -> None:
    server = os.getpid()
    # The engine as a process whose server is this one, too.
    engine = subprocess.Popen(
        [
            sys.executable,
            "-c",
            ENGINE,
            str(model_sources()),
            model,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    caller = None
    try:
        assert engine.stdin
        assert engine.stdout
        assert engine.stdout.readline() == "ready\n"
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER, str(model_sources()), model, str(server)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert caller.stdout
        engine.stdin.write(caller.stdout.readline())
        engine.stdin.flush()
        assert engine.stdout.readline() == "sent\n"
        assert caller.stdout.readline() == "Frame {'output_ids': [[[1, 2]]]}\n"
        assert caller.stdout.readline() == "Frame {'output_ids': [[[3]]]}\n"
        engine.kill()
        assert caller.stdout.readline() == "Lost {}\n"
    finally:
        for process in filter(None, (engine, caller)):
            process.kill()
            process.communicate()


def test_a_process_of_another_server_or_user_is_not_let_in(
    model: str, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (address,) = addresses(model, server=SERVER)
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(address)
        assert len(connection.recv(64)) == 14 + 16  # this process is a sibling of itself
        assert is_sibling(connection, server=SERVER)
        assert not is_sibling(connection, server=SERVER + 1)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert not is_sibling(connection, server=SERVER)
    # The child of a sibling: connects, and is shown the door before it hears anything.
    code = "import socket, sys; c = socket.socket(socket.AF_UNIX); c.settimeout(20)\n"
    code += "c.connect('\\0' + sys.argv[1]); print(c.recv(64))"
    monkeypatch.undo()
    heard = subprocess.run(
        [sys.executable, "-c", code, address[1:]], capture_output=True, text=True, check=True
    )
    assert heard.stdout == "b''\n"


def test_who_only_says_to_be_the_engine_is_not_believed(model: str, tmp_path: Path) -> None:
    forged = subprocess.Popen(
        [
            sys.executable,
            "-c",
            FORGED,
            f"trtllm-lane-{SERVER}-{model}-0",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert forged.stdout
        assert forged.stdout.readline() == "ready\n"
        assert len(list(addresses(model, server=SERVER))) == 1
        assert Lane(model, Logger.log_error).begin() is None
    finally:
        forged.kill()
        forged.communicate()


def test_an_engine_without_lanes_is_not_looked_for_at_each_call(model: str, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    looked = tmp_path / "net" / "unix"
    looked.write_text("Num RefCount Protocol Flags Type St Inode Path\n")
    lane = Lane(model, Logger.log_error, processes=tmp_path)
    assert lane.begin() is None
    looked.unlink()
    looked.mkdir()
    assert all(lane.begin() is None for _ in range(100))


def test_calls_get_their_own_frames_in_order(lanes: Lanes, lane: Lane) -> None:
    calls = [joined(lanes, lane) for _ in range(50)]
    for step in range(20):
        for number, (ours, _) in enumerate(calls):
            ours.put(outputs(number, step), last=step == 19)
        calls[0][0].lane.flush()
    for number, (_, theirs) in enumerate(calls):
        frames = [theirs.get() for _ in range(20)]
        assert [tokens_of(frame) for frame in frames] == [[number, step] for step in range(20)]
        assert [frame.kind for frame in frames] == [TOKENS] * 19 + [END]


def test_only_a_call_that_there_is_can_be_answered(lanes: Lanes, lane: Lane) -> None:
    ours, theirs = joined(lanes, lane)
    number, _, call = theirs.ticket.partition("-")
    assert lanes.find(theirs.ticket) is None  # it is being answered
    forged = f"{int(number, 16) ^ 1:032x}"
    for ticket in (
        f"{forged}-{call}", number, f"{number}-", f"{number}-x", f"{number}-²", f"{number}--1",
        f"{number}-{'9' * 30}", "", "-", None, 7, True, [], {},
    ):  # fmt: skip
        assert lanes.find(ticket) is None, ticket
    ours.put({}, last=True)
    ours.lane.flush()
    assert theirs.get() == Frame(int(call), END, {})


def test_a_call_that_was_ended_gets_nothing_more(lanes: Lanes, lane: Lane) -> None:
    (first, gone), (second, there) = joined(lanes, lane), joined(lanes, lane)
    first.put(outputs(1), last=False)
    first.lane.flush()
    assert tokens_of(gone.get()) == [1]
    assert gone.end() == []
    assert not gone.hand_in("answer")
    first.put(outputs(2), last=True)
    second.put(outputs(3), last=True)
    first.lane.flush()
    assert tokens_of(there.get()) == [3]
    assert gone.end() == []


def test_the_calls_of_a_lost_lane_are_told_and_the_next_one_has_another(
    model: str, lanes: Lanes, lane: Lane
) -> None:
    _, theirs = joined(lanes, lane)
    lanes.close()
    assert isinstance(theirs.get(), Lost)
    again = Lanes(model)
    try:
        until(lambda: (call := lane.begin()) and again.find(call.ticket), "no new lane")
    finally:
        again.close()


def test_the_engine_sees_that_a_model_is_gone(lanes: Lanes, lane: Lane) -> None:
    ours, theirs = joined(lanes, lane)
    sender = Sender()
    stream = ResponseStream(sender, Answer(True, WANTED), lambda _: None, call=ours)
    assert not stream.is_cancelled()
    lane.close()
    until(stream.is_cancelled, "the lane is not lost")
    stream.tokens([], [], last=True)
    assert stream.put()
    stream.send()
    assert sender.failure() == "after the tokens of the lane: the model that asked is gone"
    assert lanes.find(theirs.ticket) is None


def responded(ours: EngineCall, responder: Responder) -> tuple[ResponseStream, Sender]:
    sender = Sender()
    answer = Answer(True, WANTED)
    return ResponseStream(sender, answer, responder.ready, with_status=True, call=ours), sender


@pytest.fixture
def responder() -> Iterator[Responder]:
    made = Responder()
    made.start()
    yield made
    made.close()


def test_triton_gets_one_empty_response_and_the_lane_the_rest(
    lanes: Lanes, lane: Lane, responder: Responder
) -> None:
    ours, theirs = joined(lanes, lane)
    stream, sender = responded(ours, responder)
    for token in (1, 2, 3):
        stream.tokens([token], [], last=token == 3)
        responder.publish()
    found: list[int] = []
    frame = None
    while frame is None or frame.kind != END:
        frame = theirs.get()
        found += tokens_of(frame)
    assert found == [1, 2, 3]
    assert sender.outputs() == [{}]
    assert [final for _, final in sender.sent] == [True]


def test_an_error_comes_once_and_with_its_status(
    lanes: Lanes, lane: Lane, responder: Responder
) -> None:
    ours, theirs = joined(lanes, lane)
    stream, sender = responded(ours, responder)
    stream.tokens([1], [], last=False)
    responder.publish()
    assert tokens_of(theirs.get()) == [1]
    stream.tokens([2], [], last=False)
    stream.fail(RequestError("the cache is full", "UNAVAILABLE"))
    responder.publish()
    assert tokens_of(theirs.get()) == [2]
    assert theirs.get().kind == END
    told = "[UNAVAILABLE] after the tokens of the lane: the cache is full"
    assert sender.failure() == told
    ((response, final),) = sender.sent
    assert final
    assert response is not None
    assert response.error().code() == TritonError.UNAVAILABLE


def test_a_model_that_does_not_read_holds_up_nobody_and_loses_nothing(
    model: str, lanes: Lanes, responder: Responder
) -> None:
    (address,) = addresses(model, server=SERVER)
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(address)
        number = connection.recv(14 + 16)[14:].hex()
        ours = lanes.find(f"{number}-5")
        assert ours is not None
        stream, sender = responded(ours, responder)
        other_sender = Sender()
        other = ResponseStream(other_sender, Answer(True, WANTED), responder.ready)
        made = 0
        # More than the kernel keeps for a socket.
        while not ours.lane.behind:
            stream.tokens(list(range(made, made + 5000)), [], last=False)
            made += 5000
            responder.publish()
            assert made < 10**7, "the lane takes everything"
        waits = len(ours.lane._left)
        for _ in range(50):
            stream.tokens(list(range(made, made + 5000)), [], last=False)
            made += 5000
            responder.publish()
        stream.tokens([], [], last=True)
        other.tokens([1], [], last=True)
        responder.publish()
        assert [one["output_ids"].size for one in other_sender.outputs()] == [1]
        # No more waits than did, whatever is made meanwhile, and the request is not over.
        assert len(ours.lane._left) == waits
        assert not sender.done.is_set()
        reader, found, ended = Reader(), [], False
        connection.settimeout(20)
        while not ended:
            for frame in reader.feed(connection.recv(1 << 20)):
                found += tokens_of(frame)
                ended = frame.kind == END
        assert found == list(range(made))
        assert sender.outputs() == [{}]


def test_a_model_that_never_reads_gets_an_error_at_the_end(model: str, lanes: Lanes) -> None:
    here, there = socket.socketpair()
    with here, there:
        responder = Responder()
        responder.start()
        ours = EngineLane(here).open(1)
        assert ours is not None
        stream, sender = responded(ours, responder)
        while not ours.lane.behind:
            stream.tokens([0] * 5000, [], last=False)
            responder.publish()
        stream.tokens([], [], last=True)
        closing = threading.Thread(target=responder.close)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
        assert sender.failure() == (
            "[UNAVAILABLE] after the tokens of the lane: the model that asked is gone"
        )
