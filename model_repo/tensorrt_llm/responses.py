"""What one request sends to Triton, or over its lane: tokens, its end, its error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .answer import Answer
from .lane_frames import BEGUN
from .lanes import LaneCall
from .receipts import Ticket
from .request import RequestError
from .statuses import told

TICKET = "ticket"
"""The output by which ``postprocessing`` can say that a client of the ensemble has gone."""

_NOT_MAPPED = "context_phase_params"
"""An output that no ensemble asks for: who asks for it named no outputs, and so gets all."""


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


def empty_response(sender: Any) -> None:
    """Ends a request that asks for nothing, such as a stop request."""
    sender.send(
        pb_utils.InferenceResponse(output_tensors=[]),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )
