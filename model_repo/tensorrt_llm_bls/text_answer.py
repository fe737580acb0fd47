"""Builds the text answer of one request from the engine's token responses; knows no Triton."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .detokenizer import IncrementalDetokenizer
from .stop_words import StopWordFilter

Array = npt.NDArray[Any]

# What describes the whole answer so far. The newest is in every response, because upstream's engine
# sends it with every token and end_to_end_grpc_client.py reads it from each response.
_CUMULATIVE = frozenset(
    (
        "cum_log_probs",
        "kv_cache_alloc_new_blocks",
        "kv_cache_reused_blocks",
        "kv_cache_alloc_total_blocks",
        "arrival_time_ns",
        "first_scheduled_time_ns",
        "first_token_time_ns",
        "last_token_time_ns",
        "acceptance_rate",
        "total_accepted_draft_tokens",
        "total_draft_tokens",
    )
)


class TextAnswer:
    """The answer to one request so far.

    Args:
        tokenizer: The model's tokenizer.
        stop_words: Texts that end the answer.
        include_stop_word: Whether the stop word is part of the text.
        streaming: Text as it comes; otherwise all of it at the end.
        accumulate: Whether each response of a stream has the whole text so far, not what is new.
            Token counts and log-probabilities are of the new tokens either way, as upstream's.
        max_tokens: Tokens after which no more can come.
        prompt: Token ids that the answer continues.
        echo: Whether the prompt's text is put in front.
        facts: Go with every response.
        count_tokens: Whether every response says how many tokens are new in it.
        end_ids: Ids that end the answer and are no part of it. The engine leaves out the one that
            it knows as ``end_id`` itself; the model's others are stop words to it, which stay.

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
        accumulate: bool = False,
        max_tokens: int,
        prompt: Sequence[int] = (),
        echo: bool = False,
        facts: Mapping[str, Array] | None = None,
        count_tokens: bool = False,
        end_ids: Collection[int] = (),
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt=() if echo else prompt)
        self._filter = StopWordFilter(stop_words, include_word=include_stop_word)
        self._streaming, self._accumulate = streaming, accumulate and streaming
        self._tokens_left = max_tokens
        self._sent = ""
        self._text = self._detokenizer.push(prompt) if echo else ""
        self._details: dict[str, Array] = {}
        self._facts = dict(facts or {})
        self._count_tokens, self._new_tokens = count_tokens, 0
        self._end_ids, self._ended = frozenset(end_ids), False
        # All scores so far, of which the first so many have been sent.
        self._log_probs: list[float] | None = None
        self._log_probs_sent = 0

    @property
    def stopped(self) -> bool:
        """See the class."""
        return self._filter.stopped

    @property
    def complete(self) -> bool:
        """Whether nothing more can come, so that :meth:`finish` is next."""
        return self.stopped or self._ended or self._tokens_left <= 0

    def take(self, outputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """Takes one engine response.

        Args:
            outputs: By output name; ``output_ids`` int32 [1, 1, n] holds new tokens only,
                ``output_log_probs`` float32 [1, 1, m] the scores of all tokens so far.

        Returns:
            The outputs to send now, or None when there is nothing to say yet.
        """
        details = dict(outputs)
        ids = outputs["output_ids"].reshape(-1).tolist()
        if "output_log_probs" in outputs:
            self._log_probs = outputs["output_log_probs"].reshape(-1).tolist()
        surplus = 0
        if ids and ids[-1] in self._end_ids:
            ids.pop()
            self._ended, surplus = True, 1
        taken = self._read(ids)
        surplus += len(ids) - taken
        if surplus and self._log_probs:
            scores = self._log_probs[-surplus:]
            del self._log_probs[-surplus:]
            if "cum_log_probs" in details:
                details["cum_log_probs"] = details["cum_log_probs"] - np.float32(sum(scores))
        self._tokens_left -= taken
        self._new_tokens += taken
        for name, value in details.items():
            if name not in ("output_ids", "sequence_length", "output_log_probs"):
                self._details[name] = value
        if self.complete or not self._streaming or not self._text:
            return None
        return self._outputs()

    def _read(self, ids: Sequence[int]) -> int:
        """Adds to the text; returns how many tokens it took to come to its end.

        What follows a stop word in the same response would not be there had its tokens come one by
        one, so it is not counted either.
        """
        if not self._filter.watches:
            self._text += self._filter.push(self._detokenizer.push(ids))
            return len(ids)
        for taken, token in enumerate(ids, 1):
            self._text += self._filter.push(self._detokenizer.push([token]))
            if self.stopped:
                return taken
        return len(ids)

    def finish(self) -> dict[str, Array]:
        """The outputs of the last response: what is left, with no new text if that is nothing."""
        if not self.stopped:
            self._text += self._filter.push(self._detokenizer.finish())
        if not self.stopped:
            self._text += self._filter.finish()
        return self._outputs()

    def _outputs(self) -> dict[str, Array]:
        text, self._text = self._text, ""
        if self._accumulate:
            self._sent += text
            text = self._sent
        details = self._details
        self._details = {name: details[name] for name in _CUMULATIVE & details.keys()}
        if self._log_probs is not None:
            new = self._log_probs[self._log_probs_sent :]
            self._log_probs_sent = len(self._log_probs)
            details["output_log_probs"] = np.array(new, np.float32).reshape(1, 1, -1)
        if self._count_tokens:
            details["num_output_tokens"] = np.array([[self._new_tokens]], np.int32)
            self._new_tokens = 0
        return {
            # Flat, as upstream's model sends it: its clients take the first element for the text.
            "text_output": np.array([text.encode()], dtype=np.object_),
            **self._facts,
            **details,
        }
