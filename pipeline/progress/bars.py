"""Progress as bars on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.progress.interface import Task
from pipeline.progress.pace import Pace

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID
    from rich.progress import Task as RichTask


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
            row = bars.add_task(description, total=total)
            try:
                yield _BarTask(bars, row)
            finally:
                bars.remove_task(row)

    @contextmanager
    def layers(
        self, description: str, layers: int, tokens: int = 0, *, done: int = 0
    ) -> Iterator[Task]:
        """Draws a bar, and below it the layer, the speed, the time left and the most memory."""
        pace = Pace(layers, tokens, done)
        with self._drawing() as bars:
            row = bars.add_task(description, total=1.0, pace=pace)
            bars.update(row, completed=pace.share)
            try:
                yield _BarLayers(bars, row, pace)
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
    from rich.console import Group, RenderableType
    from rich.padding import Padding
    from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text

    class Row(ProgressColumn):
        bar, share, left = BarColumn(bar_width=30), TaskProgressColumn(), TimeRemainingColumn()

        def render(self, task: RichTask) -> RenderableType:
            elapsed = Text(str(timedelta(seconds=int(task.elapsed or 0))), style="yellow")
            row = Table.grid(padding=(0, 1))
            if task.fields.get("is_stage"):
                row.add_row(Text(task.description, style="bold"), elapsed)
                return row
            parts = [Text(f"  {task.description}"), self.bar(task), self.share(task), elapsed]
            pace: Pace | None = task.fields.get("pace")
            if pace is None:
                row.add_row(*parts, "left", self.left(task))
                return row
            row.add_row(*parts)
            # A line of its own, which a narrow terminal breaks between words.
            return Group(row, Padding(Text(pace.words()), (0, 0, 0, 4)))

    return Row()


class _BarTask:
    def __init__(self, bars: RichProgress, task_id: TaskID) -> None:
        self._bars, self._task_id = bars, task_id

    def advance(self, amount: float = 1.0) -> None:
        self._bars.advance(self._task_id, amount)


class _BarLayers:
    def __init__(self, bars: RichProgress, task_id: TaskID, pace: Pace) -> None:
        self._bars, self._task_id, self._pace = bars, task_id, pace

    def advance(self, amount: float = 1.0) -> None:
        self._pace.advance(amount)
        self._bars.update(self._task_id, completed=self._pace.share)
