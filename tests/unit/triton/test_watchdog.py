from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline.triton import watchdog
from pipeline.triton.stubs import is_alive
from pipeline.triton.watchdog import Backoff, Watchdog


def _fails(error: Exception) -> None:
    raise AssertionError(error)


def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_calm_while() -> None:
    now = 0.0
    backoff = Backoff(most_s=10.0, calm_s=60.0, clock=lambda: now)
    assert [backoff.pause_s() for _ in range(7)] == [0, 1, 2, 4, 8, 10, 10]
    backoff.ready()
    now = 59.9
    assert backoff.pause_s() == 10
    # A start that failed in between is no calm while.
    now = 200.0
    assert backoff.pause_s() == 10
    backoff.ready()
    now = 260.0
    assert [backoff.pause_s() for _ in range(3)] == [0, 1, 2]


def test_a_fault_is_reported_until_the_recovery_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "INTERVAL_S", 0.01)
    faults = iter([None, "first", None, "second", "never seen"])
    seen: list[str] = []
    done = threading.Event()

    def recover(fault: str) -> bool:
        seen.append(fault)
        if fault == "second":
            done.set()
            return False
        return True

    guard = Watchdog(lambda: next(faults), recover, _fails)
    guard.start()
    assert done.wait(60)
    guard.stop()
    assert seen == ["first", "second"]


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid)
    child.wait()
    assert not is_alive(child.pid)
    assert is_alive(os.getpid())


def test_stop_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "INTERVAL_S", 0.01)
    before = threading.active_count()
    guard = Watchdog(lambda: None, lambda _: True, _fails)
    guard.start()
    time.sleep(0.03)
    guard.stop()
    assert threading.active_count() == before


def test_an_error_of_its_own_is_told_to_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "INTERVAL_S", 0.01)
    told: list[Exception] = []
    done = threading.Event()

    def recover(_fault: str) -> bool:
        raise ZeroDivisionError("a mistake in the recovery")

    def broken(error: Exception) -> None:
        told.append(error)
        done.set()

    guard = Watchdog(lambda: "a fault", recover, broken)
    guard.start()
    assert done.wait(60)
    guard.stop()
    assert [str(error) for error in told] == ["a mistake in the recovery"]
