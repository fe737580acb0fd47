"""How the engine learns that a client of the ensemble has gone.

Triton does not tell the engine: an ensemble passes a cancellation on to the steps that it begins
after it, and the engine's has begun (ScheduleSteps in Triton's core, ensemble_scheduler.cc). But
each response of a stream begins a step of ``postprocessing``, which is told. So a response to the
ensemble carries a *ticket*, and ``postprocessing`` hands that of a cancelled request back, through
memory that it shares with the engine: a call for each would cost more than the text.

The memory is the engine's, without a name in the file system. Its number is random, by which
``postprocessing`` finds it among the open files of the processes that the same server started;
what a ticket says, which any client of that model may send, is never used to open anything else.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import threading
import time
from pathlib import Path

from .siblings import PROCESSES, parent_of

PREFIX = "trtllm-receipts-"
PLACES = 4096
"""Requests that are followed at once; what comes beyond runs to its end whoever reads it."""

Ticket = tuple[int, int, int]
"""The number of the memory, the place in it, and the number of the request."""

_SIZE = 8 * PLACES
_SEARCH_PERIOD_S = 1.0


class Book:
    """The engine's side: tickets, and which of them came back."""

    def __init__(self) -> None:
        self._number = secrets.randbits(63)
        self._fd = os.memfd_create(f"{PREFIX}{self._number}")
        os.ftruncate(self._fd, _SIZE)
        self._memory = mmap.mmap(self._fd, _SIZE)
        self._back = memoryview(self._memory).cast("Q")
        self._free = list(range(PLACES))
        self._lock = threading.Lock()

    def issue(self) -> Ticket | None:
        """Makes the ticket of a request; None where all places are taken."""
        with self._lock:
            if not self._free:
                return None
            # Not to be guessed: who knows a ticket can end its request.
            return self._number, self._free.pop(), secrets.randbits(63) | 1

    def came_back(self, ticket: Ticket) -> bool:
        """Whether the client of a request has gone."""
        return self._back[ticket[1]] == ticket[2]

    def retire(self, ticket: Ticket) -> None:
        """Gives the place of a request that has ended to another; once for each."""
        with self._lock:
            self._free.append(ticket[1])

    def close(self) -> None:
        """Gives the memory back; nothing else may be called after that."""
        self._back.release()
        self._memory.close()
        os.close(self._fd)


class Returns:
    """The other side: hands tickets back.

    Args:
        processes: Where the processes are listed.
        parent: The server's process id; books are only looked for in processes that it started.
    """

    def __init__(self, processes: Path = PROCESSES, parent: int | None = None) -> None:
        self._processes = processes
        self._parent = os.getppid() if parent is None else parent
        self._books: dict[int, memoryview] = {}
        self._search_at = 0.0

    def hand_back(self, ticket: Ticket) -> None:
        """Says that the client of a request has gone; a ticket of no book is passed over."""
        number, place, request = ticket
        book = self._books.get(number) or self._search(number)
        if book is not None and 0 <= place < PLACES:
            book[place] = request

    def _search(self, number: int) -> memoryview | None:
        now = time.monotonic()
        if now < self._search_at:
            return None
        self._search_at = now + _SEARCH_PERIOD_S
        found: dict[int, memoryview] = {}
        for process in self._processes.iterdir():
            # Processes come and go meanwhile, and others' files are not shown.
            with contextlib.suppress(OSError, ValueError):
                if process.name.isdecimal() and parent_of(process) == self._parent:
                    found |= _books_of(process)
        self._books = found
        return found.get(number)


def _books_of(process: Path) -> dict[int, memoryview]:
    books: dict[int, memoryview] = {}
    for link in (process / "fd").iterdir():
        name = str(link.readlink()).removeprefix("/memfd:").partition(" ")[0]
        if not name.startswith(PREFIX):
            continue
        with link.open("r+b") as file:
            if os.fstat(file.fileno()).st_size == _SIZE:
                memory = mmap.mmap(file.fileno(), _SIZE)
                books[int(name.removeprefix(PREFIX))] = memoryview(memory).cast("Q")
    return books
