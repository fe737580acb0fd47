"""Notices clients that have gone away and stops the engine's work for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import triton_python_backend_utils as pb_utils


class Watched:
    """A request that may be cancelled until its last response is sent.

    Args:
        request: The client's ``pb_utils.InferenceRequest``.
        engine_ids: The request ids that the engine knows its prompts by.
    """

    def __init__(self, request: Any, engine_ids: Sequence[str]) -> None:
        self.engine_ids = tuple(engine_ids)
        self._request = request
        self._lock = threading.Lock()
        self._open = True

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Wraps sending the last response: Triton frees the request with it, so after that it must
        not be asked whether it is cancelled.
        """
        with self._lock:
            self._open = False
            yield

    def is_cancelled(self) -> bool:
        """Whether the client has gone away while the request was being served."""
        with self._lock:
            return self._open and bool(self._request.is_cancelled())


class Watcher:
    """A thread that looks at every request once per period.

    Args:
        stop: Asks the engine to end the request with this id; called again in each period, because
            the first call may come before the engine knows the request.
        period: Seconds.
    """

    def __init__(self, stop: Callable[[str], None], period: float) -> None:
        self._stop = stop
        self._period = period
        self._watched: set[Watched] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def watch(self, request: Any, engine_ids: Sequence[str]) -> Watched:
        """Begins to look at a request."""
        watched = Watched(request, engine_ids)
        self._watched.add(watched)
        return watched

    def forget(self, watched: Watched) -> None:
        """Ends it."""
        self._watched.discard(watched)

    def stop(self, engine_id: str) -> None:
        """Asks the engine once; a failure is logged, for whoever asks has an answer to send."""
        try:
            self._stop(engine_id)
        except Exception as error:
            pb_utils.Logger.log_error(f"stopping {engine_id}: {error!r}")

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._period):
            for watched in list(self._watched):
                self._look_at(watched)

    def _look_at(self, watched: Watched) -> None:
        try:
            cancelled = watched.is_cancelled()
        except Exception as error:
            pb_utils.Logger.log_error(f"looking at {watched.engine_ids[0]}: {error!r}")
            return
        if cancelled:
            for engine_id in watched.engine_ids:
                self.stop(engine_id)
