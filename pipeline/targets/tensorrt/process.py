"""Runs a long command, keeping its log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Lines kept for the diagnosis: the cause stands above the tracebacks of every rank.
LOG_TAIL = 4000
STOP_S = 20.0


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        returncode: As ``subprocess`` gives it.
        tail: The last lines of the log.
    """

    returncode: int
    tail: tuple[str, ...]


def run_logged(
    command: list[str],
    log: Path,
    on_line: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> Ending:
    """Runs a command to its end, whatever that is.

    Args:
        command: Argument list.
        log: File that receives every line as it comes.
        on_line: Is called with every line.
        environ: The command's environment.
    """
    tail: deque[str] = deque(maxlen=LOG_TAIL)
    with log.open("w", encoding="utf-8", buffering=1) as file:
        file.write(f"$ {shlex.join(command)}\n")
        with _process(command, environ) as process:
            assert process.stdout is not None
            for text in process.stdout:
                line = text.rstrip("\n")
                file.write(f"{line}\n")
                tail.append(line)
                on_line(line)
            returncode = process.wait()
    return Ending(returncode, tuple(tail))


@contextmanager
def _process(command: list[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The process; on the way out of an exception nothing of it is left running."""
    # A session of its own, so that the workers that build the ranks are stopped with it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            # Docker's client passes the signal on to the container.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.stdout:
            process.stdout.close()
