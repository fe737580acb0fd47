"""Runs a command and says how much memory and time it took, the servers that it starts apart.

``peak`` is the kernel's own record of the largest process (``ru_maxrss``), which misses nothing and
counts pages of mapped files. ``own`` and ``anonymous`` are sums over all processes of the command's
session, twice a second: the proportional set size, and the part of it that is no file's. A server
is whatever runs below the command in a session of its own; what it takes is told apart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EVERY_S = 0.5
GB = 1e9
PROC = Path("/proc")


@dataclass
class Taken:
    """What a group of processes took at most, in bytes.

    Attributes:
        own: Proportional set size.
        anonymous: The part of it that no file holds.
    """

    own: int = 0
    anonymous: int = 0

    def look(self, pids: Sequence[int]) -> None:
        """Adds what processes take now; those that have ended take nothing."""
        found = [rollup(pid) for pid in pids]
        self.own = max(self.own, sum(one["Pss"] for one in found))
        self.anonymous = max(self.anonymous, sum(one["Pss_Anon"] for one in found))


@dataclass
class Ran:
    """How a command ended, and what it took.

    Attributes:
        code: Its exit code; negative is a signal.
        seconds: Wall time.
        processor_seconds: Of all its processes that it waited for.
        peak: The most memory of its largest process, in bytes.
        outside: What it took itself, servers left out.
        servers: What its servers took.
    """

    code: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak: int = 0
    outside: Taken = field(default_factory=Taken)
    servers: Taken = field(default_factory=Taken)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def end_in_order() -> None:
    """Lets what ends this process end the commands that it runs, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda ended_by, _frame: sys.exit(128 + ended_by))


def run(
    command: Sequence[str],
    *,
    output: Path | None = None,
    errors: Path | None = None,
    folder: Path | None = None,
    sampled: bool = True,
) -> Ran:
    """Runs a command to its end.

    This process has to be a small one: until the command has taken its place the kernel counts it
    as the command's.

    Args:
        command: With its arguments.
        output: File for its standard output; None leaves it where this process has it.
        errors: The same for standard error.
        folder: Where it runs.
        sampled: Looks at all its processes; without, ``outside`` and ``servers`` stay empty.
    """
    found = Ran()
    began = time.monotonic()
    process = started(command, output=output, errors=errors, folder=folder)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, ended, found))
    if sampled:
        watch.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        # It has a session of its own, which an interruption of this one does not reach.
        os.killpg(process.pid, signal.SIGTERM)
        raise
    finally:
        ended.set()
        if sampled:
            watch.join()
    end_of(process, found, status, usage)
    found.seconds = time.monotonic() - began
    return found


def started(
    command: Sequence[str], *, output: Path | None, errors: Path | None, folder: Path | None
) -> subprocess.Popen[bytes]:
    """Starts a command in a session of its own; see :func:`run`."""
    with _sink(output) as out, _sink(errors) as err:
        return subprocess.Popen(
            list(command), stdout=out, stderr=err, cwd=folder, start_new_session=True
        )


def end_of(process: subprocess.Popen[bytes], ran: Ran, status: int, usage: Any) -> None:
    """Notes what ``os.wait4`` says of a command that has ended."""
    process.returncode = ran.code = os.waitstatus_to_exitcode(status)
    ran.processor_seconds = usage.ru_utime + usage.ru_stime
    ran.peak = usage.ru_maxrss * 1024


def _sink(path: Path | None) -> Any:
    return contextlib.nullcontext() if path is None else path.open("wb")


def _watch(root: int, ended: threading.Event, found: Ran) -> None:
    while not ended.wait(EVERY_S):
        inside, servers = family(root)
        found.outside.look(inside)
        found.servers.look(servers)


def family(root: int) -> tuple[list[int], list[int]]:
    """Processes of a command's session, and those below it in other sessions.

    Args:
        root: The command, which leads its session.
    """
    parents, sessions = {}, {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # Behind the name in brackets, which may hold anything: state, parent, group, session.
            words = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)], sessions[int(entry.name)] = int(words[1]), int(words[3])
    below, found = {root}, 0
    while len(below) > found:
        found = len(below)
        below |= {pid for pid, parent in parents.items() if parent in below}
    # Of a command in the session whose parent has ended, the kernel is the parent.
    below |= {pid for pid, session in sessions.items() if session == root}
    inside = [pid for pid in below if sessions.get(pid) == root]
    return inside, [pid for pid in below if pid in sessions and sessions[pid] != root]


def rollup(pid: int) -> dict[str, int]:
    """What the kernel says of a process's memory, in bytes; nothing of one that has ended."""
    found = {"Pss": 0, "Pss_Anon": 0}
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found
