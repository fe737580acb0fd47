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
class Times:
    """When things happened to a request, in nanoseconds of the monotonic clock; 0 is never.

    Attributes:
        reused_blocks: KV blocks of its prompt that the engine found in its cache when it began.
    """

    arrival: int = field(default_factory=time.monotonic_ns)
    first_scheduled: int = 0
    first_token: int = 0
    last_token: int = 0
    reused_blocks: int = 0

    def scheduled(self, reused_blocks: int) -> None:
        """The engine has begun with it; only the first time counts."""
        if not self.first_scheduled:
            self.first_scheduled = time.monotonic_ns()
            self.reused_blocks = reused_blocks

    def generated(self) -> None:
        """The engine has made one or more tokens."""
        self.last_token = time.monotonic_ns()
        self.first_token = self.first_token or self.last_token


@dataclass
class Answer:
    """What one client wants back.

    Attributes:
        streaming: New tokens as they come; otherwise all of them in one response.
        wanted: Names of the outputs the client asked for (Triton names all when it did not say).
        prompt: Token ids put before the output when not streaming; empty to leave the prompt out.
        perf_metrics: What the request has cost so far, in every response.
        batch_index: Which row of a batch it answers; None for a request of one row, which upstream
            does not number.
    """

    streaming: bool
    wanted: frozenset[str]
    prompt: tuple[int, ...] = ()
    input_tokens: int = 0
    log_probs: bool = False
    perf_metrics: bool = False
    num_input_tokens: bool = False
    num_output_tokens: bool = False
    batch_index: int | None = None
    times: Times = field(default_factory=Times)
    _prompt_log_probs: list[float] | None = None
    _generated: int = 0
    _log_probs: list[float] = field(default_factory=list)

    def prompt_scored(self, log_probs: list[float]) -> None:
        """The log-probabilities of the prompt, which the next response has; before its tokens."""
        self._prompt_log_probs = log_probs

    def outputs(self, ids: Sequence[int], log_probs: Sequence[float]) -> dict[str, Array]:
        """The output tensors of the next response.

        Args:
            ids: Tokens not sent yet.
            log_probs: Their natural log-probabilities; empty unless asked for.

        Returns:
            By output name, with the batch dimension of 1 in front: ``output_ids`` int32 [1, 1, n]
            and ``sequence_length`` int32 [1, 1] always; ``output_log_probs`` float32 [1, 1, m]
            and ``cum_log_probs`` float32 [1, 1], both of all tokens generated so far, when asked
            for: upstream's executor puts the whole list into each response of a stream
            (``LlmRequest::createResult``). ``prompt_log_probs`` float32 [1, tokens of the prompt
            - 1] in the first response alone, when asked for; upstream has no such output.
        """
        self._generated += len(ids)
        self._log_probs += log_probs
        tokens = [*self.prompt, *ids] if not self.streaming else list(ids)
        named: dict[str, Array] = {
            "output_ids": np.array(tokens, np.int32).reshape(1, 1, -1),
            "sequence_length": _one(len(tokens)),
        }
        if self.log_probs:
            named["output_log_probs"] = np.array(self._log_probs, np.float32).reshape(1, 1, -1)
            named["cum_log_probs"] = np.array([[sum(self._log_probs)]], np.float32)
        if self._prompt_log_probs is not None:
            named["prompt_log_probs"] = np.array([self._prompt_log_probs], np.float32)
            self._prompt_log_probs = None
        if self.num_input_tokens:
            named["num_input_tokens"] = _one(self.input_tokens)
        if self.num_output_tokens:
            # Whatever is in output_ids, the prompt's too, as upstream counts.
            named["num_output_tokens"] = _one(len(tokens))
        if self.batch_index is not None:
            named["batch_index"] = _one(self.batch_index)
        if self.perf_metrics:
            named |= self._metrics()
        return {name: value for name, value in named.items() if name in self.wanted}

    def _metrics(self) -> dict[str, Array]:
        total = blocks(self.input_tokens + self._generated)
        reused = self.times.reused_blocks
        return {
            "kv_cache_alloc_total_blocks": _one(total),
            "kv_cache_alloc_new_blocks": _one(total - reused),
            "kv_cache_reused_blocks": _one(reused),
            "arrival_time_ns": _time(self.times.arrival),
            "first_scheduled_time_ns": _time(self.times.first_scheduled),
            "first_token_time_ns": _time(self.times.first_token),
            "last_token_time_ns": _time(self.times.last_token),
            # This engine drafts no tokens.
            "acceptance_rate": np.zeros((1, 1), np.float32),
            "total_accepted_draft_tokens": _one(0),
            "total_draft_tokens": _one(0),
        }


def _one(value: int) -> Array:
    return np.array([[value]], np.int32)


def _time(value: int) -> Array:
    return np.array([[value]], np.int64)
