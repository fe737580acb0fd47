"""The processes that run Triton's Python models, one per instance, as /proc shows them.

A stub that dies stays dead: Triton neither restarts it nor reports it as unhealthy.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.triton.guardian import children

_STUB = "triton_python_backend_stub"


def live_stubs(server: int) -> dict[int, str]:
    """Model names of the server's living stubs, by process id.

    Args:
        server: The process id of tritonserver.
    """
    found = {}
    for pid in children(server):
        model = _model(pid)
        if model and is_alive(pid):
            found[pid] = model
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that its parent never collects does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    # The state follows the command name, which is in parentheses and may hold anything.
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _model(pid: int) -> str | None:
    """The model a stub runs: its command line holds ``.../MODEL/VERSION/model.py``."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not words[0].endswith(_STUB) or len(words) < 2:
        return None
    return Path(words[1]).parent.parent.name
