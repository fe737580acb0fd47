"""Notices processes of a server that live and do nothing.

A process id says that a process exists. One that was stopped, that waits for a lock forever or that
computes without end keeps its id, and Triton goes on calling itself ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

STOPPED_S = 3.0
"""Seconds that a process may be stopped. Debuggers' stops are another state and are not counted."""

PROBE_S = 5.0
"""Seconds between two questions to the server."""

LOOK_S = 1.0
"""Most seconds that one look counts for. A supervisor that did not run itself, on a busy machine or
one that was put to sleep, learns nothing about others from the time that went by."""


class Progress:
    """Watches one server and its Python stubs.

    Three signs: the kernel's state of each process, the time that the models' own processes write
    every second (``model_repo/common/orphan.py``, a thread that needs the interpreter's lock), and
    an answer from the server. Models that write no time are watched by their state alone.

    Args:
        beats: Folder with a file for each stub, named by its process id.
        answers: Asks the server, for a bounded time.
        hung_after_s: Seconds without a sign after which a process is taken for hung; 0 for never.
            An engine holds the interpreter's lock for a whole step, which a long prompt on a slow
            machine makes many seconds long.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        beats: Path,
        answers: Callable[[], bool],
        hung_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beats, self._answers, self._hung_after_s = beats, answers, hung_after_s
        self._clock = clock
        self._looked = clock()
        self._asked, self._missed_s = self._looked, 0.0
        self._stopped_s: dict[int, float] = {}
        self._still: dict[int, tuple[int, float]] = {}

    def fault(self, server: int, stubs: Mapping[int, str]) -> str | None:
        """Says, in a sentence, what makes no progress; None while everything does.

        Args:
            server: The process id of tritonserver.
            stubs: Models by process id.
        """
        now = self._clock()
        passed, self._looked = min(now - self._looked, LOOK_S), now
        names = {server: "tritonserver"}
        names |= {pid: f"the Python process of model {model}" for pid, model in stubs.items()}
        for pid, name in names.items():
            stopped = state_of(pid) == "T"
            self._stopped_s[pid] = self._stopped_s.get(pid, 0.0) + passed if stopped else 0.0
            if self._stopped_s[pid] >= STOPPED_S:
                return f"{name} was stopped by a signal"
        if not self._hung_after_s:
            return None
        for pid in stubs:
            if self._still_s(pid, passed) >= self._hung_after_s:
                return f"{names[pid]} has not moved for {self._hung_after_s:.0f} s"
        if now - self._asked >= PROBE_S:
            self._missed_s = 0.0 if self._answers() else self._missed_s + PROBE_S
            self._asked = self._clock()
        if self._missed_s >= self._hung_after_s:
            return f"tritonserver has not answered for {self._hung_after_s:.0f} s"
        return None

    def _still_s(self, pid: int, passed: float) -> float:
        """Seconds since a stub wrote the time."""
        try:
            beat = (self._beats / str(pid)).stat().st_mtime_ns
        except OSError:
            return 0.0
        before, still_s = self._still.get(pid, (beat, 0.0))
        still_s = still_s + passed if beat == before else 0.0
        self._still[pid] = beat, still_s
        return still_s


def state_of(pid: int) -> str | None:
    """Returns the letter of proc_pid_stat(5) for a process's state; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The state follows the command name, which is in parentheses and may hold anything.
    return stat.rpartition(")")[2].split()[0]
