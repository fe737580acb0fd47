"""One request while the engine works on it: what it has generated and when it is complete."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .kv_blocks import Held
from .request import GenerationRequest, RequestError, Sink


@dataclass(eq=False)
class Generation:
    """The state of one request; only the engine's thread changes it, but for ``cancelled``.

    Attributes:
        handle: The engine's handle; None while waiting.
        promised: KV blocks it holds.
        held: Which ones, where they may be shared.
        evictions: Times in a row that the engine dropped it without a new token.
        paused: Whether the engine has left it out, for want of KV blocks, after its first token.
        textless: Ids that no guide allows.
        refusal: Why it is not served at all.
    """

    request: GenerationRequest
    sink: Sink
    generated: list[int] = field(default_factory=list)
    handle: Any = None
    promised: int = 0
    held: Held | None = None
    evictions: int = 0
    paused: bool = False
    textless: frozenset[int] = frozenset()
    refusal: RequestError | None = None
    cancelled: bool = False
    done: bool = False
    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    _echo: list[float] | None = field(init=False)
    _at_end_id: bool = False
    _to_repeat: int = 0
    _stop_words: dict[int, list[list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        self._echo = [] if self.request.prompt_log_probs else None
        # By their last token: a token that ends none of them, as nearly all do, costs one look-up.
        self._stop_words = defaultdict(list)
        for word in self.request.stop_words:
            self._stop_words[word[-1]].append(list(word))

    @property
    def remaining(self) -> int:
        """Tokens it may still generate."""
        return self.request.max_new_tokens - len(self.generated)

    @property
    def computes_prompt(self) -> bool:
        """Whether a token of it is yet to come, at first or anew after an eviction."""
        return not self.first_token or self.evictions > 0

    @property
    def kept(self) -> int:
        """Tokens that are part of the prompt after an eviction.

        None under a guide, which the engine follows from the first token on: it makes them again.
        """
        return 0 if self.request.guide is not None else len(self.generated)

    @property
    def echoes(self) -> bool:
        """Whether the engine is to give its prompt back, scored, before anything else."""
        return self._echo is not None

    def evicted(self) -> None:
        """The engine has dropped it and will begin anew."""
        self.evictions += 1
        if self._echo is not None:
            self._echo = []
        self._to_repeat = len(self.generated) - self.kept

    def prompt(self) -> npt.NDArray[np.int64]:
        """int64 [1, n] for the engine: the prompt and, after an eviction, what followed it."""
        parts = (self.request.prompt, np.asarray(self.generated[: self.kept], np.int64))
        return np.concatenate(parts).reshape(1, -1)

    def computed(self) -> list[int]:
        """The tokens whose keys and values are in the cache: all but the newest one.

        None while the prompt is being computed, at first or anew after an eviction.
        """
        if self.computes_prompt:
            return []
        newest = None if self._at_end_id else -1
        return [*self.request.prompt.tolist(), *self.generated[:newest]]

    def accept(self, ids: Sequence[int], log_probs: Sequence[float]) -> bool:
        """Takes tokens from the engine, up to the end id, a stop word or the last one allowed.

        Returns:
            Whether the text is complete.

        Raises:
            RequestError: The tokens leave the guide, or are not those of before an eviction; the
                engine gives another prompt back, or not all of its log-probabilities.
        """
        if self._echo is not None:
            ids, log_probs = self._take_echo(self._echo, ids, log_probs)
            if not ids:
                return False
        if not self.first_token:
            self.first_token = time.perf_counter()
        repeated = self._repeat(ids)
        ids, log_probs = ids[repeated:], log_probs[repeated:]
        if self._to_repeat:
            return False
        self.evictions = 0
        start, complete = len(self.generated), False
        for token in ids:
            if token == self.request.end_id:
                complete = self._at_end_id = True
                break
            if token in self.textless:
                raise RequestError(
                    "guided_decoding_guide: after the text so far no token of this model can "
                    "follow it; the text would no longer keep to it"
                )
            self.generated.append(token)
            complete = self.remaining == 0 or self._at_stop_word()
            if complete:
                break
        new = self.generated[start:]
        scores = list(log_probs[: len(new)]) if self.request.log_probs else []
        if new or complete:
            self.done = complete
            self.sink.tokens(new, scores, last=complete)
        return complete

    def _take_echo(
        self, echo: list[float], ids: Sequence[int], log_probs: Sequence[float]
    ) -> tuple[Sequence[int], Sequence[float]]:
        """Takes the prompt out of what the engine gives; returns what follows it."""
        prompt, start = self.request.prompt, len(echo)
        count = min(prompt.size - start, len(ids))
        # What it found in its KV cache it leaves out without a word.
        if (
            len(log_probs) != len(ids)
            or list(ids[:count]) != prompt[start : start + count].tolist()
        ):
            raise RequestError(
                f"the engine gave {len(log_probs)} log-probabilities for "
                f"{len(ids)} tokens, which are not all of the prompt's",
                "INTERNAL",
            )
        echo += log_probs[:count]
        if len(echo) == prompt.size:
            self._echo = None
            # Nothing comes before the first token; what stands there is no probability.
            self.sink.prompt_scored(echo[1:])
        return ids[count:], log_probs[count:]

    def _repeat(self, ids: Sequence[int]) -> int:
        """Passes over tokens that are made a second time; returns how many of ``ids`` are."""
        count = min(self._to_repeat, len(ids))
        start = len(self.generated) - self._to_repeat
        if list(ids[:count]) != self.generated[start : start + count]:
            raise RequestError(
                "the engine dropped the request, and made other tokens of it the second time",
                "UNAVAILABLE",
            )
        self._to_repeat -= count
        return count

    def _at_stop_word(self) -> bool:
        ending_so = self._stop_words.get(self.generated[-1], ())
        return any(self.generated[-len(word) :] == word for word in ending_so)
