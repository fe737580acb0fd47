"""Who is taken for hung, with a clock that the tests turn and processes that really stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.triton.progress import LOOK_S, Progress, state_of
from tests.conftest import PROJECT

BEATING = (
    "import ctypes, sys, time\n"
    "from model_repo.common.orphan import end_with_parent\n"
    "end_with_parent(period_s=0.02)\n"
    "print('up', flush=True); sys.stdin.readline()\n"
    "ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock\n"
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BEATING],
        cwd=PROJECT,
        env={**os.environ, "TRTLLM_PIPELINE_BEATS": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def stop(process: subprocess.Popen[str]) -> None:
    """Stops a process, and waits until the kernel has."""
    process.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def go_on(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)
    until(lambda: psutil.Process(process.pid).status() != psutil.STATUS_STOPPED)


def looks(
    progress: Progress, clock: Clock, pid: int, seconds: float, moving: Path | None = None
) -> str | None:
    """Looks every half second of the clock, and where beats are named, after one more of them."""
    for _ in range(round(2 * seconds)):
        clock.now += 0.5
        if moving is not None:
            beat = moving / str(pid)
            before = beat.stat().st_mtime_ns if beat.exists() else 0
            until(lambda: beat.exists() and beat.stat().st_mtime_ns != before)  # noqa: B023
        if fault := progress.fault(os.getpid(), {pid: "m"}):
            return fault
    return None


def test_a_process_that_keeps_the_lock_has_not_moved(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    clock = Clock()
    progress = Progress(tmp_path, lambda: True, 5.0, clock)
    assert looks(progress, clock, process.pid, 7, moving=tmp_path) is None
    assert process.stdin
    process.stdin.write("hang\n")
    process.stdin.flush()
    beat = tmp_path / str(process.pid)
    until(lambda: time.time() - beat.stat().st_mtime > 1)
    assert looks(progress, clock, process.pid, 3) is None
    assert looks(progress, clock, process.pid, 4) == (
        "the Python process of model m has not moved for 5 s"
    )


def test_a_stopped_process_is_seen_without_beats(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    clock = Clock()
    progress = Progress(tmp_path / "none", lambda: True, 0, clock)
    stop(process)
    assert looks(progress, clock, process.pid, 2) is None
    go_on(process)
    assert looks(progress, clock, process.pid, 2) is None
    stop(process)
    assert state_of(process.pid) == "T"
    assert looks(progress, clock, process.pid, 4) == (
        "the Python process of model m was stopped by a signal"
    )


def test_a_supervisor_that_slept_blames_nobody(tmp_path: Path) -> None:
    clock = Clock()
    progress = Progress(tmp_path, lambda: True, 10.0, clock)
    (tmp_path / "7").touch()
    for _ in range(9):
        clock.now += 1000.0  # each look counts for a second at most
        assert progress.fault(os.getpid(), {7: "m"}) is None
    for _ in range(round(10 / LOOK_S)):
        clock.now += LOOK_S
        fault = progress.fault(os.getpid(), {7: "m"})
    assert fault == "the Python process of model m has not moved for 10 s"


def test_a_server_that_does_not_answer_for_long(tmp_path: Path) -> None:
    clock = Clock()
    answers = iter([True, False, False, True, *[False] * 4])
    progress = Progress(tmp_path, lambda: next(answers), 20.0, clock)
    faults = []
    for _ in range(8 * 10):
        clock.now += 0.5
        faults.append(progress.fault(os.getpid(), {}))
    assert faults[:-1] == [None] * 79
    assert faults[-1] == "tritonserver has not answered for 20 s"


def test_it_may_be_switched_off(tmp_path: Path) -> None:
    def never() -> bool:
        raise AssertionError("asked")

    clock = Clock()
    progress = Progress(tmp_path, never, 0, clock)
    (tmp_path / "7").touch()
    for _ in range(200):
        clock.now += 1.0
        assert progress.fault(os.getpid(), {7: "m"}) is None
