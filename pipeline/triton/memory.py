"""How much of the machine's memory the processes of a server take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.triton.guardian import children

_KIB = 1024


@dataclass(frozen=True)
class Memory:
    """What a server takes.

    Attributes:
        bytes: The proportional set size (PSS) of all its processes: what each has in memory for
            itself, and its share of what it has in common with others, such as libraries and the
            files of weights. The memory of a GPU is no part of it. None where it is not known.
        why: Why it is not known.
    """

    bytes: int | None
    why: str | None = None


def memory_of(pid: int) -> Memory:
    """Measures a process and everything that it started.

    The kernel's figure for a process, ``Pss`` of ``/proc/PID/smaps_rollup`` (proc_pid_smaps(5)),
    can be added up: what several of them share is counted once.

    Args:
        pid: The process id at the root of the tree.
    """
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        waiting += children(one)
        try:
            total += _proportional_bytes(Path(f"/proc/{one}/smaps_rollup").read_text("ascii"))
        except OSError as error:
            # One that ended meanwhile takes nothing, nor does a zombie.
            if isinstance(error, FileNotFoundError | ProcessLookupError) and one != pid:
                continue
            return Memory(None, f"the memory of process {one} cannot be read: {error.strerror}")
    return Memory(total)


def _proportional_bytes(text: str) -> int:
    """The figure after ``Pss:``, which is in KiB; a process without memory of its own has none."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0]) * _KIB
    return 0
