"""Whether two answers to one request have the same text, or part where they may."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from pipeline.triton.contract import PREPROCESSING
from pipeline.verify.check import Context, first_difference
from pipeline.verify.near_tie import why_no_near_tie
from pipeline.verify.requests import REPLACEMENT, number_of, text_of
from pipeline.verify.tokens import token_ids
from trtllm_client import Chunk, InvalidRequest, Tensors

# Bytes, hence tokens at most, of one UTF-8 character.
LONGEST_CHARACTER = 4


class Scored(Protocol):
    """A text with the log probability of each of its tokens, where they were asked for."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def output_log_probs(self) -> tuple[float, ...] | None:
        """One number per token."""


@dataclass(frozen=True)
class Answer:
    """A text with the log probability of each of its tokens; None where they were not sent."""

    text: str
    output_log_probs: tuple[float, ...] | None = None


def answer_of(responses: Iterable[Tensors], *, accumulates: bool = False) -> Answer:
    """Joins the responses of a text model to an answer.

    Args:
        responses: All of them, in order.
        accumulates: Whether each text is the whole text so far.
    """
    every = list(responses)
    texts = [text_of(tensors) for tensors in every]
    text = next(filter(None, reversed(texts)), "") if accumulates else "".join(texts)
    lists = [
        tuple(float(score) for score in tensors["output_log_probs"].values)
        for tensors in every
        if "output_log_probs" in tensors
    ]
    tokens = sum(number_of(tensors, "num_output_tokens") for tensors in every)
    return Answer(text, all_scores(lists, tokens))


def joined(chunks: Iterable[Chunk]) -> Answer:
    """Joins the pieces of a stream to an answer."""
    pieces = list(chunks)
    lists = [piece.output_log_probs for piece in pieces if piece.output_log_probs is not None]
    tokens = sum(piece.num_output_tokens or 0 for piece in pieces)
    return Answer("".join(piece.text for piece in pieces), all_scores(lists, tokens))


def all_scores(lists: Sequence[tuple[float, ...]], tokens: int) -> tuple[float, ...] | None:
    """Collects the log probabilities of an answer whose responses bring new ones, or all so far.

    Args:
        lists: Those of each response; TensorRT-LLM's executor puts all so far into each one
            (``LlmRequest::createResult``), and text models send what is new.
        tokens: How many tokens the answer has.
    """
    if not lists:
        return None
    return lists[-1] if len(lists[-1]) == tokens else sum(lists, ())


def difference(
    context: Context,
    prompt: str,
    expected: Scored,
    got: Scored,
    *,
    greedy: bool = True,
    may_end: bool = True,
) -> str | None:
    """Says where and why two texts differ; None where they are equal, or part at a near tie.

    A near tie only counts where ``context.tolerance`` allows it, and is noted in the context.

    Args:
        context: The server.
        prompt: What both continue.
        expected: One answer.
        got: The other.
        greedy: Whether the likeliest tokens were asked for.
        may_end: Whether a text may end before its last token.
    """
    if expected.text == got.text:
        return None
    where = first_difference(expected.text, got.text)
    if context.tolerance is None:
        return where
    problem = _why_wrong(
        context, prompt, (expected, got), context.tolerance, greedy=greedy, may_end=may_end
    )
    if problem:
        return f"{where}; {problem}"
    context.near_ties.append(f"after {prompt!r} {where}")
    return None


def changed_since(context: Context, prompt: str, before: Scored) -> str | None:
    """Asks once more what was asked before; says how the text differs now, None where it does not.

    Args:
        context: The server.
        prompt: What was asked by :meth:`Context.greedy`.
        before: What it answered then.
    """
    problem = difference(context, prompt, before, context.greedy(prompt))
    return problem and f"the next right request gave another text than before, {problem}"


def _why_wrong(
    context: Context, prompt: str, answers: Sequence[Scored], tolerance: float, **kind: bool
) -> str | None:
    lists = [answer.output_log_probs for answer in answers]
    if lists[0] is None or lists[1] is None:
        return "without log probabilities it cannot be told whether that is a near tie"
    if not context.tokenizes:
        return f"without {PREPROCESSING} it cannot be told which tokens differ"
    counts = [len(scores) for scores in lists if scores is not None]
    places = _places(context, prompt, [answer.text for answer in answers], counts)
    return why_no_near_tie(lists[0], lists[1], places, tolerance, **kind)


def _places(
    context: Context, prompt: str, texts: Sequence[str], counts: Sequence[int]
) -> list[int]:
    """Numbers of the tokens at which two answers may part, the likeliest first.

    The tokens of a finished text need not be those that were generated. Where their number is not
    the same, the place is known no better than that.
    """
    last = min(counts)
    try:
        begin = len(token_ids(context, prompt))
        ids = [token_ids(context, prompt + text.rstrip(REPLACEMENT)) for text in texts]
    except InvalidRequest:  # longer than a prompt may be
        return list(range(last, -1, -1))
    first = _same_at_first(*ids) - begin
    slack = max(
        _unlike(len(row) - begin, count, text)
        for row, count, text in zip(ids, counts, texts, strict=True)
    )
    near = range(max(first - slack, 0), min(first + slack, last) + 1)
    return sorted(near, key=lambda place: abs(place - first)) or [min(max(first, 0), last)]


def _unlike(found: int, count: int, text: str) -> int:
    """By how much the number of tokens of a text is not that of the tokens it was made from."""
    cut_off = LONGEST_CHARACTER - 1 if text.endswith(REPLACEMENT) else 0
    return 0 if found <= count <= found + cut_off else abs(found - count)


def _same_at_first(some: Sequence[int], others: Sequence[int]) -> int:
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
