"""The inputs of ``tensorrt_llm`` that a request's parameters come to."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.gateway.engine import Input

if TYPE_CHECKING:
    from pipeline.gateway.schema import Sampling

TEMPERATURE, TOP_P = 1.0, 1.0
"""OpenAI's defaults."""

GREEDY_BELOW = 1e-5
"""The CPU engine takes the likeliest token below this temperature (docs/sampling.md)."""

NO_END = -1


def is_greedy(body: Sampling) -> bool:
    """Says whether each token is the likeliest one."""
    temperature = TEMPERATURE if body.temperature is None else body.temperature
    return temperature < GREEDY_BELOW or body.top_k == 1 or body.top_p == 0


def sampling_inputs(body: Sampling) -> dict[str, Input]:
    """Returns inputs by their names on the wire.

    Without ``runtime_top_k`` and ``runtime_top_p`` an engine takes the likeliest token whatever the
    temperature, so a request that samples always has the latter. It also has a seed, drawn here
    where the request has none: so its answer can be made again on another server.

    Args:
        body: Of a request.
    """
    inputs: dict[str, Input] = {}
    if is_greedy(body):
        inputs["runtime_top_k"] = 1
    else:
        inputs["temperature"] = TEMPERATURE if body.temperature is None else body.temperature
        inputs["runtime_top_p"] = TOP_P if body.top_p is None else body.top_p
        if body.top_k is not None and body.top_k > 0:
            inputs["runtime_top_k"] = body.top_k
        seed = secrets.randbits(63) if body.seed is None else body.seed
        inputs["seed"] = seed % 2**64
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens"):
        value = getattr(body, name)
        # 0 penalties are what an engine does anyway; one that cannot count them refuses the input.
        if value:
            inputs[name] = value
    return inputs


def end_inputs(end_ids: Sequence[int], *, ignored: bool) -> dict[str, Input]:
    """Returns inputs that say which tokens end an answer.

    The first is the request's end id, the others are stop words of one token, as ``preprocessing``
    hands them on.

    Args:
        end_ids: Of the model.
        ignored: Whether none does.
    """
    if ignored or not end_ids:
        return {"end_id": NO_END}
    others = tuple(end_ids[1:])
    if not others:
        return {"end_id": end_ids[0]}
    ends = tuple(range(1, len(others) + 1))
    return {"end_id": end_ids[0], "stop_words_list": (*others, *ends)}
