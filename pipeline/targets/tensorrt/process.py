"""Runs a long command, keeping its log, or a short one for its answer."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Lines kept for the diagnosis: the cause stands above the tracebacks of every rank.
LOG_TAIL = 4000
STOP_S = 20.0
KILLED_S = 1.0


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        returncode: As ``subprocess`` gives it.
        tail: The last lines of the log.
        timed_out: Whether it was ended because its time was up.
    """

    returncode: int
    tail: tuple[str, ...]
    timed_out: bool = False


def ask(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a command for what it prints; when its time is up, all that it started ends with it.

    Args:
        command: Argument list.
        timeout_s: Seconds that it may take.

    Returns:
        Its exit code and its output, for people or programs; bytes that are no text are replaced.

    Raises:
        OSError: It cannot be started.
        TimeoutExpired: It takes longer.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException:
        # What it started may outlive it and hold the pipes. One that hangs in the driver cannot be
        # killed, and is not waited for.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILLED_S)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_logged(
    command: list[str],
    log: Path,
    on_line: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
    *,
    directory: Path | None = None,
    timeout_s: float | None = None,
) -> Ending:
    """Runs a command to its end, whatever that is.

    Args:
        command: Argument list.
        log: File that receives every line as it comes.
        on_line: Is called with every line.
        environ: The command's environment.
        directory: Its working directory; None is this process's.
        timeout_s: Seconds after which it is ended; None waits for as long as it takes.
    """
    tail: deque[str] = deque(maxlen=LOG_TAIL)
    with log.open("w", encoding="utf-8", buffering=1) as file:
        file.write(f"$ {shlex.join(command)}\n")
        with (
            _process(command, environ, directory) as process,
            _deadline(process, timeout_s) as passed,
        ):
            assert process.stdout is not None
            for text in process.stdout:
                line = text.rstrip("\n")
                file.write(f"{line}\n")
                tail.append(line)
                on_line(line)
            returncode = process.wait()
    return Ending(returncode, tuple(tail), passed.is_set())


@contextmanager
def _process(
    command: list[str], environ: Mapping[str, str], directory: Path | None
) -> Iterator[subprocess.Popen[str]]:
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
        cwd=directory,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)
        if process.stdout:
            process.stdout.close()


@contextmanager
def _deadline(process: subprocess.Popen[str], timeout_s: float | None) -> Iterator[threading.Event]:
    """Ends the process when its time is up, and says whether that was needed.

    Uses a timer thread: the reader blocks on the next line of a hung process.
    """
    passed = threading.Event()
    if timeout_s is None:
        yield passed
        return

    def end() -> None:
        if process.poll() is None:
            passed.set()
            _stop(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        yield passed
    finally:
        timer.cancel()
        timer.join()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    # It may end by itself meanwhile.
    with suppress(ProcessLookupError):
        # Docker's client passes the signal on to the container.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
