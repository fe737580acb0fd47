"""Whether the engine still computes numbers.

Weights that were damaged in memory, an activation beyond its format or a fault of the machine makes
every score of a token NaN. OpenVINO GenAI then goes on without a word: the most likely token is the
one with id 0, and one that is drawn is any token, each with the same probability to the last bit
(openvino_genai 2026.4; greedy with log-probabilities it throws instead). Asking for the
log-probability of every token would show it, and costs an exponential for each entry of the
vocabulary. So only tokens that look so are doubted, and what is doubted is asked for once more by
drawing: a probability that is exactly one of :data:`CANDIDATES` comes from no scores at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .generation import Generation
from .request import GenerationRequest, Sampling
from .sampling import generation_config
from .settings import EngineSettings

NAN_TOKEN = 0
"""What is greater than all scores that are NaN."""

RUN = 4
"""Tokens in a row, each :data:`NAN_TOKEN`, that are doubted in the middle of a text, where one may
well be an ordinary word; and as many again each time."""

CANDIDATES = 50
UNIFORM = 1e-6
"""Largest difference of natural logarithms that is taken for rounding."""

NO_NUMBERS = (
    "the engine computes no numbers (NaN): its weights are damaged, or a value is larger than its "
    "format holds"
)


class Finiteness:
    """Doubts tokens, and asks the engine again.

    Args:
        pipeline: A ContinuousBatchingPipeline; its thread is the caller's.
        genai: The ``openvino_genai`` module.
        tensor: Makes the engine's tensor from an int64 [1, n] array.
        vocab_size: Scores per token.
        ids: Ids for the engine that nobody else takes.
    """

    def __init__(
        self,
        pipeline: Any,
        genai: Any,
        tensor: Callable[[Any], Any],
        vocab_size: int,
        ids: Iterator[int],
    ) -> None:
        self._pipeline, self._genai, self._tensor = pipeline, genai, tensor
        self._vocab_size, self._ids = vocab_size, ids

    def doubts(
        self, generation: Generation, ids: Sequence[int], log_probs: Sequence[float]
    ) -> bool:
        """Whether tokens look as if they had come from no scores.

        Args:
            generation: Their request, which has not taken them yet.
            ids: The engine's newest tokens.
            log_probs: Their natural logarithms, which the engine gives when it draws.
        """
        sampling = generation.request.sampling
        if not sampling.greedy:
            count = min(sampling.top_k or self._vocab_size, self._vocab_size)
            return _is_uniform(log_probs, count)
        if generation.request.log_probs or NAN_TOKEN not in ids:
            return False  # where they are asked for, the engine throws
        run = 0
        for token in reversed([*generation.generated[-RUN * RUN :], *ids]):
            if token != NAN_TOKEN:
                break
            run += 1
        return run > 0 and (not generation.generated or run % RUN == 0)

    def finite(self, prompt: npt.NDArray[np.int64]) -> bool:
        """Asks for one token more after a prompt; whether it comes from numbers.

        Steps the engine, and with it whatever runs. True also where the engine drops the question.

        Args:
            prompt: int64 [n] token ids.
        """
        sampling = Sampling(greedy=False, top_k=min(CANDIDATES, self._vocab_size))
        request = GenerationRequest(prompt, max_new_tokens=1, sampling=sampling)
        config = generation_config(self._genai, request)
        handle = self._pipeline.add_request(next(self._ids), self._tensor(prompt[None]), config)
        while not handle.can_read():
            if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                return True
            self._pipeline.step()
        log_probs = [p for output in handle.read().values() for p in output.generated_log_probs]
        return not _is_uniform(log_probs, sampling.top_k)


def simple_prompt(settings: EngineSettings) -> npt.NDArray[np.int64]:
    """Returns int64 [n] token ids that every engine takes, within one KV block."""
    length = min(8, settings.max_input_len, settings.max_seq_len - 2)
    return np.zeros(length, np.int64)


def _is_uniform(log_probs: Sequence[float], count: int) -> bool:
    return count > 1 and any(
        math.isnan(value) or abs(value + math.log(count)) < UNIFORM for value in log_probs
    )
