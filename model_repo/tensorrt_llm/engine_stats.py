"""What the engine's thread counts, for whoever publishes it."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .generation import Generation
from .settings import EngineSettings, blocks

LATENCY_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Upper bounds in milliseconds, each of them included."""

OUTCOMES = ("finished", "cancelled", "refused", "failed")
"""How a request ends: complete, given up by its client, never begun, or broken off."""

_LONGEST_BACKLOG = 10_000


@dataclass(frozen=True)
class Levels:
    """What there is at one moment.

    Attributes:
        running: Requests in the engine's batch.
        context: Those of them that have no token yet.
        waiting: Requests that are not in the batch.
        paused: Requests that had begun and are left out for want of KV blocks, in the batch or not.
        used_blocks: KV blocks that running requests hold, shared ones once.
        reserved_blocks: KV blocks promised to them, which nobody else gets.
        gpu_bytes: Memory of GPUs that the engine has; 0 on a CPU.
        pinned_bytes: Memory of the host that is pinned for them.
    """

    running: int = 0
    context: int = 0
    waiting: int = 0
    paused: int = 0
    used_blocks: int = 0
    reserved_blocks: int = 0
    gpu_bytes: int = 0
    pinned_bytes: int = 0


@dataclass(frozen=True)
class Finished:
    """One finished request.

    Attributes:
        time_per_token: Milliseconds, the mean after the first token; None with fewer than two.
    """

    input_tokens: int
    output_tokens: int
    time_per_token: float | None


class Distribution:
    """Counts values by size; for those that come too often to be handed on one by one.

    Args:
        bounds: Upper bounds, ascending. The last count is that of what is above all of them.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int) -> None:
        """Counts a value so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class EngineStats:
    """Counters written by the engine's thread and read by any other; times in milliseconds.

    Attributes:
        stepped_at: Seconds since the epoch at the end of the last step; 0 before the first.
        prompt_tokens: Of prompts that were computed or found in the cache.
        reused_blocks: KV blocks of prompts that were in the cache when their requests began.
        missed_blocks: Those that were not; neither is counted without reuse.
        preemptions: Times that a request that had begun was left out for want of KV blocks: the
            engine passed it over in a step, or dropped it.
        evictions: The latter alone.
        outcomes: Requests by how they ended.
        token_gaps: Time between two tokens of a request. Of tokens that one step made together
            each has its share of the time since the last one.
        queue_times: From arrival to the batch; what the reader has not taken yet, as the next two.
        first_token_times: From arrival to the first token.
        finished_requests: Complete requests.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.max_requests = settings.max_batch_size
        self.max_blocks = settings.num_kv_blocks
        self.steps = 0
        self.stepped_at = 0.0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.reused_blocks = 0
        self.missed_blocks = 0
        self.preemptions = 0
        self.evictions = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.token_gaps = Distribution(LATENCY_BUCKETS)
        self.queue_times: deque[float] = deque(maxlen=_LONGEST_BACKLOG)
        self.first_token_times: deque[float] = deque(maxlen=_LONGEST_BACKLOG)
        self.finished_requests: deque[Finished] = deque(maxlen=_LONGEST_BACKLOG)
        self._step_ended = 0.0
        self._lock = threading.Lock()

    def started(self, generation: Generation) -> None:
        """Takes a request that has just joined the batch, at first or after an eviction."""
        if not generation.started:
            generation.started = time.perf_counter()
            self.queue_times.append((generation.started - generation.arrived) * 1e3)
        if generation.held is not None:
            reused = generation.held.reused
            self.reused_blocks += reused
            self.missed_blocks += blocks(generation.prompt().size) - reused

    def stepped(self, ended: float) -> None:
        """Takes the end of a step, in seconds of the performance counter."""
        self.steps += 1
        self.stepped_at = time.time()
        self._step_ended = ended

    def generated(self, generation: Generation, tokens: int, *, heard: bool) -> None:
        """Takes what the last step gave to a request, possibly nothing.

        Args:
            heard: Whether the engine gave it any token, also one that it had before.
        """
        last = generation.last_token
        if heard:
            generation.paused = False
        elif last:
            # A step has room for a token of each request in the batch.
            self._pause(generation)
        if not tokens and (last or not generation.first_token):
            return
        generation.last_token = now = self._step_ended
        self.generated_tokens += tokens
        if not last:
            self.prompt_tokens += int(generation.request.prompt.size)
            self.first_token_times.append((now - generation.arrived) * 1e3)
            last = now
            tokens -= 1
        if tokens > 0:
            self.token_gaps.add((now - last) * 1e3 / tokens, tokens)

    def evicted(self, generation: Generation) -> None:
        """Takes a request that the engine has dropped and that will be started again."""
        self.evictions += 1
        self._pause(generation)

    def _pause(self, generation: Generation) -> None:
        if not generation.paused:
            generation.paused = True
            self.preemptions += 1

    def finished(self, generation: Generation) -> None:
        """Takes a request that has just been completed."""
        tokens = len(generation.generated)
        decoding = time.perf_counter() - generation.first_token
        self.finished_requests.append(
            Finished(
                input_tokens=int(generation.request.prompt.size),
                output_tokens=tokens,
                time_per_token=decoding / (tokens - 1) * 1e3 if tokens > 1 else None,
            )
        )
        self.ended("finished")

    def ended(self, outcome: str) -> None:
        """Counts a request by one of :data:`OUTCOMES`; any thread."""
        with self._lock:
            self.outcomes[outcome] += 1
