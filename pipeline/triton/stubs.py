"""The processes that run Triton's Python models, one per instance, as /proc shows them.

A stub that dies stays dead: Triton neither restarts it nor reports it as unhealthy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.triton.guardian import STUB, children
from pipeline.triton.progress import state_of

# Between the death of a stub and the moment at which Triton has noticed it by itself.
NOTICED_S = 2.0


def live_stubs(server: int) -> dict[int, str]:
    """Lists the server's living stubs: model name by process id.

    Args:
        server: The process id of tritonserver.
    """
    found = {}
    for pid in children(server):
        model = _model(pid)
        if model and is_alive(pid):
            found[pid] = model
    return found


class LoadingStubs:
    """The stubs of a server that is loading its models.

    Triton notices one that ends before it has opened its model. Later than that it does not, and
    goes on waiting for it; the dead process stays what the kernel calls a zombie.

    Args:
        clock: Monotonic seconds.

    Attributes:
        names: The models of all stubs that were seen alive, by process id.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.names: dict[int, str] = {}
        self._died: dict[int, float] = {}

    def lost(self, server: int) -> str | None:
        """Says, in a sentence, what died without Triton's noticing it; None while nothing did.

        Args:
            server: The process id of tritonserver.
        """
        self.names |= live_stubs(server)
        dead = {pid for pid in children(server) if not is_alive(pid)}
        now = self._clock()
        self._died = {pid: self._died.get(pid, now) for pid in dead}
        lost = [pid for pid, since in self._died.items() if now - since >= NOTICED_S]
        if not lost:
            return None
        names = sorted({self.names[pid] for pid in lost if pid in self.names})
        model = f"model {', '.join(names)}" if names else "a model"
        return f"the Python process of {model} died while the models were loading"


def is_alive(pid: int) -> bool:
    """Says whether a process runs; a zombie that its parent never collects does not."""
    return state_of(pid) not in (None, "Z", "X")


def _model(pid: int) -> str | None:
    """The model a stub runs: its command line holds ``.../MODEL/VERSION/model.py``."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not words[0].endswith(STUB) or len(words) < 2:
        return None
    return Path(words[1]).parent.parent.name
