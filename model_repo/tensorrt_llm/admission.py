"""What must hold before the engine sees a request, and which waiting request may start.

The engine itself checks next to nothing: a token id outside the vocabulary gives garbage, a prompt
larger than the KV cache ends its neighbours too, and a sequence that outgrows the cache is dropped.
"""

from __future__ import annotations

from .request import GenerationRequest, RequestError
from .request_limits import room_problem, tokens_problem
from .settings import TOKENS_PER_BLOCK, EngineSettings, blocks

ASKED = "request_output_len (max_tokens)"
"""What an error calls the number of tokens asked for."""


def check_request(request: GenerationRequest, settings: EngineSettings) -> None:
    """Refuses what the engine cannot do.

    Raises:
        RequestError: With the limit that the request breaks.
    """
    prompt_len = int(request.prompt.size)
    if prompt_len == 0:
        raise RequestError("the prompt is empty: input_ids must hold at least one token")
    if problem := tokens_problem(request.max_new_tokens, ASKED, request.sampling.min_tokens):
        raise RequestError(problem)
    low, high = int(request.prompt.min()), int(request.prompt.max())
    if low < 0 or high >= settings.vocab_size:
        raise RequestError(
            f"input_ids holds the token id {low if low < 0 else high}; "
            f"this model's ids are 0 to {settings.vocab_size - 1}"
        )
    if prompt_len > settings.max_input_len:
        raise RequestError(
            f"the prompt has {prompt_len} tokens; the engine was compiled for at most "
            f"{settings.max_input_len} (max_input_len, or max_num_tokens where a prompt is not cut)"
        )
    if problem := room_problem(prompt_len, request.max_new_tokens, ASKED, settings.max_seq_len):
        raise RequestError(problem)
    total = prompt_len + request.max_new_tokens
    if blocks(total) > settings.num_kv_blocks:
        raise RequestError(
            f"the request needs {blocks(total)} KV cache blocks of {TOKENS_PER_BLOCK} tokens; "
            f"the cache has {settings.num_kv_blocks} (max_tokens_in_paged_kv_cache)"
        )


def check_stream(request: GenerationRequest, settings: EngineSettings) -> None:
    """Refuses a stream that could not be taken up again after an eviction.

    What was sent is then part of the prompt, and TensorRT-LLM would cut one that is too long
    (executorImpl.cpp, fetchNewRequests); the CPU engine would not, and follows suit.

    Raises:
        RequestError: With the limit that the request breaks.
    """
    if settings.guaranteed_no_evict or settings.dynamic_split_fuse:
        return
    longest = int(request.prompt.size) + request.max_new_tokens - 1
    if longest > settings.max_input_len:
        raise RequestError(
            f"the prompt and {ASKED} may grow to {longest} tokens, more than the "
            f"{settings.max_input_len} of the longest prompt; a stream that is evicted under "
            "batch_scheduler_policy max_utilization could then not go on: serve with "
            "enable_chunked_context or guaranteed_no_evict, or do not stream it"
        )


class Capacity:
    """Batch slots and KV blocks: what is promised to running requests and what is left.

    Under ``guaranteed_no_evict`` a request is promised every block it could ever need, so the
    engine never runs out. Under ``max_utilization`` it is promised its prompt's blocks and one
    more; the engine then evicts and computes again when the guess was too low.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._slots = settings.max_batch_size
        self._free_blocks = settings.num_kv_blocks
        self._cautious = settings.guaranteed_no_evict

    def take(self, prompt_len: int, max_new_tokens: int, *, whole: bool = False) -> int | None:
        """Promises a slot and blocks to a request.

        Args:
            whole: Promise every block whatever the policy, for a request that was evicted.

        Returns:
            The blocks promised, to be given back with :meth:`give_back`; None if it must wait.
        """
        needed = blocks(prompt_len + max_new_tokens)
        if not (whole or self._cautious):
            needed = min(needed, blocks(prompt_len) + 1)
        if self._slots == 0 or needed > self._free_blocks:
            return None
        self._slots -= 1
        self._free_blocks -= needed
        return needed

    def give_back(self, promised: int) -> None:
        """Returns the slot and the blocks of one request."""
        self._slots += 1
        self._free_blocks += promised

    @property
    def free_blocks(self) -> int:
        """Blocks promised to nobody."""
        return self._free_blocks
