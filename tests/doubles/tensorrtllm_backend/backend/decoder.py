"""The decoder's arithmetic on the scores of one sequence, in plain NumPy.

Written after penaltyKernels.cu (bias, temperature, penalties, min_tokens), banBadWords.cu,
banRepeatNgram.cu, samplingTopKKernels.cu and samplingTopPKernels.cu (choice and log probabilities),
decodingCommon.h (how top_k and top_p that are not given are taken) and
runtime/samplingConfig.h (temperature 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .request import Sampling

Scores = npt.NDArray[Any]

_TOP_K_MAX = 1024
_TEMPERATURE_EPSILON = 1e-6
_LOWEST = np.float32(-3.4e38)


@dataclass(frozen=True)
class Effective:
    """``top_k``, ``top_p`` and ``temperature`` as the kernels get them."""

    top_k: int
    top_p: float
    temperature: float


def effective(sampling: Sampling) -> Effective:
    """What the kernels are given.

    Temperature 0 makes a *given* top_k 1 and a given top_p 1 and itself 1 (samplingConfig.h,
    ``validate``); with top_p alone the token is then drawn from the whole distribution.
    """
    top_k, top_p, temperature = sampling.top_k, sampling.top_p, sampling.temperature
    if temperature == 0:
        temperature = 1.0
        top_k = None if top_k is None else 1
        top_p = None if top_p is None else 1.0
    k = min(top_k or 0, _TOP_K_MAX)
    p = top_p or 0.0
    if k == 0 and p == 0:
        k = 1
    if k > 0 and p == 0:
        p = 1.0
    return Effective(k, p, 1.0 if temperature is None else temperature)


@dataclass(frozen=True)
class Choice:
    """A token and its log probability, over the whole vocabulary and over the top k."""

    token: int
    log_prob: float
    normalized: float


def choose(
    scores: Scores,
    sampling: Sampling,
    random: np.random.Generator,
    *,
    tokens: Sequence[int],
    prompt_length: int,
    end_id: int | None,
    bad_words: Sequence[Sequence[int]] = (),
    bias: Scores | None = None,
) -> Choice:
    """The next token of a sequence.

    Args:
        scores: float32 [vocabulary].
        tokens: The sequence so far, prompt included.
        prompt_length: Its tokens that are the prompt.
    """
    how = effective(sampling)
    x = penalized(
        scores, sampling, how.temperature, tokens=tokens, prompt_length=prompt_length, bias=bias
    )
    early = len(tokens) - prompt_length < (sampling.min_tokens or 0)
    if early and end_id is not None and end_id >= 0:
        x[end_id] = _LOWEST
    _ban(x, tokens, bad_words, sampling.no_repeat_ngram_size or 0)
    log_probs = x.astype(np.float64)
    log_probs -= log_probs.max()
    log_probs -= np.log(np.exp(log_probs).sum())
    if how.top_k:
        best = np.argsort(-log_probs, kind="stable")[: how.top_k]
        mass = np.exp(log_probs[best])
        place = _draw(mass, random.random() * how.top_p * mass.sum())
        log_prob = float(np.log(mass[place]))
        return Choice(int(best[place]), log_prob, log_prob - float(np.log(mass.sum())))
    order = np.argsort(-log_probs, kind="stable")
    token = int(order[_draw(np.exp(log_probs[order]), random.random() * how.top_p)])
    # The top-p kernel does not know normalize_log_probs.
    return Choice(token, float(log_probs[token]), float(log_probs[token]))


def most_likely(
    scores: Scores,
    *,
    tokens: Sequence[int],
    prompt_length: int,
    end_id: int | None,
    min_tokens: int,
) -> Choice:
    """The next token under lookahead decoding (``DecodingMode::Lookahead`` in executor/types.h).

    The mode has ``min_tokens`` and stop words; temperature, penalties and banned words are not
    looked at, and nobody writes the log probabilities, which stay 0.
    """
    x = scores.copy()
    if len(tokens) - prompt_length < min_tokens and end_id is not None and end_id >= 0:
        x[end_id] = _LOWEST
    return Choice(int(np.argmax(x)), 0.0, 0.0)


def guesses(tokens: Sequence[int], count: int) -> Sequence[int]:
    """What followed the last token where it was last before: at most ``count`` tokens."""
    for place in range(len(tokens) - 2, -1, -1):
        if tokens[place] == tokens[-1]:
            return tokens[place + 1 : place + 1 + count]
    return ()


def penalized(
    scores: Scores,
    sampling: Sampling,
    temperature: float,
    *,
    tokens: Sequence[int],
    prompt_length: int,
    bias: Scores | None,
) -> Scores:
    """Scores with bias, temperature and penalties, as float32 [vocabulary]."""
    x = scores.astype(np.float32)
    if bias is not None:
        x += bias
    if temperature != 1:
        x /= np.float32(temperature + _TEMPERATURE_EPSILON)
    if sampling.repetition_penalty not in (None, 1):
        seen = np.unique(np.asarray(tokens))
        penalty = np.float32(sampling.repetition_penalty)
        x[seen] = np.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counted = tokens[min(sampling.prompt_ignore_length or 0, prompt_length) :]
        ids, counts = np.unique(np.asarray(counted, np.int64), return_counts=True)
        x[ids] -= np.float32(sampling.presence_penalty or 0)
        x[ids] -= np.float32(sampling.frequency_penalty or 0) * counts.astype(np.float32)
    return x


def ends_with_word(tokens: Sequence[int], words: Sequence[Sequence[int]]) -> bool:
    """``stopWordsCriterion``: whether the sequence, prompt included, ends with one of the words."""
    return any(word and list(tokens[-len(word) :]) == list(word) for word in words)


def _draw(mass: Scores, threshold: float) -> int:
    left = threshold - np.cumsum(mass)
    below = np.flatnonzero(left <= 0)
    return int(below[0]) if below.size else len(mass) - 1


def _ban(x: Scores, tokens: Sequence[int], words: Sequence[Sequence[int]], ngram: int) -> None:
    for word in words:
        if word and (len(word) == 1 or list(tokens[-(len(word) - 1) :]) == list(word[:-1])):
            x[word[-1]] = _LOWEST
    if ngram and len(tokens) >= ngram:
        last = list(tokens[len(tokens) - ngram + 1 :]) if ngram > 1 else []
        for start in range(len(tokens) - ngram + 1):
            if list(tokens[start : start + ngram - 1]) == last:
                x[tokens[start + ngram - 1]] = _LOWEST
