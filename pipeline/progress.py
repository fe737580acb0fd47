"""Progress of long work: bars on a terminal, plain lines elsewhere, silence in tests."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# A log line more often than this tells a CI reader nothing new.
LINE_INTERVAL_S = 10.0


class Task(Protocol):
    """One piece of work with a known total."""

    def advance(self, amount: float = 1.0) -> None:
        """Reports ``amount`` more of the task's total as done."""


class Progress(Protocol):
    """Where a stage reports what it is doing."""

    def note(self, message: str) -> None:
        """Reports one line worth reading afterwards."""

    def task(self, description: str, total: float) -> AbstractContextManager[Task]:
        """Returns a context manager around ``total`` units of work."""


class Silent:
    """Reports nothing."""

    def note(self, message: str) -> None:
        """Drops the message."""

    def task(self, description: str, total: float) -> AbstractContextManager[Task]:  # noqa: ARG002
        """Returns a task that nobody watches."""
        return _silent_task()

    def advance(self, amount: float = 1.0) -> None:
        """Drops the report."""


@contextmanager
def _silent_task() -> Iterator[Task]:
    yield Silent()


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

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """Writes a line at the start, every ten seconds, and at the end."""
        self.note(f"{description} ...")
        task = _LineTask(self, description, total)
        yield task
        self.note(f"{description} done in {time.monotonic() - task.started:.1f} s")


class _LineTask:
    def __init__(self, lines: Lines, description: str, total: float) -> None:
        self.started = time.monotonic()
        self._lines, self._description, self._total = lines, description, total
        self._done = 0.0
        self._next_line = self.started + LINE_INTERVAL_S

    def advance(self, amount: float = 1.0) -> None:
        self._done += amount
        now = time.monotonic()
        if now < self._next_line or not self._done:
            return
        self._next_line = now + LINE_INTERVAL_S
        left = (now - self.started) * max(self._total - self._done, 0) / self._done
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        self._lines.note(f"{self._description}: {share:4.0%}, about {left:.0f} s left")


class Bars:
    """Progress bars on a terminal.

    ``rich`` is imported here because a cached run never draws a bar.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def note(self, message: str) -> None:
        """Prints the message above the bars."""
        # Rich would break long words too; a path is left whole, so that it can be copied.
        text = textwrap.fill(
            message, self._console.width, break_long_words=False, break_on_hyphens=False
        )
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """Draws a bar with the share done and the time left."""
        from rich.progress import (
            BarColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Rich would show on the terminal what a stage keeps off standard output.
        with RichProgress(
            *columns, console=self._console, transient=True, redirect_stdout=False
        ) as bars:
            yield _BarTask(bars, bars.add_task(description, total=total))


class _BarTask:
    def __init__(self, bars: RichProgress, task_id: TaskID) -> None:
        self._bars, self._task_id = bars, task_id

    def advance(self, amount: float = 1.0) -> None:
        self._bars.advance(self._task_id, amount)
