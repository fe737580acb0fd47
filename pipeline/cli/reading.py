"""A stream that is read in a thread of its own, so that Ctrl-C ends it cleanly.

An interrupt is raised wherever the main thread is. Inside of gRPC it leaves a lock of the
connection held, for which everything after it waits, the end of the command too. Here the main
thread only waits for what the other one has read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.engine_client.interface import TextStream
    from trtllm_client import Chunk

# How long a stop waits until the server was told: by far longer than it takes, and still no wait
# for a server that says nothing.
PATIENCE_S = 2.0
LOOK_S = 0.1
"""How often the main thread looks up from its wait.

The handler of a signal that comes just before a wait begins, or that another thread takes, runs
when the wait is over.
"""


class Reading:
    """A stream that is being read; iterate it for its chunks.

    Leaving the ``with`` block ends the request.

    Args:
        start: Starts the stream.
        stopped: Called with the request's id when it was ended early.
    """

    def __init__(self, start: Callable[[], TextStream], stopped: Callable[[str], object]) -> None:
        self._start, self._stopped = start, stopped
        self._stream: TextStream | None = None
        self._stop = False
        # Of C, so that an interrupt leaves it in order.
        self._read: SimpleQueue[Chunk | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks, and raises what the stream raised."""
        while (piece := self._next()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def __enter__(self) -> Reading:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        if self._stream is not None:
            self._stream.cancel()
        self._thread.join(PATIENCE_S)

    def _next(self) -> Chunk | BaseException | None:
        while True:
            with contextlib.suppress(Empty):
                return self._read.get(timeout=LOOK_S)

    def _run(self) -> None:
        try:
            with self._start() as stream:
                self._stream = stream
                # By a main thread that had nothing to cancel yet.
                if self._stop:
                    stream.cancel()
                for chunk in stream:
                    self._read.put(chunk)
        # The main thread raises it, whatever it is.
        except BaseException as error:  # noqa: BLE001
            if self._stop and self._stream is not None:
                self._stopped(self._stream.request_id)
            self._read.put(error)
        else:
            self._read.put(None)
