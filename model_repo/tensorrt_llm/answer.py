"""The outputs of one answer, as NVIDIA's ``tensorrt_llm`` model shapes them (one beam)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .settings import blocks

Array = npt.NDArray[np.generic]


@dataclass
class Answer:
    """What one client wants back.

    Attributes:
        streaming: New tokens as they come; otherwise all of them in one response.
        wanted: Names of the outputs the client asked for (Triton names all when it did not say).
        prompt: Token ids put before the output when not streaming; empty to leave the prompt out.
        perf_metrics: Times of the request, in the last response.
    """

    streaming: bool
    wanted: frozenset[str]
    prompt: tuple[int, ...] = ()
    input_tokens: int = 0
    log_probs: bool = False
    perf_metrics: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False
    arrival_time_ns: int = field(default_factory=time.monotonic_ns)
    _first_token_time_ns: int = 0
    _generated: int = 0
    _cum_log_prob: float = 0.0

    def outputs(
        self, ids: Sequence[int], log_probs: Sequence[float], *, last: bool
    ) -> dict[str, Array]:
        """The output tensors of the next response.

        Args:
            ids: Tokens not sent yet.
            log_probs: Their natural log-probabilities; empty unless asked for.

        Returns:
            By output name, with the batch dimension of 1 in front: ``output_ids`` int32 [1, 1, n]
            and ``sequence_length`` int32 [1, 1] always; ``output_log_probs`` float32 [1, 1, n]
            and ``cum_log_probs`` float32 [1, 1] (of all tokens so far) when asked for.
        """
        self._generated += len(ids)
        self._cum_log_prob += sum(log_probs)
        self._first_token_time_ns = self._first_token_time_ns or time.monotonic_ns()
        tokens = [*self.prompt, *ids] if not self.streaming else list(ids)
        named: dict[str, Array] = {
            "output_ids": np.array(tokens, np.int32).reshape(1, 1, -1),
        }
        if "sequence_length" in self.wanted:
            named["sequence_length"] = _one(len(tokens))
        if self.log_probs:
            named["output_log_probs"] = np.array([[log_probs]], np.float32).reshape(1, 1, -1)
            named["cum_log_probs"] = np.array([[self._cum_log_prob]], np.float32)
        if self.num_input_tokens:
            named["num_input_tokens"] = _one(self.input_tokens)
        if self.num_output_tokens:
            named["num_output_tokens"] = _one(len(ids))
        if self.perf_metrics and last:
            named |= {
                "kv_cache_alloc_total_blocks": _one(blocks(self.input_tokens + self._generated)),
                "arrival_time_ns": _time(self.arrival_time_ns),
                "first_token_time_ns": _time(self._first_token_time_ns),
                "last_token_time_ns": _time(time.monotonic_ns()),
            }
        return {name: value for name, value in named.items() if name in self.wanted}


def _one(value: int) -> Array:
    return np.array([[value]], np.int32)


def _time(value: int) -> Array:
    return np.array([[value]], np.int64)
