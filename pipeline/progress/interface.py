"""What a stage reports to, and who hears nothing, or warnings alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TextIO

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

    def layers(
        self, description: str, layers: int, tokens: int = 0, *, done: int = 0
    ) -> AbstractContextManager[Task]:
        """Returns a context manager around work that goes through a model layer by layer.

        Its unit is a layer, of which ``advance`` may report shares: which layer it is, the tokens
        per second, the time left and the most memory so far are told.

        Args:
            description: What is done.
            layers: How many the model has.
            tokens: Of the text that goes through all of them; 0 where there is no text.
            done: Layers that an earlier run has done, where this one goes on.
        """


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

    def layers(
        self,
        description: str,
        layers: int,
        tokens: int = 0,  # noqa: ARG002
        *,
        done: int = 0,
    ) -> AbstractContextManager[Task]:
        """Returns the task of as many layers as are left."""
        return self.task(description, layers - done)

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
