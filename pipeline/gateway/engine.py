"""What generates tokens, as the gateway sees it: prompts of token ids in, token ids out.

One server is an engine, and so are several that stand in for each other. Errors are those of
``trtllm_client``: ``ServerBusy`` where the queue is full, ``ConnectionFailed`` where nothing
answers or the connection broke, ``DeadlineExceeded``, ``InvalidRequest``, ``ServerFailed``.

Standard library only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Value = bool | int | float | str | bytes
Input = Value | Sequence[Value]
"""A value of an input, or its values where it has several."""


@dataclass(frozen=True)
class Generation:
    """What to generate.

    Attributes:
        prompt: Token ids to go on from; at least one.
        max_tokens: Tokens to generate, at most; at least one.
        inputs: Other inputs of ``tensorrt_llm`` by their names on the wire
            (:mod:`pipeline.triton.contract`), such as ``temperature``, ``runtime_top_k``,
            ``runtime_top_p``, ``seed``, ``return_log_probs``, ``guided_decoding_guide`` and
            ``end_id``. One that is not named is the server's to choose.
        request_id: The id that the request runs under at the server; unique among those running.
        timeout_s: Seconds that it may take; None is the engine's own limit.
        seed_is_free: Whether its seed is nobody's wish, but drawn: a text whose server was lost may
            go on with another one.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    inputs: Mapping[str, Input] = field(default_factory=dict)
    request_id: str = ""
    timeout_s: float | None = None
    seed_is_free: bool = False


@dataclass(frozen=True)
class Tokens:
    """What came in one response.

    Attributes:
        ids: The new token ids; an end id that ended the text may be the last of them.
        log_probs: Natural log probability of each of ``ids``, where ``return_log_probs`` asked for
            it.
        prompt_log_probs: Natural log probability of each token of the prompt but the first, where
            ``return_prompt_log_probs`` asked for it; with the first response.
        reused_blocks: KV blocks of the prompt that were in the cache, where ``return_perf_metrics``
            asked for it.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...] | None = None
    prompt_log_probs: tuple[float, ...] | None = None
    reused_blocks: int | None = None


class Engine(Protocol):
    """One server, or several."""

    def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        """Generates; ends after the last token.

        Closing the iterator early (``aclose``), or cancelling the task that reads it, ends the
        request at the server and frees its slot.

        Args:
            asked: What to generate.

        Raises:
            ClientError: See the module.
        """
        ...

    async def ready(self) -> bool:
        """Tells whether requests are answered now; False where nothing can be reached."""
        ...

    async def close(self) -> None:
        """Closes the connections; running requests end as cancelled."""
        ...
