"""What is simulated of one server: how long its steps take, and what it admits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """How long one step of in-flight batching takes.

    A step writes one token for each running sequence, and reads a part of the prompts of those that
    have none yet. Its seconds are ``fixed + sequence * sequences + prompt_token * tokens read +
    request * requests begun``: the weights that every step reads, the caches and activations of
    each sequence, the arithmetic of a prompt, and what a server of tokens has to do for a request
    besides. How long the contexts are is not among it.

    Attributes:
        fixed: Seconds of every step.
        sequence: Seconds more for each sequence that gets a token.
        prompt_token: Seconds more for each token of a prompt.
        request: Seconds more for each request whose prompt is begun.
    """

    fixed: float
    sequence: float
    prompt_token: float
    request: float

    def seconds(self, sequences: int, prompt_tokens: int = 0, begun: int = 0) -> float:
        """Returns the seconds of a step."""
        return (
            self.fixed
            + self.sequence * sequences
            + self.prompt_token * prompt_tokens
            + self.request * begun
        )


@dataclass(frozen=True)
class Front:
    """What a request passes before the engine has it.

    Attributes:
        delay: Seconds on its way, however many others are on theirs.
        serial: Seconds during which it keeps those behind it waiting.
    """

    delay: float = 0.0
    serial: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What an engine admits.

    Attributes:
        slots: Sequences that run together (``max_batch_size``).
        kv_blocks: Blocks of its KV cache.
        block_tokens: Tokens of a block.
        step_tokens: Tokens of one step, those that are written and those that are read.
        queue: Requests that may wait beside the running ones; 0 for no limit.
        chunked: Whether a prompt may be read in several steps.
    """

    slots: int
    kv_blocks: int
    block_tokens: int
    step_tokens: int
    queue: int = 0
    chunked: bool = True

    def blocks(self, tokens: int) -> int:
        """Returns the blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True)
class Pace:
    """How much longer or shorter everything takes from one while to the next.

    A machine has more to do than its server. What was measured of that is played again, a round of
    the load test after the other, from a place that is drawn.

    Attributes:
        seconds: How long a while is.
        rounds: For each round of the load test and each while of it, how many times as long as
            usual everything took.
    """

    seconds: float
    rounds: Sequence[Sequence[float]]

    def play(self, seed: str) -> Iterator[float]:
        """Yields one factor for each while, without an end."""
        source = random.Random(seed)  # noqa: S311  a simulation, no secret
        while True:
            made = source.choice(self.rounds)
            place = source.randrange(len(made))
            # Whole, so that no while comes more often than another.
            yield from (*made[place:], *made[:place])


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        steps: How long its steps take.
        front: What is before its engine.
        limits: What it admits.
        pace: How that changes; None where it does not.
    """

    steps: Steps
    front: Front
    limits: Limits
    pace: Pace | None = None
