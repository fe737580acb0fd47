"""The log-likelihood of continuations under one model or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.evaluation.scoring import Model, batches, logits_of, padded
from pipeline.evaluation.tasks.encoding import Pair

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of one continuation.

    Attributes:
        nats: The sum of its tokens' log probabilities.
        is_greedy: Whether each token is the most likely one where it stands.
    """

    nats: float
    is_greedy: bool


def log_likelihoods(
    models: Sequence[Model],
    pairs: Sequence[Pair],
    vocabulary: int,
    advance: Callable[[float], None] = lambda _pairs: None,
) -> list[list[Likelihood]]:
    """Scores every continuation under every model.

    What a model sees alike, such as one question with letters to choose from, it sees once.

    Args:
        models: The models.
        pairs: What to score.
        vocabulary: Logits of each token, which decides how much is scored at once. Those beyond
            are left out.
        advance: Called with the number of continuations just scored.

    Returns:
        For each model, the likelihoods in the order of ``pairs``.
    """
    alike: dict[Ids, list[int]] = {}
    for index, pair in enumerate(pairs):
        alike.setdefault(pair.ids, []).append(index)
    found: list[dict[int, Likelihood]] = [{} for _ in models]
    rows = list(alike)
    groups = [[rows[index] for index in some] for some in batches(rows, vocabulary)]
    ids = [padded(batch) for batch in groups]
    computed = [logits_of(model, ids) for model in models]
    for batch in groups:
        for each, likelihoods in zip(computed, found, strict=True):
            logits = next(each)
            for row, seen in enumerate(batch):
                for index in alike[seen]:
                    part = pairs[index].continuation
                    place = logits[row, len(seen) - len(part) : len(seen), :vocabulary]
                    likelihoods[index] = _likelihood(place, part)
            del logits, place
        advance(sum(len(alike[seen]) for seen in batch))
    return [[each[index] for index in range(len(pairs))] for each in found]


@torch.inference_mode()
def _likelihood(logits: torch.Tensor, continuation: Ids) -> Likelihood:
    targets = torch.tensor(continuation, device=logits.device)
    chosen = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets.unsqueeze(-1))
    greedy = bool((logits.argmax(dim=-1) == targets).all())
    return Likelihood(float(chosen.double().sum()), greedy)
