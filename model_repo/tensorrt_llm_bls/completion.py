"""Builds the text answer of one request from the engine's token responses; knows no Triton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .detokenizer import IncrementalDetokenizer
from .stop_words import StopWordFilter

Array = npt.NDArray[Any]

# Along which axis a detail of several engine responses is joined. Any other is replaced by the
# newest.
_JOINED = {"output_log_probs": 2, "generation_logits": 2}


class Completion:
    """The answer to one request so far.

    Args:
        tokenizer: The model's tokenizer.
        stop_words: Texts that end the answer.
        include_stop_word: Whether the stop word is part of the text.
        streaming: New text as it comes; otherwise all of it at the end.
        max_tokens: Tokens after which no more can come.
        prompt: Token ids whose text is put in front; empty to leave the prompt out.
        num_input_tokens: Goes with every answer; None to leave it out.
        count_tokens: Whether every answer says how many tokens it is made of.

    Attributes:
        stopped: Whether a stop word ended the text, so that the engine's work is no longer needed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_words: Iterable[str] = (),
        include_stop_word: bool = False,
        streaming: bool,
        max_tokens: int,
        prompt: Iterable[int] = (),
        num_input_tokens: int | None = None,
        count_tokens: bool = False,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._filter = StopWordFilter(stop_words, include_word=include_stop_word)
        self._streaming = streaming
        self._tokens_left = max_tokens
        self._text = self._detokenizer.push(prompt)
        self._details: dict[str, Array] = {}
        self._counts: dict[str, Array] = {}
        if num_input_tokens is not None:
            self._counts["num_input_tokens"] = np.array([[num_input_tokens]], np.int32)
        self._count_tokens, self._new_tokens = count_tokens, 0

    @property
    def stopped(self) -> bool:
        """See the class."""
        return self._filter.stopped

    @property
    def complete(self) -> bool:
        """Whether nothing more can come, so that :meth:`finish` is next."""
        return self.stopped or self._tokens_left <= 0

    def take(self, outputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """Takes one engine response.

        Args:
            outputs: By output name; ``output_ids`` int32 [1, 1, n] holds new tokens only.

        Returns:
            The outputs to send now, or None when there is nothing to say yet.
        """
        ids = outputs["output_ids"].reshape(-1).tolist()
        self._tokens_left -= len(ids)
        self._new_tokens += len(ids)
        for name, value in outputs.items():
            if name not in ("output_ids", "sequence_length"):
                self._details[name] = self._merge(name, value)
        self._text += self._filter.push(self._detokenizer.push(ids))
        if self.complete or not self._streaming or not self._text:
            return None
        return self._outputs()

    def finish(self) -> dict[str, Array]:
        """The outputs of the last response: what is left, with an empty text if that is nothing."""
        if not self.stopped:
            self._text += self._filter.push(self._detokenizer.finish())
        if not self.stopped:
            self._text += self._filter.finish()
        return self._outputs()

    def _merge(self, name: str, value: Array) -> Array:
        earlier = self._details.get(name)
        if earlier is None or name not in _JOINED:
            return value
        return np.concatenate((earlier, value), axis=_JOINED[name])

    def _outputs(self) -> dict[str, Array]:
        text, self._text = self._text, ""
        details, self._details = self._details, {}
        if self._count_tokens:
            details["num_output_tokens"] = np.array([[self._new_tokens]], np.int32)
            self._new_tokens = 0
        return {
            "text_output": np.array([[text.encode()]], dtype=np.object_),
            **self._counts,
            **details,
        }
