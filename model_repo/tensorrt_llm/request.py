"""What the engine is asked for, free of Triton and of OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt


class RequestError(Exception):
    """A request that cannot be served; the text goes to the client as it is.

    Args:
        message: What is wrong with the request, or why it cannot be served now.
        code: The name of a ``pb_utils.TritonError`` code.
    """

    def __init__(self, message: str, code: str = "INVALID_ARG") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in TensorRT-LLM's terms; None means not given.

    ``greedy`` is TensorRT-LLM's rule: without ``top_k`` and ``top_p`` the most likely token wins
    whatever the temperature, ``top_k`` 1 is greedy, and so is a temperature of (nearly) 0.

    Attributes:
        top_k: 0 keeps every token.
        top_p: In (0, 1].
        seed: Of this request's own random numbers; TensorRT-LLM's default is 0.
        min_tokens: Tokens before the end id may be chosen.
    """

    greedy: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    min_tokens: int = 0


@dataclass(frozen=True)
class Guide:
    """What the text must be.

    Attributes:
        kind: TensorRT-LLM's type: ``json``, ``json_schema``, ``regex`` or ``ebnf_grammar``.
        text: The schema, expression or grammar; "" for ``json``.
        end_ids: The model's end ids: one of them, and nothing else, may follow a complete text.
    """

    kind: str
    text: str
    end_ids: frozenset[int]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue.

    Attributes:
        prompt: int64 [n] token ids.
        max_new_tokens: Tokens to generate at most.
        end_id: Ends the text, is not part of the output, and is not chosen before ``min_tokens``;
            None is none.
        stop_words: Token sequences; each ends the text and stays in the output, as upstream.
        log_probs: Whether the log-probability of every generated token is wanted.
        prompt_log_probs: Whether that of every token of the prompt but the first is wanted.
        guide: What the text must be; its end ids are ``end_id`` or among the stop words.
        client_id: The client's request id, "" when it gave none; it need not be unique.
    """

    prompt: npt.NDArray[np.int64]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    end_id: int | None = None
    stop_words: tuple[tuple[int, ...], ...] = ()
    log_probs: bool = False
    prompt_log_probs: bool = False
    guide: Guide | None = None
    client_id: str = ""


class Sink(Protocol):
    """Takes what one request generates. Called by the engine's thread: it must not block."""

    def scheduled(self, reused_blocks: int) -> None:
        """The engine has begun with it; called again when it begins anew after an eviction.

        Args:
            reused_blocks: KV blocks of its prompt that were in the cache already.
        """

    def prompt_scored(self, log_probs: list[float]) -> None:
        """The prompt's log-probabilities, where they are asked for; once, before any token."""

    def tokens(self, ids: list[int], log_probs: list[float], *, last: bool) -> None:
        """New tokens, possibly none when ``last``; ``log_probs`` is empty unless asked for."""

    def fail(self, error: RequestError) -> None:
        """The request cannot be completed. Nothing follows."""
