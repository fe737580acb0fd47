"""How a text goes on whose server was lost: what is asked for next, and what has to come first.

Two ways. A text is **continued** with the prompt and the tokens so far as a new prompt: one step
computes all of them, so the wait does not grow with the text. It is what the engines do themselves
with a request that they had to drop for want of memory. It is right for greedy texts, for sampled
ones whose seed is nobody's wish (a token is drawn for what is before it, whatever was drawn how),
and where nothing of the request counts from the text's beginning. A text is **replayed** by asking
for it anew, and leaving out what was given already: the engines draw from a generator of each
request's own, which begins with its seed, and neither its state nor that of a guide's grammar can
be handed over.

What can be compared is. A replay has to make all that was given; a greedy continuation makes the
last few tokens again. A server with other weights, or a tie of two tokens that is decided
otherwise, would else go on with another text, and nobody could tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pipeline.gateway.engine import Generation, Input, Tokens

How = Literal["begun", "continued", "replayed"]

COLDEST = 1e-5
"""A lower temperature is greedy on both targets (docs/sampling.md)."""

_SCORES = "return_prompt_log_probs"
_WORDS = ("stop_words_list", "bad_words_list")
# What means the same for the rest of a text as for all of it. Penalties count the tokens of prompt
# and answer alike (docs/sampling.md). Whatever is not here is replayed.
_SAME_FOR_THE_REST = frozenset(
    {
        *_WORDS,
        "temperature",
        "runtime_top_k",
        "runtime_top_p",
        "seed",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "embedding_bias",
        "min_tokens",
        "end_id",
        "pad_id",
        "beam_width",
        "lora_task_id",
        "lora_weights",
        "lora_config",
        "streaming",
        "exclude_input_in_output",
        "return_log_probs",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
        _SCORES,
    }
)


class OtherTokensError(Exception):
    """What was made again is not what had been given.

    Attributes:
        place: Number of the first token that differs, from 0, in the whole text.
    """

    def __init__(self, place: int) -> None:
        self.place = place
        super().__init__(f"token {place} differs")


class OtherBuildError(Exception):
    """There are servers, and all of them have another build than the one that began the text."""


@dataclass
class Story:
    """A request and what has been given of its text.

    Attributes:
        asked: The request.
        given: Its tokens so far.
        scored: Whether the prompt's log probabilities have been given.
    """

    asked: Generation
    given: list[int]
    scored: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing can follow, although the server did not say so any more."""
        return len(self.given) >= self.asked.max_tokens


@dataclass(frozen=True)
class Attempt:
    """What is asked of a server.

    Attributes:
        asked: The request.
        how: In which way it goes on.
        expected: Tokens that come first and have been given before.
        start: Number of the first of them in the whole text.
    """

    asked: Generation
    how: How
    expected: tuple[int, ...] = ()
    start: int = 0


def next_attempt(story: Story, number: int, *, may_continue: bool, overlap: int) -> Attempt:
    """Says what to ask next.

    Args:
        story: The request and what there is of its text.
        number: Of the attempt, from 0. Its request id is the request's own and this number, since
            the server that was lost may still be busy with the one before.
        may_continue: Whether texts are continued that can be.
        overlap: Tokens that a greedy continuation makes again; at least one.
    """
    asked, given = story.asked, tuple(story.given)
    inputs = dict(asked.inputs)
    if story.scored:
        del inputs[_SCORES]
    if number and asked.request_id:
        asked = replace(asked, request_id=f"{asked.request_id}-{number}")
    if not given:
        return Attempt(replace(asked, inputs=inputs), "replayed" if number else "begun")
    draws = not is_greedy(inputs)
    if draws:
        # Drawn anew, they would be others.
        overlap = 0
        may_continue = may_continue and asked.seed_is_free
    kept = len(given) - overlap
    if not may_continue or kept <= 0 or not can_continue(inputs, overlap):
        return Attempt(replace(asked, inputs=inputs), "replayed", given)
    if draws:
        inputs["seed"] = secrets.randbits(63)
    least = inputs.get("min_tokens")
    if isinstance(least, int):
        inputs["min_tokens"] = max(0, least - kept)
    rest = replace(
        asked,
        prompt=asked.prompt + given[:kept],
        max_tokens=asked.max_tokens - kept,
        inputs=inputs,
    )
    return Attempt(rest, "continued", given[kept:], kept)


def can_continue(inputs: Mapping[str, Input], overlap: int) -> bool:
    """Says whether the rest of a text can be asked for as a text of its own, but for its draws.

    Args:
        inputs: Of the request.
        overlap: Tokens before the border that are made again, so that a word of several tokens is
            found which lies across it.
    """
    if any(name not in _SAME_FOR_THE_REST for name in inputs):
        return False
    longest = [_longest_word(inputs[name]) for name in _WORDS if name in inputs]
    return all(length is not None and length <= overlap + 1 for length in longest)


def is_greedy(inputs: Mapping[str, Input]) -> bool:
    """Says whether the likeliest token is chosen each time, on either target."""
    top_k, top_p = (inputs.get(name) for name in ("runtime_top_k", "runtime_top_p"))
    if top_k == 1 or (not top_k and not top_p):
        return True
    temperature = inputs.get("temperature")
    cold = isinstance(temperature, int | float) and temperature < COLDEST
    # Without top_k a temperature of 0 means any token to one target, and is refused by the other.
    return bool(cold and top_k)


def _longest_word(value: Input) -> int | None:
    """Tokens of the longest word in a list of the wire's format; None where it cannot be read.

    The format is two rows of one length: all ids, and where each word ends, then -1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) % 2:
        return None
    if not all(isinstance(number, int) for number in value):
        return None
    ends = [0, *(end for end in map(int, value[len(value) // 2 :]) if end > 0)]
    return max((b - a for a, b in pairwise(ends)), default=0)


class Border:
    """Takes out of an attempt's tokens those that were given before.

    Args:
        attempt: What was asked.
        story: Notes what is new.
    """

    def __init__(self, attempt: Attempt, story: Story) -> None:
        self._attempt, self._story, self._seen = attempt, story, 0

    def new(self, tokens: Tokens) -> Tokens | None:
        """Returns what is new of a response; None where nothing is.

        Raises:
            OtherTokensError: A token is another one than before.
        """
        expected = self._attempt.expected[self._seen : self._seen + len(tokens.ids)]
        for place, (old, token) in enumerate(zip(expected, tokens.ids, strict=False), self._seen):
            if old != token:
                raise OtherTokensError(self._attempt.start + place)
        self._seen += len(expected)
        ids = tokens.ids[len(expected) :]
        scores = None if self._story.scored else tokens.prompt_log_probs
        if expected and not ids and scores is None:
            return None
        self._story.scored |= scores is not None
        self._story.given += ids
        log_probs = tokens.log_probs and tokens.log_probs[len(expected) :]
        return Tokens(ids, log_probs, scores, tokens.reused_blocks)

    def end(self) -> None:
        """Says that the text has ended.

        Raises:
            OtherTokensError: Before all that had been given was there.
        """
        if self._seen < len(self._attempt.expected):
            raise OtherTokensError(self._attempt.start + self._seen)
