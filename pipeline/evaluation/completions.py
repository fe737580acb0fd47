"""Short greedy texts of two models, for people to read side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.evaluation.lengths import COUNT, NEW_TOKENS, PROMPT_TOKENS, QUESTION_TOKENS
from pipeline.evaluation.scoring import Model, logits_of, often, padded
from pipeline.evaluation.windows import Document
from pipeline.source.tokens import SpanTokenizer


@dataclass(frozen=True)
class Completion:
    """What two models write behind the same words.

    Attributes:
        prompt: The beginning of a document, or a conversation up to its last answer.
        source: What the source model writes, without the prompt.
        written: What the other model writes, without the prompt.
        same_tokens: How many tokens both begin with.
        tokens: Tokens of the longer text; as many as ``same_tokens`` where both are the same.
    """

    prompt: str
    source: str
    written: str
    same_tokens: int
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return asdict(self)


def compare_completions(
    source: Model,
    written: Model,
    documents: Sequence[Document],
    *,
    tokenizer: SpanTokenizer,
    end_ids: Collection[int],
    longest: int,
    most: int = NEW_TOKENS,
    advance: Callable[[float], None] = lambda _tokens: None,
) -> list[Completion]:
    """Lets both models go on with the beginnings of the first few documents.

    Of a conversation that is all up to its last answer, where that is no longer than
    :data:`QUESTION_TOKENS` and the models have room for more.

    Args:
        source: The one model.
        written: The other one.
        documents: Held-out texts.
        tokenizer: The models' own.
        end_ids: Tokens that end a text; none is part of it.
        longest: The models' largest number of positions.
        most: Tokens of a completion.
        advance: Called with the number of tokens by which all completions of a model just grew.
    """
    room = max(1, min(PROMPT_TOKENS, longest - most))
    longest_question = min(QUESTION_TOKENS, longest - most)
    prompts = [
        list(document.question)
        if 0 < len(document.question) <= longest_question
        else _prompt(document.ids[:room], tokenizer)
        for document in documents[:COUNT]
    ]
    new = min(most, longest - max(map(len, prompts), default=0))
    texts = [greedy(model, prompts, new, end_ids, advance) for model in (source, written)]
    return [
        _completion(prompt, one, other, tokenizer)
        for prompt, one, other in zip(prompts, *texts, strict=True)
    ]


def greedy(
    model: Model,
    prompts: Sequence[Sequence[int]],
    new: int,
    end_ids: Collection[int],
    advance: Callable[[float], None] = lambda _tokens: None,
) -> list[list[int]]:
    """Generates the most likely tokens, all prompts together and each step from the beginning.

    A model keeps nothing between calls, so every step computes the whole text again: meant for
    short ones.

    Args:
        model: The model.
        prompts: Token ids, one or more each.
        new: Tokens to generate for each, at most.
        end_ids: Tokens that end a text.
        advance: See :func:`compare_completions`.

    Returns:
        The new tokens of each prompt, without the one that ended it.
    """
    rows = [list(prompt) for prompt in prompts]
    running = list(range(len(rows)))
    with often(model):
        for _ in range(new):
            if not running:
                break
            (logits,) = logits_of(model, [padded([rows[index] for index in running])])
            last = torch.tensor([len(rows[index]) - 1 for index in running], device=logits.device)
            chosen = logits[torch.arange(len(running), device=logits.device), last].argmax(dim=-1)
            going = []
            for index, token in zip(running, chosen.tolist(), strict=True):
                if token not in end_ids:
                    rows[index].append(token)
                    going.append(index)
            running = going
            advance(1)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _completion(
    prompt: Sequence[int], source: Sequence[int], written: Sequence[int], tokenizer: SpanTokenizer
) -> Completion:
    same = next(
        (
            index
            for index, pair in enumerate(zip(source, written, strict=False))
            if pair[0] != pair[1]
        ),
        min(len(source), len(written)),
    )
    # Of the whole, since some tokenizers drop the space in front of a text.
    beginning = tokenizer.decode(prompt)
    one, other = (tokenizer.decode([*prompt, *ids])[len(beginning) :] for ids in (source, written))
    return Completion(beginning, one, other, same, max(len(source), len(written)))


def _prompt(ids: Sequence[int], tokenizer: SpanTokenizer) -> list[int]:
    """As many of the ids as end with a whole character."""
    count = len(ids)
    while count > 1 and tokenizer.decode(ids[:count]).endswith("\ufffd"):
        count -= 1
    return list(ids[:count])
