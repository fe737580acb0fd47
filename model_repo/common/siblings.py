"""Which processes the same server started."""

from __future__ import annotations

from pathlib import Path

PROCESSES = Path("/proc")


def parent_of(process: Path) -> int:
    """Returns the id of the process that started another.

    Args:
        process: The other's folder in ``/proc``.

    Raises:
        OSError, ValueError: It is not there, or no longer.
    """
    # pid (name) state parent ...; the name may hold anything.
    status = (process / "stat").read_text(errors="replace")
    return int(status.rpartition(")")[2].split()[1])
