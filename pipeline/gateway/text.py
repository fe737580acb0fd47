"""Tokens to text as they come: pieces of text, what each token counts for, and why it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.gateway.engine import Tokens
from pipeline.gateway.tools.markers import MarkedDetokenizer
from pipeline.triton.contract import BLS
from pipeline.triton.sources import load_module, model_sources

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text: Certain text; may be empty while a character or a stop word is undecided.
        ids: Tokens that belong to the answer and are new with this piece.
        log_probs: Natural log probability of each of them, where they were asked for.
        offsets: Characters of the answer before each of them.
        finish_reason: Why the answer ended, in its last piece; None in those before.
        prompt_log_probs: Natural log probability of each token of the prompt but the first, where
            they were asked for; in the first piece.
    """

    text: str
    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] | None = None
    offsets: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_log_probs: tuple[float, ...] | None = None


class Writer:
    """Writes the text of one answer.

    Detokenizing and stop words are the served models' own code, so the text is the one that
    ``tensorrt_llm_bls`` gives.

    Args:
        tokenizer: The model's, of the tokenizers library.
        prompt: Token ids that the answer continues.
        max_tokens: Tokens after which no more can come.
        end_ids: Ids that end the answer and are no part of it.
        stop: Texts that end it; they are cut off.
        markers: Special tokens whose text is kept, by id; the others leave none.

    Attributes:
        tokens: Tokens of the answer so far.
        reused_blocks: KV blocks of the prompt that the first server had; None where it did not say.
        stopped: Whether a stop word ended the text, so that the engine's work is no longer needed.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: Sequence[int],
        max_tokens: int,
        end_ids: Iterable[int] = (),
        stop: Iterable[str] = (),
        markers: Mapping[int, str] | None = None,
    ) -> None:
        models = model_sources()
        detokenizer = load_module(models, BLS, "detokenizer")
        stop_words = load_module(models, BLS, "stop_words")

        def new(before: Sequence[int]) -> Any:
            return detokenizer.IncrementalDetokenizer(tokenizer, prompt=before)

        self._detokenizer: Any = MarkedDetokenizer(new, markers, prompt) if markers else new(prompt)
        self._filter = stop_words.StopWordFilter(stop)
        self._max_tokens = max_tokens
        self._end_ids = frozenset(end_ids)
        self._ended = False
        self._written = 0
        self.tokens = 0
        self.reused_blocks: int | None = None

    @property
    def stopped(self) -> bool:
        """See the class."""
        return bool(self._filter.stopped)

    def push(self, new: Tokens) -> Piece:
        """Takes tokens, and returns what they add.

        What follows a stop word in the same response would not be there had its tokens come one by
        one, so it does not count.
        """
        ids = new.ids
        if self.reused_blocks is None:
            self.reused_blocks = new.reused_blocks
        if ids and ids[-1] in self._end_ids:
            self._ended, ids = True, ids[:-1]
        text, offsets = "", []
        for token in ids:
            offsets.append(self._written)
            fresh = self._detokenizer.push((token,))
            self._written += len(fresh)
            text += self._filter.push(fresh)
            if self.stopped:
                break
        ids = ids[: len(offsets)]
        self.tokens += len(ids)
        scores = None if new.log_probs is None else new.log_probs[: len(ids)]
        return Piece(text, ids, scores, tuple(offsets), prompt_log_probs=new.prompt_log_probs)

    def finish(self) -> Piece:
        """Returns the last piece: what was held back, and why the answer ended."""
        text = ""
        if not self.stopped:
            text = self._filter.push(self._detokenizer.finish())
        if not self.stopped:
            text += self._filter.finish()
        by_itself = self.stopped or self._ended or self.tokens < self._max_tokens
        return Piece(text, finish_reason="stop" if by_itself else "length")
