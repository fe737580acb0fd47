"""Progress of long work: bars on a terminal, plain lines elsewhere, silence in tests."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID
    from rich.progress import Task as RichTask

# A log line more often than this tells a CI reader nothing new.
LINE_INTERVAL_S = 10.0
WARNING = "warning:"
"""How a note begins that is shown even where progress is not."""


class Task(Protocol):
    """One piece of work with a known total."""

    def advance(self, amount: float = 1.0) -> None:
        """Reports ``amount`` more of the task's total as done."""


class Progress(Protocol):
    """Where a stage reports what it is doing."""

    def note(self, message: str) -> None:
        """Reports one line worth reading afterwards."""

    def stage(self, what: str) -> AbstractContextManager[None]:
        """Returns a context manager around a stage; ``what`` says what it does, and why."""

    def task(self, description: str, total: float) -> AbstractContextManager[Task]:
        """Returns a context manager around ``total`` units of work."""


class Silent:
    """Reports nothing."""

    def note(self, message: str) -> None:
        """Drops the message."""

    def stage(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Returns a context manager that nobody watches."""
        return nullcontext()

    def task(self, description: str, total: float) -> AbstractContextManager[Task]:  # noqa: ARG002
        """Returns a task that nobody watches."""
        return _silent_task()

    def advance(self, amount: float = 1.0) -> None:
        """Drops the report."""


@contextmanager
def _silent_task() -> Iterator[Task]:
    yield Silent()


class Warnings(Silent):
    """Reports what goes wrong, and nothing else.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, message: str) -> None:
        """Writes the message if it is a warning."""
        if message.startswith(WARNING):
            print(message, file=self._stream, flush=True)


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
        self._drawn: RichProgress | None = None

    def note(self, message: str) -> None:
        """Prints the message above the bars."""
        # Rich would break long words too; a path is left whole, so that it can be copied.
        text = textwrap.fill(
            message, self._console.width, break_long_words=False, break_on_hyphens=False
        )
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Draws a line with the time that has passed, which its tasks' bars come below."""
        with self._drawing() as bars:
            row = bars.add_task(what, total=None, is_stage=True)
            try:
                yield
            finally:
                bars.remove_task(row)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """Draws a bar with the share done and the time left."""
        with self._drawing() as bars:
            row = bars.add_task(description, total=total, is_stage=False)
            try:
                yield _BarTask(bars, row)
            finally:
                bars.remove_task(row)

    @contextmanager
    def _drawing(self) -> Iterator[RichProgress]:
        """What bars are drawn in: all that are there at a time share one."""
        if self._drawn is not None:
            yield self._drawn
            return
        from rich.progress import Progress as RichProgress

        # Rich would show on the terminal what a stage keeps off standard output.
        with RichProgress(
            _row_column(), console=self._console, transient=True, redirect_stdout=False
        ) as bars:
            self._drawn = bars
            try:
                yield bars
            finally:
                self._drawn = None


def _row_column() -> ProgressColumn:
    """Makes the one column of the rows of bars, as rows of stages and of tasks differ."""
    from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text

    class Row(ProgressColumn):
        bar, share, left = BarColumn(bar_width=30), TaskProgressColumn(), TimeRemainingColumn()

        def render(self, task: RichTask) -> Table:
            elapsed = Text(str(timedelta(seconds=int(task.elapsed or 0))), style="yellow")
            row = Table.grid(padding=(0, 1))
            if task.fields["is_stage"]:
                row.add_row(Text(task.description, style="bold"), elapsed)
            else:
                parts = (self.bar(task), self.share(task), elapsed, "left", self.left(task))
                row.add_row(Text(f"  {task.description}"), *parts)
            return row

    return Row()


class _BarTask:
    def __init__(self, bars: RichProgress, task_id: TaskID) -> None:
        self._bars, self._task_id = bars, task_id

    def advance(self, amount: float = 1.0) -> None:
        self._bars.advance(self._task_id, amount)
