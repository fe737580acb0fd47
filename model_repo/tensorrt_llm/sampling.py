"""Request tensors to :class:`request.Sampling`, and that to OpenVINO's GenerationConfig.

TensorRT-LLM's meaning is kept: nothing given is greedy, ``top_k`` 0 keeps every token, ``top_p`` 0
is not given, and a request without a seed uses seed 0, so equal requests get equal answers.
A temperature below :data:`COLDEST` is greedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .request import GenerationRequest, RequestError, Sampling

COLDEST = 1e-5
"""The lowest temperature that is sampled with. Below, only the most likely token has a chance, and
far below the scores divided by it no longer fit into float32, which gives any token at all."""

Scalar = Callable[[str], Any]
"""The value of an optional one-element tensor, or None."""


def read_sampling(scalar: Scalar) -> Sampling:
    """The sampling parameters of one request.

    Args:
        scalar: Looks a tensor up by its name on ``tensorrt_llm``.

    Raises:
        RequestError: A value is out of range.
    """
    temperature = _real(scalar, "temperature", 1.0, low=0.0)
    top_k = _whole(scalar, "runtime_top_k")
    top_p = _real(scalar, "runtime_top_p", 0.0, low=0.0, high=1.0)
    return Sampling(
        greedy=temperature < COLDEST or top_k == 1 or (top_k == 0 and top_p == 0),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p or 1.0,
        seed=_whole(scalar, "seed"),
        repetition_penalty=_penalty(scalar),
        # The engine's own limits; OpenAI's API has the same.
        presence_penalty=_real(scalar, "presence_penalty", 0.0, low=-2.0, high=2.0),
        frequency_penalty=_real(scalar, "frequency_penalty", 0.0, low=-2.0, high=2.0),
        min_tokens=_whole(scalar, "min_tokens"),
    )


def generation_config(genai: Any, request: GenerationRequest, *, already_generated: int = 0) -> Any:
    """OpenVINO's GenerationConfig of a request.

    Args:
        genai: The ``openvino_genai`` module.
        already_generated: Tokens of a request that starts again with them as part of its prompt.
    """
    config = genai.GenerationConfig()
    sampling = request.sampling
    config.max_new_tokens = request.max_new_tokens - already_generated
    config.min_new_tokens = max(0, sampling.min_tokens - already_generated)
    if request.end_ids:
        # Each id is both a stop id and subject to min_new_tokens.
        config.set_eos_token_id(min(request.end_ids))
        config.stop_token_ids = set(request.end_ids)
    else:
        # The engine refuses its own default end id of -1 even where it is to be ignored.
        config.set_eos_token_id(0)
        config.ignore_eos = True
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    # 1 is the chosen token's own; without it the scores of greedy decoding are 0.
    config.logprobs = int(request.log_probs)
    if not sampling.greedy:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.rng_seed = sampling.seed
        if sampling.top_k:
            config.top_k = sampling.top_k
    return config


def _real(
    scalar: Scalar, name: str, default: float, *, low: float, high: float = math.inf
) -> float:
    value = scalar(name)
    if value is None:
        return default
    if not (math.isfinite(value) and low <= value <= high):
        limit = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise RequestError(f"{name} must be {limit}, got {value:g}")
    return float(value)


def _whole(scalar: Scalar, name: str) -> int:
    value = scalar(name)
    if value is not None and value < 0:
        raise RequestError(f"{name} must be at least 0, got {value}")
    return int(value or 0)


def _penalty(scalar: Scalar) -> float:
    value = _real(scalar, "repetition_penalty", 1.0, low=0.0)
    if value == 0:
        raise RequestError("repetition_penalty must be above 0; 1 leaves the tokens alone")
    return value
