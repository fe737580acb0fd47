"""Measures several running servers in turns, so that what the machine does else hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.bench.load import PROMPTS
from pipeline.triton.contract import BLS

SECONDS = 30.0


def measure_interleaved(
    servers: Mapping[str, str],
    *,
    baseline: str,
    concurrency: Sequence[int] = (1, 8, 32),
    seconds: float = SECONDS,
    output_tokens: int = 32,
    input_tokens: int = 256,
    prompts: Sequence[str] = PROMPTS,
    model: str = BLS,
    seed: int = 0,
    timeout: float = 600.0,
    on_round: Callable[[int, float], None] = lambda _number, _share: None,
) -> dict[str, Any]:
    """Measures servers round by round: every round visits every server at every level once.

    Within a round the levels, and the servers within a level, come in an order shuffled with
    ``seed``, so that none of them always runs first. Only the server that is visited gets requests.

    Args:
        servers: ``host:port`` of each running server by name.
        baseline: The name of the server that the others are compared with.
        concurrency: Streams kept open together; one level each.
        seconds: Measured time of each server, all levels and rounds together, at least. A run over
            three servers therefore measures for about three times as long.
        output_tokens: Tokens generated per request, whatever the end token.
        input_tokens: Tokens of the prompts that prefill is measured with, about; shorter where the
            engine takes no such prompt.
        prompts: Beginnings of the other requests' prompts, used in turn.
        model: The Triton model that takes the requests.
        seed: Of the order.
        timeout: Seconds for one request.
        on_round: Called after each round with its number, from 1, and the share of ``seconds`` that
            the server measured least has.

    Returns:
        JSON values: ``{"model", "baseline", "seconds", "output_tokens", "rounds", "seed",
        "servers": {name: {...}}}``. Per server: ``seconds`` (measured), ``samples``,
        ``prefill_tokens_per_second`` and ``decode_tokens_per_second`` (estimates at concurrency 1,
        None where that is no level), and ``measurements``: for each level the fields of
        :class:`~pipeline.bench.load.Measurement` and three more. ``ratio`` is the estimate of its
        tokens per second over the baseline's, paired by round, ``difference`` says whether that
        interval excludes 1, and ``prefill_ratio`` is the same of prefill. For the baseline itself
        they are None, False and None.

    Raises:
        UsageError: A number is not above zero, there is no server or prompt, or ``baseline`` names
            none of the servers.
        ServerError: A request failed; the message names the server.
    """
    raise NotImplementedError
