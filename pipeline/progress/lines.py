"""Progress as plain lines, for logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TextIO

from pipeline.progress.interface import Task
from pipeline.progress.pace import Pace, rough_time

# A log line more often than this tells a CI reader nothing new.
LINE_INTERVAL_S = 10.0


class Lines:
    """Plain lines with an estimate of the time left, for logs.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, message: str) -> None:
        """Writes the message as a line."""
        print(message, file=self._stream, flush=True)

    def stage(self, what: str) -> AbstractContextManager[None]:
        """Writes a line; how it ended is told by whoever prints results."""
        self.note(what)
        return nullcontext()

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """Writes a line at the start, every ten seconds, and at the end."""
        self.note(f"{description} ...")
        task = _LineTask(self, description, total)
        yield task
        self.note(f"{description} done in {time.monotonic() - task.started:.1f} s")

    @contextmanager
    def layers(
        self, description: str, layers: int, tokens: int = 0, *, done: int = 0
    ) -> Iterator[Task]:
        """Writes a line at the start, every ten seconds, and at the end."""
        pace = Pace(layers, tokens, done)
        self.note(f"{description}: {pace.words()}")
        yield _LineLayers(self, description, pace)
        self.note(f"{description} done in {pace.summary()}")


class _LineTask:
    def __init__(self, lines: Lines, description: str, total: float) -> None:
        self.started = time.monotonic()
        self._lines, self._description, self._total = lines, description, total
        self._done = 0.0
        self._next_line = self.started + LINE_INTERVAL_S
        # When the first piece was done, and how much it was: what comes before it, such as a walk
        # through the layers for all pieces, says nothing of how long the others take.
        self._first: tuple[float, float] | None = None

    def advance(self, amount: float = 1.0) -> None:
        self._done += amount
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if now < self._next_line or not self._done:
            return
        self._next_line = now + LINE_INTERVAL_S
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        self._lines.note(f"{self._description}: {share:4.0%}{self._left(now)}")

    def _left(self, now: float) -> str:
        assert self._first is not None
        began, before = self._first
        if self._done <= before:
            return ""
        left = (now - began) * max(self._total - self._done, 0) / (self._done - before)
        return f", about {rough_time(left)} left"


class _LineLayers:
    def __init__(self, lines: Lines, description: str, pace: Pace) -> None:
        self._lines, self._description, self._pace = lines, description, pace
        self._next_line = time.monotonic() + LINE_INTERVAL_S

    def advance(self, amount: float = 1.0) -> None:
        self._pace.advance(amount)
        now = time.monotonic()
        if now < self._next_line or self._pace.share >= 1:
            return
        self._next_line = now + LINE_INTERVAL_S
        self._lines.note(f"{self._description}: {self._pace.words()}")
