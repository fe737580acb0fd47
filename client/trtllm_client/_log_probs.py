"""The log probabilities of new tokens, from answers that may repeat those of all tokens so far."""

from __future__ import annotations


class LogProbsSoFar:
    """Takes the new log probabilities out of each response of a stream.

    TensorRT-LLM's executor puts the list of all tokens so far into every response, and NVIDIA's
    ``ensemble`` and ``tensorrt_llm_bls`` pass it on; this project's ``tensorrt_llm_bls`` sends
    those of the new tokens. Nothing in a response says which of the two it is, so the numbers must.
    """

    def __init__(self) -> None:
        self._seen: tuple[float, ...] = ()

    def new(
        self, scores: tuple[float, ...], tokens: int | None, total: float | None
    ) -> tuple[float, ...]:
        """The scores that are new with a response.

        Args:
            scores: Those in the response.
            tokens: How many tokens are new in it; None is not known.
            total: The sum over all tokens so far; None is not known.
        """
        if self._seen and self._has_all(scores, tokens, total):
            scores = scores[len(self._seen) :]
        self._seen += scores
        return scores

    def _has_all(self, scores: tuple[float, ...], tokens: int | None, total: float | None) -> bool:
        before = len(self._seen)
        if scores[:before] != self._seen:
            return False
        if tokens is not None:
            return len(scores) == before + tokens
        if total is not None:
            return abs(sum(scores) - total) <= abs(sum(self._seen) + sum(scores) - total)
        return True
