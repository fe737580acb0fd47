"""Runs two commands in turns of a second each, so that both meet the same machine.

The speed of a machine that others share goes up and down within minutes. One command behind the
other then compares the machine with itself: here the one is stopped (SIGSTOP) while the other runs,
and only the time of its own turns counts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from .measured import Ran, end_of, started

TURN_S = 1.0
POLL_S = 0.005


@dataclass(frozen=True)
class Command:
    """What is run.

    Attributes:
        words: The command with its arguments.
        output: File for its standard output.
        errors: File for its standard error.
        folder: Where it runs.
    """

    words: Sequence[str]
    output: Path
    errors: Path
    folder: Path


def run_in_turns(commands: Sequence[Command], turn_s: float = TURN_S) -> list[Ran]:
    """Runs commands to their ends, one at a time for ``turn_s`` each.

    Where one fails the others are ended, too.

    Args:
        commands: Each with memory for itself, beside the others.
        turn_s: Seconds of a turn.

    Returns:
        What each took: ``seconds`` of its own turns, the memory of its largest process.
    """
    with ExitStack() as stack:
        running = [stack.enter_context(_stopped(command)) for command in commands]
        turns = cycle(running)
        while not all(one.ended for one in running) and not any(one.ran.code for one in running):
            next(turns).go_on(turn_s)
        return [one.ran for one in running]


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    ran: Ran = field(default_factory=Ran)
    ended: bool = False

    def go_on(self, seconds: float) -> None:
        """Lets it run for a while, or to its end."""
        if self.ended:
            return
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGCONT)
        while not self.ended and time.monotonic() < began + seconds:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.ended = True
                end_of(self.process, self.ran, status, usage)
            else:
                time.sleep(POLL_S)
        self.ran.seconds += time.monotonic() - began
        if not self.ended:
            os.killpg(self.process.pid, signal.SIGSTOP)


@contextmanager
def _stopped(command: Command) -> Iterator[_Running]:
    """Starts a command and stops it at once; it ends with the block."""
    running = _Running(
        started(command.words, output=command.output, errors=command.errors, folder=command.folder)
    )
    process = running.process
    try:
        os.killpg(process.pid, signal.SIGSTOP)
        yield running
    finally:
        if not running.ended:  # another one failed, or this process is interrupted
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
