"""The answer to one request of ``generate``, as it is printed and as it is measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtllm_client import ChatTemplate, Chunk, Client, Completion, Stream
    from trtllm_client._request import SamplingOptions

Prompt = str | bytes | Sequence[Mapping[str, str]]
"""A text, or the messages of a conversation."""


@dataclass
class Answer:
    """What has come of an answer so far.

    Attributes:
        pieces: In order.
        started: When the request was sent, in ``time.monotonic`` seconds.
        first: When the first piece of a stream came; None before, and of an answer in one piece.
        ended: When it was complete.
    """

    pieces: list[Chunk | Completion] = field(default_factory=list)
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
        """Returns ``length``, ``stop``, or None where the server does not count tokens.

        Args:
            max_tokens: The limit it ran under.
        """
        from trtllm_client import finish_reason

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
        client: Client,
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
        streams = self._answers_in_pieces()
        answer.started = time.monotonic()
        # Closed at once, wherever an interrupt comes.
        with contextlib.closing(self._stream(prompt) if streams else self._whole(prompt)) as pieces:
            for piece in pieces:
                if streams and answer.first is None:
                    answer.first = time.monotonic()
                answer.pieces.append(piece)
                show(piece.text)
        answer.ended = time.monotonic()

    def _answers_in_pieces(self) -> bool:
        from pipeline.triton.contract import answering_model
        from trtllm_client import CallRestricted

        if self._streams is None:
            client = self._client
            try:
                self._streams = client.model_metadata(answering_model(client.model)).decoupled
            except CallRestricted:
                self._streams = True  # as models of this kind do unless told otherwise
        return self._streams

    def _whole(self, prompt: Prompt) -> Generator[Completion, None, None]:
        if isinstance(prompt, str | bytes):
            yield self._client.generate(prompt, **self._sampling)
        else:
            yield self._client.chat(prompt, **self._chat, **self._sampling)

    def _stream(self, prompt: Prompt) -> Generator[Chunk, None, None]:
        from pipeline.triton.contract import ENSEMBLE

        with self._opened(prompt) as stream:
            try:
                yield from stream
            except (GeneratorExit, KeyboardInterrupt):
                if self._client.model == ENSEMBLE:
                    # Triton does not tell the engine that a stream of it was closed.
                    self._client.cancel(stream.request_id)
                raise

    def _opened(self, prompt: Prompt) -> Stream:
        if isinstance(prompt, str | bytes):
            return self._client.stream(prompt, **self._sampling)
        return self._client.stream_chat(prompt, **self._chat, **self._sampling)
