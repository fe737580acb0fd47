"""How many short texts two models write, and how long they are."""

from __future__ import annotations

COUNT = 3
PROMPT_TOKENS = 16
# Of a conversation: each of the new tokens costs the whole of it again.
QUESTION_TOKENS = 256
NEW_TOKENS, FEWEST = 32, 8
# Of a model that is read anew for each token; a larger one writes fewer.
LARGE = 125_000_000


def new_tokens(parameters: int) -> int:
    """Says how long the completions of a model are, since each token is a walk through all of it.

    Args:
        parameters: Of the model.
    """
    if parameters <= LARGE:
        return NEW_TOKENS
    return max(FEWEST, round(NEW_TOKENS * LARGE / parameters))
