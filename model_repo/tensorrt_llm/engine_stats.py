"""What the engine's thread counts, for whoever publishes it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .generation import Generation
from .settings import EngineSettings


@dataclass(frozen=True)
class Finished:
    """One finished request; times in milliseconds.

    Attributes:
        time_to_first_token: From its arrival.
        inter_token_latency: Mean between its tokens; None with fewer than two.
    """

    input_tokens: int
    output_tokens: int
    time_to_first_token: float
    inter_token_latency: float | None


class EngineStats:
    """Counters and gauges written by the engine's thread and read by any other.

    Attributes:
        context: Running requests that have no token yet.
        evictions: Requests that were started again because the engine had dropped them.
        finished_requests: What the reader has not taken yet.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.max_requests = settings.max_batch_size
        self.max_blocks = settings.num_kv_blocks
        self.running = 0
        self.context = 0
        self.waiting = 0
        self.free_blocks = settings.num_kv_blocks
        self.steps = 0
        self.generated_tokens = 0
        self.evictions = 0
        self.finished_requests: deque[Finished] = deque(maxlen=10_000)

    def stepped(self, running: Sequence[Generation], waiting: int, free_blocks: int) -> None:
        """Takes the state after a step."""
        self.steps += 1
        self.running, self.waiting, self.free_blocks = len(running), waiting, free_blocks
        self.context = sum(not generation.first_token for generation in running)

    def finished(self, generation: Generation) -> None:
        """Takes a request that has just been completed."""
        tokens = len(generation.generated)
        decoding = time.perf_counter() - generation.first_token
        self.finished_requests.append(
            Finished(
                input_tokens=int(generation.request.prompt.size),
                output_tokens=tokens,
                time_to_first_token=(generation.first_token - generation.arrived) * 1e3,
                inter_token_latency=decoding / (tokens - 1) * 1e3 if tokens > 1 else None,
            )
        )
