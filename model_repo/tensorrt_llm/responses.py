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
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .answer import Answer
from .hold import Hold
from .lane_frames import BEGUN
from .lanes import Lane, LaneCall
from .receipts import Ticket
from .request import RequestError
from .statuses import told

SHORTEST_PAUSE = 0.0005
"""Seconds the engine waits for responses to leave, however short its step was."""

TICKET = "ticket"
"""The output by which ``postprocessing`` can say that a client of the ensemble has gone."""

_NOT_MAPPED = "context_phase_params"
"""An output that no ensemble asks for: who asks for it named no outputs, and so gets all."""

ROOM_S = 0.01
"""Seconds until a lane whose other end has not read is tried again."""

LAST_ROOM_S = 2.0
"""Seconds for which the end waits for such a lane."""

PAUSE_SHARE = 0.25
"""The longest pause as a share of the steps since the last one."""


class ResponseStream:
    """The :class:`request.Sink` of one Triton request.

    Args:
        sender: The request's response sender.
        answer: Which outputs the client wants and how they are made.
        ready: Called (by the engine's thread) when there is something to send.
        with_status: See :func:`send_error`.
        call: Where the outputs go over a lane (lanes.py), and Triton gets but the end.

    Attributes:
        closed: Whether the last response is sent.
        ticket: Of a request of the ensemble (receipts.py); may come after the first response.
    """

    def __init__(
        self,
        sender: Any,
        answer: Answer,
        ready: Callable[[ResponseStream], None],
        *,
        with_status: bool = False,
        call: LaneCall | None = None,
    ) -> None:
        self.closed = False
        self.call = call
        self.ticket: Ticket | None = None
        self._sender = sender
        self._answer = answer
        self._ready = ready
        self._with_status = with_status
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self._last = False
        self._begun = False
        self._urgent = False
        self._started = False
        self._error: RequestError | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def urgent(self) -> bool:
        """Whether what it has to send must not wait: its first token, its end, its error."""
        return self._urgent

    def handed_over(self) -> None:
        """See :class:`hold.Stream`; engine's thread only."""
        self._urgent = False

    def scheduled(self, reused_blocks: int) -> None:
        """See :class:`request.Sink`."""
        self._answer.times.scheduled(reused_blocks)

    def prompt_scored(self, log_probs: list[float]) -> None:
        """See :class:`request.Sink`."""
        self._answer.prompt_scored(log_probs)

    def tokens(self, ids: list[int], log_probs: list[float], *, last: bool) -> None:
        """See :class:`request.Sink`."""
        if ids:
            self._answer.times.generated()
        with self._lock:
            self._ids += ids
            self._log_probs += log_probs
            self._last = last
        if last or self._answer.streaming:
            self._urgent |= last or not self._begun
            self._begun = True
            self._ready(self)

    def fail(self, error: RequestError) -> None:
        """See :class:`request.Sink`."""
        self._error = error
        self._urgent = True
        self._ready(self)

    def put(self) -> bool:
        """Puts everything not sent yet on the lane, where it has one; sender's thread only.

        Returns:
            False where the lane has no room now, so that it is to be tried again.
        """
        if self.call is None or self._ended:
            return True
        if self.call.lane.behind:
            return False
        # Read first: what comes before an error is there when the error is.
        error = self._error
        ids, log_probs, last = self._taken()
        if error is not None:
            if ids:
                self.call.put(self._answer.outputs(ids, log_probs), last=False)
            self.call.put({}, last=True)
        elif ids or last:
            self.call.put(self._answer.outputs(ids, log_probs), last=last)
        self._ended = last or error is not None
        return True

    def send(self) -> None:
        """Sends everything not sent yet as one response; sender's thread only.

        Of what goes over a lane, it is the end alone.
        """
        if self.closed or (self.call is not None and not self._ended):
            return
        error = self._error
        ids, log_probs, last = self._taken()
        if self.call is not None:
            self.closed = True
            if error is None and self.call.lost:
                error = RequestError("the model that asked is gone", "UNAVAILABLE")
            if error is None:
                empty_response(self._sender)
            else:
                self._send_error(error, BEGUN)
        elif error is not None:
            self.closed = True
            if ids and self._answer.streaming:
                self._send(ids, log_probs, last=False)
            self._send_error(error)
        elif ids or last:
            self.closed = last
            self._send(ids, log_probs, last=last)

    def _taken(self) -> tuple[list[int], list[float], bool]:
        with self._lock:
            taken = self._ids, self._log_probs, self._last
            self._ids, self._log_probs = [], []
        return taken

    def _send_error(self, error: RequestError, beginning: str = "") -> None:
        if error.code != "INVALID_ARG":  # that is the client's affair
            pb_utils.Logger.log_error(f"a request failed while it was served: {error}")
        told_error = RequestError(f"{beginning}{error}", error.code)
        send_error(self._sender, told_error, started=self._started, with_status=self._with_status)

    def _send(self, ids: list[int], log_probs: list[float], *, last: bool) -> None:
        self._started = True
        tensors = [
            pb_utils.Tensor(name, value)
            for name, value in self._answer.outputs(ids, log_probs).items()
        ]
        if self.ticket is not None:
            tensors.append(pb_utils.Tensor(TICKET, np.array([self.ticket], np.uint64)))
        response = pb_utils.InferenceResponse(output_tensors=tensors)
        if last:
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        else:
            self._sender.send(response)

    def is_cancelled(self) -> bool:
        """Whether the client, or the model at the end of the lane, is gone; sender's thread only.

        Triton frees the request with its last response, so it must not be asked after that.
        """
        if self.call is not None:
            return not self.closed and self.call.lost
        return not self.closed and bool(self._sender.is_cancelled())


