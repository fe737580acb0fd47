"""What a request's numbers must hold, the same on both targets.

TensorRT-LLM checks them too (``checkTemperature`` and its neighbours in
cpp/tensorrt_llm/executor/samplingConfig.cpp, ``validate`` in executor/requestImpl.h), but answers
with the text of an assertion, such as ``temperature.value() >= 0.f``. Here the client reads the
input's own name and what is allowed. Each function returns why a request is refused, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Scalar = Callable[[str], Any]
"""The value of an optional one-element tensor, or None."""

# Lowest and highest value. TensorRT-LLM takes infinite ones, which only give a text of noise.
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, math.inf),
    "top_k": (0, math.inf),
    # 0 is "not given" (utils.cc, getSamplingConfigFromTensors).
    "top_p": (0, 1),
    "repetition_penalty": (0, math.inf),
    "min_tokens": (0, math.inf),
    "length_penalty": (0, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
    "beam_search_diversity_rate": (0, math.inf),
}


def sampling_problem(scalar: Scalar, names: Mapping[str, str] | None = None) -> str | None:
    """Why the sampling parameters of one prompt are refused.

    Args:
        scalar: Looks an input up by its name on the model.
        names: The model's own names of inputs that the text models call otherwise.
    """
    for text_name, (low, high) in _RANGES.items():
        name = (names or {}).get(text_name, text_name)
        value = scalar(name)
        if value is None:
            continue
        # Written so that NaN is refused too.
        if not math.isfinite(value) and high == math.inf:
            return f"{name} must be a finite number{_from(low)}, got {_shown(value)}"
        if not low <= value <= high:
            return f"{name} must be {_allowed(low, high)}, got {_shown(value)}"
    if scalar("repetition_penalty") == 0:
        return "repetition_penalty must be above 0; 1 leaves the tokens alone"
    return None


def cold_problem(scalar: Scalar, names: Mapping[str, str] | None = None) -> str | None:
    """Why a temperature of 0 is refused where it would not give the most likely token.

    ``validate`` of cpp/include/tensorrt_llm/runtime/samplingConfig.h makes 1 of it, and of top_k
    and top_p where they are given.
    """
    top_k, top_p = ((names or {}).get(name, name) for name in ("top_k", "top_p"))
    if scalar("temperature") != 0 or not scalar(top_p) or scalar(top_k) is not None:
        return None
    return (
        f"temperature 0 with {top_p} and no {top_k} must be sent with {top_k} 1: TensorRT-LLM "
        f"makes of it temperature 1 and {top_p} 1, which is any token"
    )


def tokens_problem(max_tokens: int, name: str, min_tokens: int = 0) -> str | None:
    """Why the number of tokens asked for is refused.

    Args:
        name: What to call it.
        min_tokens: Tokens before the end id may be chosen.
    """
    if max_tokens < 1:
        return f"{name} must be at least 1, got {max_tokens}"
    if min_tokens > max_tokens:
        return f"min_tokens {min_tokens} is above {name} {max_tokens}"
    return None


def room_problem(prompt_len: int, max_tokens: int, name: str, max_seq_len: int) -> str | None:
    """Why a prompt and the tokens asked for are too many together.

    TensorRT-LLM would lower the tokens in silence (llmRequest.cpp, ``validate``), and nothing in
    its answer says that the text was cut.

    Args:
        name: What to call the tokens asked for.
        max_seq_len: Tokens of the engine's longest sequence.
    """
    total = prompt_len + max_tokens
    if total <= max_seq_len:
        return None
    return (
        f"the prompt's {prompt_len} tokens plus {name} {max_tokens} is {total}; "
        f"the engine was compiled for at most {max_seq_len} (max_seq_len)"
    )


def _from(low: float) -> str:
    return f" from {low:g}" if math.isfinite(low) else ""


def _allowed(low: float, high: float) -> str:
    if math.isfinite(high):
        return f"between {low:g} and {high:g}"
    return f"at least {low:g}"


def _shown(value: float) -> str:
    """A value as far as float32 tells it from its neighbours: 1.0000001 is not within 0 and 1."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
