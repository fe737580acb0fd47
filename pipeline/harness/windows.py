"""The windows of a long text, as lm-eval cuts them."""

from __future__ import annotations

from typing import Any

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipeline.errors import UsageError
from pipeline.evaluation.tasks.encoding import Pair, encode
from pipeline.source.tokens import TextTokenizer


def rolling_pairs(tokenizer: TextTokenizer, text: str, longest: int) -> list[Pair]:
    """Cuts a text into windows whose tokens are each scored once, by lm-eval's own functions.

    Args:
        tokenizer: The model's.
        text: The text.
        longest: The most tokens that the model takes at once.

    Raises:
        UsageError: No token begins a text.
    """
    if tokenizer.beginning is None:
        raise UsageError("the tokenizer has neither bos nor eos to begin a text with")
    windows: Any = get_rolling_token_windows(
        encode(tokenizer, text), tokenizer.beginning[0], longest, 1
    )
    pairs = []
    for before, after in map(make_disjoint_window, windows):
        pairs.append(Pair(tuple([*before, *after][:-1]), tuple(after)))
    return pairs
