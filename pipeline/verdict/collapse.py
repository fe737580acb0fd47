"""Tells text that a model falls into from text that it writes."""

from __future__ import annotations

LONGEST_CYCLE = 32
"""Characters of the longest cycle that is looked for: about eight tokens."""
LEAST_REPEATS = 4
LEAST_LENGTH = 8
"""Characters, below which nothing can be said."""
LEAST_WORDS = 12
DISTINCT_SHARE = 0.25
"""Words that differ from each other, of all; 0.6 to 0.8 in stories of 50 tokens."""


def repeats_itself(text: str) -> bool:
    """Decides whether a completion is one repeated token, or a short cycle of them.

    It is when a cycle of at most :data:`LONGEST_CYCLE` characters fills half of the text and comes
    at least :data:`LEAST_REPEATS` times, or when hardly any word of it is new. A song's refrain and
    a table's rule are neither.

    Args:
        text: Without its prompt.
    """
    text = text.strip()
    if len(text) < LEAST_LENGTH:
        return False
    words = text.split()
    if len(words) >= LEAST_WORDS and len(set(words)) <= DISTINCT_SHARE * len(words):
        return True
    return any(
        _longest_run(text, cycle) >= max(len(text) / 2, LEAST_REPEATS * cycle)
        for cycle in range(1, min(LONGEST_CYCLE, len(text) // LEAST_REPEATS) + 1)
    )


def _longest_run(text: str, cycle: int) -> int:
    """Characters of the longest part of a text that repeats every ``cycle`` characters."""
    longest = run = 0
    for one, other in zip(text, text[cycle:], strict=False):
        run = run + 1 if one == other else 0
        longest = max(longest, run)
    return longest + cycle if longest else 0
