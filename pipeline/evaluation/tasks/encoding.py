"""Token ids of a text and what goes on with it, as lm-eval's Hugging Face model encodes them.

The rules are those of ``TemplateLM._encode_pair`` and ``HFLM.tok_encode`` in lm-eval 0.4.13
(``lm_eval/api/model.py``, ``lm_eval/models/huggingface.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.source.tokens import PairTokenizer


@dataclass(frozen=True)
class Pair:
    """What a model sees, and the tokens whose likelihood is asked for.

    Attributes:
        ids: All ids that the model gets: context and continuation without its last token.
        continuation: The tokens that are scored; the last of ``ids`` predict them.
    """

    ids: tuple[int, ...]
    continuation: tuple[int, ...]


def encode(tokenizer: PairTokenizer, text: str) -> list[int]:
    """Encodes a text with special tokens, unless it is written with the first of them."""
    beginning = tokenizer.beginning
    written = beginning is not None and text.startswith(beginning[1])
    return tokenizer.encode(text, add_special_tokens=not written)


def encode_pair(tokenizer: PairTokenizer, context: str, continuation: str, limit: int) -> Pair:
    """Encodes a context and its continuation.

    Spaces at the context's end count to the continuation. Both are encoded as one text, and what
    the context alone has tokens for is cut off. A context too long loses its beginning.

    Args:
        tokenizer: The model's.
        context: An empty one is the token that begins a text.
        continuation: What is scored.
        limit: The most tokens that the model takes.

    Raises:
        UsageError: The continuation has no token of its own, or more than the model takes; the
            context has none, and no token begins a text.
    """
    if context:
        before, after = _encoded(tokenizer, context, continuation)
    else:
        before, after = _alone(tokenizer, continuation)
    if not before:
        raise UsageError("a context has no token")
    if not after:
        raise UsageError(f"{continuation!r} has no token of its own behind its context")
    if len(after) > limit:
        raise UsageError(f"a continuation has {len(after)} tokens, where the model takes {limit}")
    return Pair(tuple([*before, *after][-(limit + 1) : -1]), tuple(after))


def _encoded(
    tokenizer: PairTokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    before = encode(tokenizer, context.rstrip())
    return before, encode(tokenizer, context + continuation)[len(before) :]


def _alone(tokenizer: PairTokenizer, continuation: str) -> tuple[list[int], list[int]]:
    if tokenizer.beginning is None:
        raise UsageError("the context is empty, and the tokenizer has neither bos nor eos for it")
    beginning, _ = tokenizer.beginning
    ids = tokenizer.encode(continuation, add_special_tokens=False)
    return (ids[:1], ids[1:]) if ids[:1] == [beginning] else ([beginning], ids)