def of_ensemble(wanted: frozenset[str]) -> bool:
    """Whether a request comes through the ensemble, by the outputs that it asks for."""
    return TICKET in wanted and _NOT_MAPPED not in wanted


class BatchSender:
    """The response sender of a request with several rows, each of which is answered by itself.

    Every row ends its answer with the FINAL flag; Triton gets only that of the last row to end.

    Args:
        sender: The request's response sender.
        rows: How many rows it has.
    """

    def __init__(self, sender: Any, rows: int) -> None:
        self._sender, self._open = sender, rows

    def send(self, response: Any = None, flags: int = 0) -> None:
        """Like Triton's; responder's thread only."""
        if flags == pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._open -= 1
            flags = flags if self._open == 0 else 0
        if flags and response is not None:
            self._sender.send(response, flags=flags)
        elif flags:
            self._sender.send(flags=flags)
        elif response is not None:
            self._sender.send(response)

    def is_cancelled(self) -> bool:
        """Whether the client has gone away; not to be asked when every row has ended."""
        return bool(self._sender.is_cancelled())


def send_error(
    sender: Any, error: RequestError, *, started: bool = False, with_status: bool = False
) -> None:
    """Ends a request with an error.

    Args:
        started: Whether it was sent something before. Triton 2.51 does not pass an error on to a
            Python model that called this one when other responses came before it. If the error is
            not the last response, that model at least gets the end, an empty response.
        with_status: Whether the text says the status, for a model that asked for it (statuses.py).
    """
    code = getattr(pb_utils.TritonError, error.code)
    text = told(str(error), error.code) if with_status else str(error)
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
    if started:
        sender.send(response)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    else:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


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


def empty_response(sender: Any) -> None:
    """Ends a request that asks for nothing, such as a stop request."""
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[]),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )


def _guarded(work: Callable[[], None], failure: str) -> None:
    """Logs an exception: one client's broken connection must not stop the others' responses."""
    try:
        work()
    except Exception as error:
        pb_utils.Logger.log_error(f"{failure}: {error!r}")
