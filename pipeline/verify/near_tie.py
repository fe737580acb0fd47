"""Whether two greedy answers to one request part where two tokens are as likely as each other.

Half precision rounds, and kernels of another batch size or of a reused prefix add up in another
order, so two runs of one model give a token slightly different probabilities. Where two tokens are
nearly as likely, that decides which of them is chosen, and what follows differs from there on.

All that a server tells of a run is the log probability of each token that it chose. It is enough to
tell a near tie from a wrong token. Let no log probability differ between two right runs by more
than a tolerance e. One run chose a, the other b, and each was the likeliest of its run. Then
log p(a) of the one is not below its log p(b), which is not below the other's log p(b) - e, and the
other way round: what the two chose is within e of each other. And as a run's probabilities sum to
at most 1, exp(log p(a)) + exp(log p(b) - e) is at most 1: two tokens that each are nearly certain
are no tie. Tokens before the place are the same, so theirs are within e, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

TOLERANCE = 0.25
"""Natural logarithm. Logits between 16 and 32, where those of language models' likely tokens lie,
are 1/8 apart in bfloat16, so this is two steps of rounding. Measured on the demo model over 512 log
probabilities of likeliest tokens, alone with a cache against a batch of eight without: at most 0.25
in bfloat16, 0.05 in float16."""

# The same tokens, computed in another order, are far closer than the worst case.
_SAME_TOKENS = 0.1


def why_no_near_tie(
    expected: Sequence[float],
    got: Sequence[float],
    places: Iterable[int],
    tolerance: float,
    *,
    greedy: bool = True,
    may_end: bool = True,
) -> str | None:
    """Says why two answers with different texts cannot both be right; None where they can.

    Args:
        expected: Log probabilities of the tokens of one answer.
        got: Those of the other.
        places: Numbers of the tokens at which they may part, the likeliest first; at least one.
        tolerance: How much a log probability may differ between two right runs.
        greedy: Whether the likeliest token was to be chosen. Of a sampled one, only the tokens
            before it tell something.
        may_end: Whether an answer may end at a token that neither list has.
    """
    if expected and got and not any(expected) and not any(got):
        return (
            "whether that is a near tie cannot be told, because every log probability is 0 "
            "(normalize_log_probs)"
        )
    places = list(places)
    if _same_tokens(expected, got, min(places), tolerance):
        return "all their log probabilities agree, so the tokens are the same and the text is not"
    reasons = [
        _at(expected, got, place, tolerance, greedy=greedy, may_end=may_end) for place in places
    ]
    return None if None in reasons else reasons[0]


def _same_tokens(
    expected: Sequence[float], got: Sequence[float], place: int, tolerance: float
) -> bool:
    # After the last token nothing is left that could tell a near tie from a wrong text.
    if len(expected) != len(got) or place >= len(got) - 1:
        return False
    return _furthest(expected, got) <= tolerance * _SAME_TOKENS


def _at(
    expected: Sequence[float],
    got: Sequence[float],
    place: int,
    tolerance: float,
    *,
    greedy: bool,
    may_end: bool,
) -> str | None:
    before = _furthest(expected[:place], got[:place])
    if before > tolerance:
        return (
            f"before token {place} log probabilities differ by {before:.3g}, and "
            f"{tolerance:g} is allowed"
        )
    there = [scores[place] for scores in (expected, got) if place < len(scores)]
    if not there:
        return "both have the same number of tokens, and all of them are the same"
    if len(there) == 1 and not may_end:
        return f"one has {len(expected)} tokens, the other {len(got)}"
    if not greedy:
        return None
    if len(there) == 1:
        # The other answer ended there, at an end token whose own log probability is not told.
        (score,) = there
        if math.exp(score) * (1 + math.exp(-2 * tolerance)) <= 1:
            return None
        return f"one of them ends at token {place}, where the other's has {_shown(score)}"
    one, other = there
    shown = f"log probabilities of token {place} are {one:.3g} and {other:.3g}"
    if abs(one - other) > tolerance:
        return f"{shown}, {abs(one - other):.3g} apart, and {tolerance:g} is allowed"
    if max(_together(one, other, tolerance), _together(other, one, tolerance)) > 1:
        return f"{shown}, and two tokens cannot both be that likely"
    return None


def _together(one: float, other: float, tolerance: float) -> float:
    """What both tokens have of a run's probability, at least."""
    return math.exp(one) + math.exp(other - tolerance)


def _furthest(some: Sequence[float], others: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(some, others, strict=False)), default=0.0)


def _shown(score: float) -> str:
    return f"the log probability {score:.3g}"
