"""Keeps response iterators that have ended alive a little longer.

The iterator of a decoupled call has two owners: Python, and a table inside Triton's stub process.
After the last response a native thread of the stub takes it off that table, without holding
Python's interpreter lock. If Python has let go by then, that thread destroys the iterator together
with the NumPy arrays of its responses while other threads run Python, and the process dies of a
corrupted heap, under load within seconds (seen with Triton 2.51). So Python has to let go last.

When the thread has done its part cannot be asked. It has nothing to do but such short errands, so
two seconds are ample, and what is kept is bounded by what can end within them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

KEEP_S = 2.0


class Keeper:
    """Holds what has ended for a while; any thread may use it.

    Args:
        seconds: How long at least. It is let go when something else ends after that.
        clock: Monotonic seconds.
    """

    def __init__(
        self, seconds: float = KEEP_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._kept: deque[tuple[float, object]] = deque()

    def iterate(self, responses: Iterable[Any]) -> Iterator[Any]:
        """The items of an iterable, which is kept from its end on, or from where it was left."""
        try:
            yield from responses
        finally:
            self.keep(responses)

    def keep(self, ended: object) -> None:
        """Holds an object, and lets go of those that were held long enough."""
        released = []
        with self._lock:
            now = self._clock()
            self._kept.append((now, ended))
            while self._kept and now - self._kept[0][0] >= self._seconds:
                released.append(self._kept.popleft())
        # Destroying a long answer takes a while; other threads need not wait for that.
        released.clear()

    def __len__(self) -> int:
        return len(self._kept)
