"""How work through the layers of a model gets on, in words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.tables import number, size

_STATUS = Path("/proc/self/status")
_MINUTES_FROM_S, _HOURS_FROM_S = 2 * 60, 2 * 3600


class Pace:
    """Which layer it is, how fast it goes, how long it takes yet, and how much memory it took.

    Tokens per second are those of the text by the share of the layers that they went through: a
    text of 1,000 tokens that takes ten seconds for half of the layers makes 50. So they say when
    the whole text has been through the whole model, and compare models of any depth.

    Args:
        layers: How many the model has.
        tokens: Of the text; 0 where there is none.
        done: Layers that an earlier run did, which say nothing of how fast this one is.
        clock: Monotonic seconds; None is the system's.
        peak: The most memory so far, in bytes, or None where nothing tells; None is this process's.
    """

    def __init__(
        self,
        layers: int,
        tokens: int = 0,
        done: int = 0,
        *,
        clock: Callable[[], float] | None = None,
        peak: Callable[[], int | None] | None = None,
    ) -> None:
        self._layers, self._tokens, self._before = layers, tokens, done
        self._clock, self._peak = clock or time.monotonic, peak or peak_memory
        self._here = 0.0
        self._started = self._reported = self._clock()

    @property
    def share(self) -> float:
        """The share of all layers that are done, from 0 to 1."""
        return min(self._done / self._layers, 1.0) if self._layers else 1.0

    def advance(self, layers: float = 1.0) -> None:
        """Counts layers, or shares of one, as done."""
        self._here += layers
        self._reported = self._clock()

    def words(self) -> str:
        """Says where it is: ``layer 5 of 32, 830 tokens/s, about 9 min left, memory at most
        2.1 GiB``."""
        parts = [f"layer {min(math.floor(self._done) + 1, self._layers)} of {self._layers}"]
        took = self._reported - self._started
        if self._here > 0 and took > 0:
            parts += self._speed(took)
            left = max(self._layers - self._done, 0.0) * took / self._here
            # What went by since the last report belongs to a layer that is not done yet.
            left -= self._clock() - self._reported
            parts.append(f"about {rough_time(max(left, 0.0))} left")
        return ", ".join([*parts, *self._memory()])

    def summary(self) -> str:
        """Says what it took when it is over: ``17 min, 1.9 tokens/s, memory at most 2.1 GiB``."""
        took = self._clock() - self._started
        time_taken = f"{took:.1f} s" if took < _MINUTES_FROM_S else rough_time(took)
        speed = self._speed(took) if self._here > 0 and took > 0 else []
        return ", ".join([time_taken, *speed, *self._memory()])

    @property
    def _done(self) -> float:
        # Shares of a layer add up to a little more or less than one.
        done = self._before + self._here
        return float(round(done)) if math.isclose(done, round(done), abs_tol=1e-6) else done

    def _speed(self, seconds: float) -> list[str]:
        if not self._tokens:
            return []
        speed = self._tokens * self._here / self._layers / seconds
        return [f"{number(speed, 2)} tokens/s"]

    def _memory(self) -> list[str]:
        most = self._peak()
        return [] if most is None else [f"memory at most {size(most)}"]


def rough_time(seconds: float) -> str:
    """Formats seconds, from two minutes on minutes, and from two hours on hours."""
    if seconds < _MINUTES_FROM_S:
        return f"{seconds:.0f} s"
    if seconds < _HOURS_FROM_S:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def peak_memory() -> int | None:
    """Returns the most bytes that this process ever had in memory; None where nothing tells.

    Linux's ``ru_maxrss`` may be that of the program that started this one: a new process shows its
    parent's until it runs a program of its own, and the maximum outlives that. ``VmHWM`` does not.
    """
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        import resource
        import sys
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
