"""Keeps a server running that was ready once: restarts, news, and what whoever waits is told.

A server that was ready once is restarted as often as it takes, with growing pauses. What its starts
then fail of is the machine's, a full disk or little memory, and nobody here can tell whether it
passes; so only time ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections import deque
from pathlib import Path
from typing import IO, Literal, Protocol

from pipeline.errors import PipelineError, ServerError
from pipeline.triton.log import LogPlace, place_of, written_since
from pipeline.triton.running import RunningServer
from pipeline.triton.watchdog import Backoff, Watchdog

logger = logging.getLogger(__name__)

State = Literal["stopped", "starting", "ready", "recovering", "failed"]


class Stoppable(Protocol):
    """A server's process."""

    def stop(self, *, at_once: bool = False) -> None:
        """Ends it and waits until nothing of it is left."""

    def hurry(self) -> None:
        """Ends a stop that waits for requests in flight, or makes the next one not wait."""


class SupervisedServer(RunningServer):
    """A server whose process is started again when it is lost.

    A subclass launches the process, which becomes ``_process``, and says what is wrong with it.

    Args:
        program: The server's name, for people.
        place: What is served, for errors where there is no log.
        log_file: Receives the server's output.
        watchdog: Restart the server when it is lost.
        give_up_after_s: Seconds of starts that fail, after which the watchdog gives up; 0 for
            never.
    """

    def __init__(
        self,
        program: str,
        place: Path,
        *,
        log_file: LogPlace,
        watchdog: bool,
        give_up_after_s: float,
    ) -> None:
        self._program, self._served, self.log_file = program, place, log_file
        self._watch, self._give_up_after_s = watchdog, give_up_after_s
        self._watchdog: Watchdog | None = None
        self._backoff = Backoff()
        self._news: deque[str] = deque()
        self._log: IO[bytes] | None = None
        self._state: State = "stopped"
        self._error: str | None = None
        self._failure: str | None = None
        self._restarts = 0
        self._stopping, self._ended = threading.Event(), threading.Event()
        self.ready_s: float | None = None

    @abstractmethod
    def _launch(self) -> None:
        """Starts one process and waits for it; on failure the caller stops it."""

    @abstractmethod
    def _fault(self) -> str | None:
        """Says what is wrong with the server now, or None."""

    @abstractmethod
    def _running(self) -> Stoppable | None:
        """Returns the process; None where there is none."""

    @abstractmethod
    def _forget(self) -> None:
        """Takes note that the process has ended."""

    def _begin_watch(self) -> None:
        if self._watch:
            self._watchdog = Watchdog(self._fault, self._recover, self._watch_failed)
            self._watchdog.start()

    def stop(self) -> None:
        """Stops the server, with what it started, and waits until nothing of it is left.

        Requests in flight get ``patience_s``; a client that merely keeps its stream open does not
        hold the server up for longer. Stopping twice does nothing.
        """
        self._stopping.set()
        if self._watchdog:
            self._watchdog.stop()
            self._watchdog = None
        self._end()
        if self._log:
            self._log.close()
            self._log = None
        if self._state != "failed":
            self._state = "stopped"
        self._ended.set()

    def hurry(self) -> None:
        """Ends a stop that waits for requests in flight, or makes the next one not wait."""
        self._stopping.set()
        if process := self._running():
            process.hurry()

    def _end(self, *, at_once: bool = False) -> None:
        if process := self._running():
            process.stop(at_once=at_once)
            self._forget()

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until the server is stopped, or the time is up.

        Raises:
            ServerError: The watchdog gave up or failed.
        """
        self._ended.wait(timeout_s)
        if self._failure is not None:
            raise ServerError(
                self._failure,
                where=self._place(),
                why=self._error,
                fix="Find the cause in the server's log and start it again",
            )

    def _said_since(self, offset: int) -> str:
        return written_since(self._log, offset).decode(errors="replace") if self._log else ""

    def _place(self) -> str:
        return str(place_of(self.log_file) or self._served)

    def _recover(self, fault: str) -> bool:
        """Runs in the watchdog's thread; False ends the watch."""
        self._state, self._error = "recovering", fault
        since = time.monotonic()
        while not self._stopping.is_set():
            # Requests of what is lost never end; waiting for them is in vain.
            self._end(at_once=True)
            pause_s = self._backoff.pause_s()
            self._tell(f"{self._error}; starting {self._program} again{_in(pause_s)}")
            if self._stopping.wait(pause_s):
                return False
            try:
                self._launch()
            except (PipelineError, OSError) as error:
                self._state, self._error = "recovering", str(error)
            else:
                self._restarts += 1
                self._backoff.ready()
                took = time.monotonic() - since
                self._tell(f"ready again after {took:.1f} s; restarts so far: {self._restarts}")
                return True
            tried_s = time.monotonic() - since
            if self._give_up_after_s and tried_s >= self._give_up_after_s:
                self._fail(
                    f"{self._program} did not come back in {tried_s:.0f} s and has been given up"
                )
                break
        self._end(at_once=True)
        return False

    def _tell(self, text: str) -> None:
        # Whoever serves shows the news; on a console it would stand twice.
        logger.info("%s", text)
        self._news.append(text)

    def news(self) -> list[str]:
        """Returns what the watchdog saw and did since the last call, as sentences."""
        return [self._news.popleft() for _ in range(len(self._news))]

    @property
    def trouble(self) -> str | None:
        """Why it does not serve at the moment; None while it does."""
        return self._error if self._state == "recovering" else None

    def _watch_failed(self, error: Exception) -> None:
        self._error = repr(error)
        self._fail(f"the watchdog crashed; {self._program} is no longer supervised")

    def _fail(self, failure: str) -> None:
        """Lets whoever waits for the server know that it is beyond recovery."""
        self._state, self._failure = "failed", failure
        self._ended.set()


def _in(pause_s: float) -> str:
    return f" in {pause_s:.0f} s" if pause_s else ""
