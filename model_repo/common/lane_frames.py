"""What a lane is: a socket from an engine's process to one of a model that calls it.

Tokens take it instead of Triton's way from model to model, which costs several hand-overs between
processes for each response, and whose iterators can lock up (ARCHITECTURE.md). Both processes were
started by the same server. The engine listens at an address without a name in the file system; each
side sees by the kernel's word who the other is. The engine gives each lane a random number. A call
that has this number among its parameters, and a number of its own, gets its outputs as *frames*:
all but the last say ``TOKENS``, the last one ``END``. Triton's own answer to the call comes once,
and has an error or nothing.

A frame is a header (bytes that follow, the call, what it is, how many arrays), and each array its
name, its type, its shape and its bytes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .siblings import PROCESSES, parent_of

PARAMETER = "triton_lane"
"""Of a call. Begins as Triton's own parameters do, which clients of its gRPC may not send."""

BEGUN = "after the tokens of the lane: "
"""In front of the error of a call whose ``END`` is on the lane."""

HELLO, TOKENS, END = range(3)
"""What a frame is. The first one of a lane is ``HELLO``, with its number."""

NUMBER_BYTES = 16
LONGEST = 1 << 28
"""Bytes of a frame; what says more is none."""

_PREFIX = "trtllm-lane-"
_HEADER = struct.Struct("<IQBB")
_ARRAY = struct.Struct("<BBB")
_TYPES = tuple(map(np.dtype, ("<i4", "<i8", "<f4", "<u8")))
_LISTENS = 1 << 16
"""``__SO_ACCEPTCON`` of linux/net.h."""
_CREDENTIALS = struct.Struct("3i")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        call: The number of the call that it belongs to.
        kind: ``HELLO``, ``TOKENS`` or ``END``.
        arrays: By output name.
    """

    call: int
    kind: int
    arrays: Mapping[str, Array]


def hello(number: bytes) -> bytes:
    """The first frame of a lane."""
    return _HEADER.pack(len(number), 0, HELLO, 0) + number


def encoded(call: int, kind: int, arrays: Mapping[str, Array]) -> bytes:
    """A frame of a call.

    Raises:
        ValueError: An array is of a type that no output has.
    """
    parts = [b""]
    for name, array in arrays.items():
        text = name.encode()
        parts.append(_ARRAY.pack(len(text), _TYPES.index(array.dtype), array.ndim))
        parts.append(struct.pack(f"<{array.ndim}I", *array.shape))
        parts += (text, array.tobytes())
    parts[0] = _HEADER.pack(sum(map(len, parts)), call, kind, len(arrays))
    return b"".join(parts)


class Reader:
    """Makes frames of the bytes that arrive."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Frame | bytes]:
        """Takes bytes; yields the frames that are complete, the lane's number for a ``HELLO``.

        Raises:
            ValueError: This is no frame.
        """
        self._bytes += data
        at = 0
        while len(self._bytes) - at >= _HEADER.size:
            length, call, kind, count = _HEADER.unpack_from(self._bytes, at)
            if length > LONGEST or kind not in (HELLO, TOKENS, END):
                raise ValueError(f"not a frame: {length} bytes of kind {kind}")
            end = at + _HEADER.size + length
            if len(self._bytes) < end:
                break
            body = bytes(self._bytes[at + _HEADER.size : end])
            at = end
            yield body if kind == HELLO else Frame(call, kind, _arrays(body, count))
        del self._bytes[:at]


def _arrays(body: bytes, count: int) -> dict[str, Array]:
    arrays, at = {}, 0
    try:
        for _ in range(count):
            name, kind, dimensions = _ARRAY.unpack_from(body, at)
            at += _ARRAY.size
            shape = struct.unpack_from(f"<{dimensions}I", body, at)
            at += 4 * dimensions
            text = body[at : at + name].decode()
            at += name
            items = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(body, _TYPES[kind], items, at).reshape(shape).copy()
            arrays[text] = array
            at += array.nbytes
    except (IndexError, struct.error) as error:
        raise ValueError(f"not a frame: {error}") from error
    return arrays


def new_address(model: str, *, server: int, number: str) -> str:
    """Where the engine's process of a model listens; ``number`` makes it its own."""
    return f"\0{_beginning(model, server)}{number}"


def addresses(model: str, *, server: int, processes: Path = PROCESSES) -> Iterator[str]:
    """Where processes say that they are the model of a server; it may be anybody who says so.

    Args:
        server: The process id of the server.
        processes: Where the kernel lists its processes and sockets.
    """
    beginning = f"@{_beginning(model, server)}"
    with contextlib.suppress(OSError):
        for line in (processes / "net/unix").read_text(errors="replace").splitlines():
            # Number, references, protocol, flags, type, state, inode, address where it has one.
            fields = line.split(maxsplit=7)
            if len(fields) < 8 or not fields[7].startswith(beginning):
                continue
            if int(fields[3], 16) & _LISTENS:
                yield f"\0{fields[7][1:]}"


def _beginning(model: str, server: int) -> str:
    return f"{_PREFIX}{server}-{model}-"


def is_sibling(connection: socket.socket, *, server: int, processes: Path = PROCESSES) -> bool:
    """Whether the other end is a process of the same user that the same server started."""
    size = _CREDENTIALS.size
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    try:
        return bool(
            process > 0 and user == os.geteuid() and parent_of(processes / str(process)) == server
        )
    except (OSError, ValueError):
        return False  # it has ended, or others' processes are not shown
