"""Sends what the engine generates to Triton, away from the engine's thread where that pays.

One response costs Triton and this process about a third of a millisecond together, mostly waiting
for the server to copy it. So one thread does all the sending; tokens that pile up meanwhile leave
in one response. An engine step holds Python's interpreter lock, which would leave that thread
with one response per step, so the engine lets it work for a while between two steps: as long as it
needs, but at most a part of what the step took. That is ample beside the steps of a large model; a
small one that serves many streams sends several tokens per response instead of waiting. Where
responses would take too much of the processor, tokens are held back (hold.py); then the engine
waits once for all of them. It also lets requests in between two steps: taking one in needs the lock
several times, too.

What goes to a model on a lane (lanes.py) leaves as one message for all its streams; Triton gets the
end of each alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import triton_python_backend_utils as pb_utils

from .hold import Hold
from .lanes import Lane
from .responses import ResponseStream

SHORTEST_PAUSE = 0.0005
"""Seconds the engine waits for responses to leave, however short its step was."""

ROOM_S = 0.01
"""Seconds until a lane whose other end has not read is tried again."""

LAST_ROOM_S = 2.0
"""Seconds for which the end waits for such a lane."""

PAUSE_SHARE = 0.25
"""The longest pause as a share of the steps since the last one."""


class Responder:
    """The thread that sends responses and, in between, does periodic work.

    Args:
        periodic: (seconds, function) pairs; each function is called that often.
        hold: Says which responses wait for more tokens; None lets none wait.
    """

    def __init__(
        self,
        periodic: Iterable[tuple[float, Callable[[], None]]] = (),
        hold: Hold[ResponseStream] | None = None,
    ) -> None:
        self._ready: dict[ResponseStream, None] = {}
        self._hold: Hold[ResponseStream] = hold or Hold(0.0, 1)
        self._unpaused = 0.0
        # What waits for room on a lane: streams, and lanes that have taken a part of what they got.
        self._blocked: list[ResponseStream] = []
        self._behind: set[Lane] = set()
        # What the engine waits for: responses handed over and not sent, and requests coming in.
        self._lock = threading.Lock()
        self._sending = False
        self._guests = 0
        self._queue: queue.SimpleQueue[list[ResponseStream] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._periodic = [[time.monotonic() + seconds, seconds, work] for seconds, work in periodic]
        self._thread = threading.Thread(target=self._run, name="responder", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def ready(self, stream: ResponseStream) -> None:
        """Notes that a stream has something to send; engine's thread only."""
        self._ready[stream] = None

    @contextmanager
    def let_in(self) -> Iterator[None]:
        """Wraps taking in requests, for which the engine waits between two steps as well."""
        with self._lock:
            self._guests += 1
            self._idle.clear()
        try:
            yield
        finally:
            with self._lock:
                self._guests -= 1
                self._set_idle()

    def publish(self, step_seconds: float = 0.0) -> None:
        """Hands over what is to leave and gives the thread time to send it; engine's thread only.

        Args:
            step_seconds: How long the engine's step took; the pause is bounded by the steps since
                the last one.
        """
        self._unpaused += step_seconds
        ready, self._ready = self._ready, {}
        if leaving := self._hold.take(ready, step_seconds):
            with self._lock:
                self._sending = True
                self._idle.clear()
                self._queue.put(leaving)
        if not self._idle.is_set():
            self._idle.wait(max(self._unpaused * PAUSE_SHARE, SHORTEST_PAUSE))
            self._unpaused = 0.0

    def close(self, timeout: float = 10.0) -> None:
        """Sends what is left and ends the thread."""
        self._queue.put([*self._hold.rest(), *self._ready])
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            streams = self._next_streams()
            if streams is None:
                self._send_rest()
                return
            self._send(streams)
            with self._lock:
                self._sending = not self._queue.empty()
                self._set_idle()
            self._work()

    def _send(self, streams: Iterable[ResponseStream]) -> None:
        """Sends what streams have: first, as one message, what goes over a lane."""
        streams = list(dict.fromkeys((*self._blocked, *streams)))
        lanes = self._behind | {stream.call.lane for stream in streams if stream.call is not None}
        for lane in lanes:
            lane.flush()
        self._blocked = [stream for stream in streams if not self._put(stream)]
        for lane in lanes:
            lane.flush()
        self._behind = {lane for lane in lanes if lane.behind}
        for stream in streams:
            _guarded(stream.send, "a response could not be sent")

    @staticmethod
    def _put(stream: ResponseStream) -> bool:
        try:
            return stream.put()
        except Exception as error:
            pb_utils.Logger.log_error(f"a response could not be put on its lane: {error!r}")
            if stream.call is not None:
                # Nobody is to wait for what does not come.
                stream.call.lane.lose()
            return True

    def _send_rest(self) -> None:
        """Sends what waits for room on a lane; whoever makes none by then does not get it."""
        until = time.monotonic() + LAST_ROOM_S
        while (self._blocked or self._behind) and time.monotonic() < until:
            time.sleep(ROOM_S)
            self._send(())
        for lane in self._behind:
            lane.lose()
        self._send(())

    def _set_idle(self) -> None:
        if not self._sending and not self._guests:
            self._idle.set()

    def _next_streams(self) -> list[ResponseStream] | None:
        next_work = min((entry[0] for entry in self._periodic), default=None)
        timeout = None if next_work is None else max(0.0, next_work - time.monotonic())
        if self._blocked or self._behind:
            timeout = ROOM_S if timeout is None else min(timeout, ROOM_S)
        try:
            streams = self._queue.get(timeout=timeout)
            if streams is None:
                return None
            while not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    self._queue.put(None)
                    break
                streams += more
        except queue.Empty:
            return []
        return list(dict.fromkeys(streams))

    def _work(self) -> None:
        for entry in self._periodic:
            due, seconds, work = entry
            if time.monotonic() >= due:
                _guarded(work, "periodic work failed")
                entry[0] = time.monotonic() + seconds


def _guarded(work: Callable[[], None], failure: str) -> None:
    """Logs an exception: one client's broken connection must not stop the others' responses."""
    try:
        work()
    except Exception as error:
        pb_utils.Logger.log_error(f"{failure}: {error!r}")
