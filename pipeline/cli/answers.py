"""The answer to one request of ``generate``, as it is printed and as it is measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.cli.reading import Reading

if TYPE_CHECKING:
    from pipeline.engine_client.interface import TextClient, TextStream
    from trtllm_client import ChatTemplate, Chunk
    from trtllm_client._request import SamplingOptions

Prompt = str | bytes | Sequence[Mapping[str, str]]
"""A text, or the messages of a conversation."""


@dataclass
class Answer:
    """What has come of an answer so far.

    Attributes:
        pieces: In order.
        started: When the request was sent, in ``time.monotonic`` seconds.
        first: When the first piece of a stream came; None before, and of a model that answers once.
        ended: When it was complete.
    """

    pieces: list[Chunk] = field(default_factory=list)
    started: float = 0.0
    first: float | None = None
    ended: float = 0.0

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> int | None:
        """How many tokens it has; None where the server does not count them."""
        counts = [p.num_output_tokens for p in self.pieces if p.num_output_tokens is not None]
        return sum(counts) if counts else None

    @property
    def prompt_tokens(self) -> int | None:
        """How many tokens the prompt has; None where the server does not count them."""
        counts = [p.num_input_tokens for p in self.pieces if p.num_input_tokens is not None]
        return counts[-1] if counts else None

    def finish_reason(self, max_tokens: int) -> str | None:
        """Returns ``length``, ``stop``, or None where the server neither says it nor counts tokens.

        Args:
            max_tokens: The limit it ran under.
        """
        from trtllm_client import finish_reason

        if self.pieces and (said := self.pieces[-1].finish_reason) is not None:
            return said
        return finish_reason(self.tokens, max_tokens)

    def as_dict(self, max_tokens: int) -> dict[str, Any]:
        """Returns the text and what it took as JSON values.

        Args:
            max_tokens: The limit it ran under.
        """
        wait = None if self.first is None else round((self.first - self.started) * 1000, 1)
        return {
            "text": self.text,
            "finish_reason": self.finish_reason(max_tokens),
            "num_input_tokens": self.prompt_tokens,
            "num_output_tokens": self.tokens,
            "pieces": len(self.pieces),
            "seconds": round(self.ended - self.started, 3),
            "time_to_first_token_ms": wait,
        }


class Asking:
    """How the requests of one command are made.

    Args:
        client: Connected to the server.
        sampling: Fields of each request.
        template: What messages are rendered with; None where texts are sent as they are.
        variables: Further variables of the template.
    """

    def __init__(
        self,
        client: TextClient,
        sampling: SamplingOptions,
        template: ChatTemplate | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._sampling = sampling
        self._chat: dict[str, Any] = {"template": template, "template_variables": variables}
        self._streams: bool | None = None

    def ask(
        self,
        prompt: Prompt,
        answer: Answer,
        show: Callable[[str], object],
    ) -> None:
        """Sends a text or messages, and fills the answer while it comes.

        An interrupt ends the request on the server too.

        Args:
            prompt: A text, or the messages of a conversation.
            answer: Filled; holds what has come where this raises.
            show: Called with each new text.

        Raises:
            ClientError: The request failed.
        """
        answer.started = time.monotonic()
        with Reading(lambda: self._opened(prompt), self._stopped) as pieces:
            for piece in pieces:
                if self._streams and answer.first is None:
                    answer.first = time.monotonic()
                answer.pieces.append(piece)
                show(piece.text)
        answer.ended = time.monotonic()

    def _answers_in_pieces(self) -> bool:
        from pipeline.engine_client.connect import speaks_openai
        from pipeline.triton.contract import answering_model
        from trtllm_client import CallRestricted

        if self._streams is None:
            client = self._client
            if speaks_openai(client.url):
                self._streams = True
                return True
            try:
                self._streams = client.model_metadata(answering_model(client.model)).decoupled
            except CallRestricted:
                self._streams = True  # as models of this kind do unless told otherwise
        return self._streams

    def _opened(self, prompt: Prompt) -> TextStream:
        # Of a model that answers once it is a stream of one piece.
        self._streams = self._answers_in_pieces()
        if isinstance(prompt, str | bytes):
            return self._client.stream(prompt, **self._sampling)
        return self._client.stream_chat(prompt, **self._chat, **self._sampling)

    def _stopped(self, request_id: str) -> None:
        from pipeline.triton.contract import ENSEMBLE
        from trtllm_client import ClientError

        if self._client.model == ENSEMBLE:
            # Triton does not tell the engine that a stream of it was closed. The answer may have
            # ended by itself in the meantime, or the server may be gone.
            with contextlib.suppress(ClientError):
                self._client.cancel(request_id)
