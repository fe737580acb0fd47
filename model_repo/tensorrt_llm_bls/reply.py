"""The responses of one request, whose prompts are answered by several threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from .watcher import Watched


class Reply:
    """Sends the responses of one request; the one that ends its last prompt carries FINAL.

    Args:
        sender: The request's response sender.
        wanted: Names of the outputs the client asked for.
        prompts: How many prompts the request has.
        watched: The request's entry with the watcher.
    """

    def __init__(self, sender: Any, wanted: list[str], prompts: int, watched: Watched) -> None:
        self._sender = sender
        self._wanted = frozenset(wanted)
        self._open = prompts
        self._watched = watched
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether the FINAL flag has been sent."""
        return self._open == 0

    def send(self, outputs: Mapping[str, Any], *, last: bool = False) -> bool:
        """Sends a response.

        Args:
            outputs: By name; those that nobody asked for are left out.
            last: Whether it ends its prompt.

        Returns:
            Whether it was sent; it is not when another prompt's failure has ended the request.
        """
        response = pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, value)
                for name, value in outputs.items()
                if name in self._wanted
            ]
        )
        with self._lock:
            if self.over:
                return False
            if last and self._open == 1:
                self._finish(response)
            else:
                self._sender.send(response)
            self._open -= last
        return True

    def fail(self, message: str, code: Any) -> bool:
        """Ends the request with an error, as one failed prompt does in upstream's model.

        Returns:
            Whether it was not over yet.
        """
        error = pb_utils.TritonError(message, code)
        with self._lock:
            if self.over:
                return False
            self._open = 0
            self._finish(pb_utils.InferenceResponse(output_tensors=[], error=error))
        return True

    def _finish(self, response: Any) -> None:
        with self._watched.closing():
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
