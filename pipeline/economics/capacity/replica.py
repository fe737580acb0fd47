"""One simulated server: continuous batching, step by step.

It admits as the engine does under ``guaranteed_no_evict``: in the order of arrival, as long as
there is a slot and the KV cache has a block for every token that the request may come to; who must
wait holds up those behind. Steps in which nothing but decoding happens are counted many at a time,
so the work is that of the requests and not of their tokens.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush

from pipeline.economics.capacity.server import Server

INFINITE = math.inf
_FORGOTTEN = 100


class Job:
    """A request on its way.

    Attributes:
        number: Its place among all.
        prompt: Tokens of its prompt.
        output: Tokens that it asks for.
        arrived: Second at which it was sent.
        first: Second of its first token; None before.
        ended: Second of its last token; None before, and where it was refused.
        refused: Whether the queue was full.
        stream: The stream of a closed load that it belongs to.
    """

    __slots__ = (
        *("number", "prompt", "output", "arrived", "first", "ended", "refused", "stream"),
        *("unread", "held", "begun"),
    )

    def __init__(
        self, number: int, prompt: int, output: int, arrived: float, stream: int = 0
    ) -> None:
        self.number, self.prompt, self.output = number, prompt, output
        self.arrived, self.stream = arrived, stream
        self.first: float | None = None
        self.ended: float | None = None
        self.refused = False
        self.unread, self.held, self.begun = prompt, 0, False


class Replica:
    """Runs the requests that it is given.

    Whoever drives it calls :meth:`finish` at the second that :attr:`due` says, in order with all
    that happens elsewhere.

    Args:
        server: What it is.
        seed: Decides how its pace changes.

    Attributes:
        due: The second at which something is to be done; infinite while it is idle.
        now: The second up to which all is done.
        busy: Seconds in which a step ran.
        front_busy: Seconds in which a request kept others waiting in front.
        most: The most sequences that ran together.
    """

    def __init__(self, server: Server, seed: str = "") -> None:
        self._pace = server.pace
        self._played = server.pace.play(seed) if server.pace else None
        self._factor, self._until = 1.0, 0.0 if server.pace else INFINITE
        self._limits, self._front, self._of = server.limits, server.front, server.steps
        self._free_slots, self._free_blocks = server.limits.slots, server.limits.kv_blocks
        self._incoming: deque[tuple[float, Job]] = deque()
        self._waiting: deque[Job] = deque()
        self._reading: list[Job] = []
        self._chunks: list[int] = []
        self._writing: list[tuple[int, int, Job]] = []  # a heap by the step of the last token
        self.now = self._front_free = 0.0
        self._count = self._length = 0
        self._seconds = 0.0
        self.due = INFINITE
        self.busy = self.front_busy = 0.0
        self.most = 0

    def submit(self, job: Job, now: float) -> None:
        """Takes a request; the engine has it when it has passed the front."""
        if self.due == INFINITE:
            self._keep_pace(now)
        serial = self._front.serial * self._factor
        self._front_free = max(self._front_free, now) + serial
        self.front_busy += serial
        at = self._front_free + self._front.delay * self._factor
        self._incoming.append((at, job))
        if self.due == INFINITE:
            self.now = now
            self._length, self._seconds = 0, 0.0
            self.due = at
        elif at < self.due and not self._chunks and self._length > 1:
            # Nobody is let in within a step.
            self._length = max(1, math.ceil((at - self.now) / self._seconds - 1e-9))
            self.due = self.now + self._length * self._seconds

    def finish(self) -> list[Job]:
        """Does what is due; returns the requests that ended, also those that were refused."""
        done: list[Job] = []
        now = self.now = self.due
        self._count += self._length
        self.busy += self._length * self._seconds
        if self._chunks:
            self._read(now, done)
        writing = self._writing
        while writing and writing[0][0] <= self._count:
            self._end(heappop(writing)[2], now, done)
        self._let_in(now, done)
        self._plan(now)
        return done

    def _read(self, now: float, done: list[Job]) -> None:
        left = []
        for job, chunk in zip(self._reading, self._chunks, strict=False):
            job.unread -= chunk
            if job.unread:
                left.append(job)
                continue
            job.first = now
            if job.output == 1:
                self._end(job, now, done)
            else:
                heappush(self._writing, (self._count + job.output - 1, job.number, job))
        self._reading = left + self._reading[len(self._chunks) :]

    def _end(self, job: Job, now: float, done: list[Job]) -> None:
        job.ended = now
        self._free_slots += 1
        self._free_blocks += job.held
        done.append(job)

    def _let_in(self, now: float, done: list[Job]) -> None:
        incoming, waiting, limits = self._incoming, self._waiting, self._limits
        while incoming and incoming[0][0] <= now + 1e-12:
            job = incoming.popleft()[1]
            inside = len(waiting) + limits.slots - self._free_slots
            needs = limits.blocks(job.prompt + job.output)
            full = limits.queue and inside >= limits.queue + limits.slots
            if full or needs > limits.kv_blocks:
                job.refused = True
                done.append(job)
            else:
                job.held = needs
                waiting.append(job)
        while waiting and self._free_slots and waiting[0].held <= self._free_blocks:
            job = waiting.popleft()
            self._free_slots -= 1
            self._free_blocks -= job.held
            self._reading.append(job)
        self.most = max(self.most, limits.slots - self._free_slots)

    def _keep_pace(self, now: float) -> None:
        """Goes on to the while that a second lies in."""
        if self._pace is None or self._played is None or now < self._until:
            return
        passed = int((now - self._until) / self._pace.seconds) + 1
        # Where nothing was to be done for long, it does not matter where one goes on.
        for _ in range(min(passed, _FORGOTTEN)):
            self._factor = next(self._played)
        self._until += passed * self._pace.seconds

    def _plan(self, now: float) -> None:
        """Decides what the next step is, and how often it repeats until something changes."""
        self._keep_pace(now)
        running = len(self._writing)
        self._chunks = []
        if self._reading:
            tokens, begun = self._take_chunks(self._limits.step_tokens - running)
            if self._chunks or running:
                self._length = 1
                self._seconds = self._of.seconds(running, tokens, begun) * self._factor
                self.due = now + self._seconds
                return
        if running:
            self._seconds = self._of.seconds(running) * self._factor
            length = self._writing[0][0] - self._count
            until = min(self._incoming[0][0] if self._incoming else INFINITE, self._until)
            if until - now < length * self._seconds:
                length = min(length, max(1, math.ceil((until - now) / self._seconds - 1e-9)))
            self._length = length
            self.due = now + length * self._seconds
            return
        self._length = 0
        self.due = self._incoming[0][0] if self._incoming else INFINITE

    def _take_chunks(self, room: int) -> tuple[int, int]:
        """Gives prompts the tokens of a step in their order; says how many, and which are new."""
        begun = used = 0
        for job in self._reading:
            chunk = min(job.unread, room - used)
            # What may not be cut begins a step of its own, where it is longer than one.
            if not self._limits.chunked and chunk < job.unread:
                chunk = 0 if used else job.unread
            if chunk <= 0:
                break
            begun += not job.begun
            job.begun = True
            used += chunk
            self._chunks.append(chunk)
        return used, begun
