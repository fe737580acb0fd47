"""The mean KL divergence of one language model from another on windows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Scorer = Callable[[torch.Tensor], torch.Tensor]
"""Takes token ids [batch, length] and returns float32 logits [batch, length, vocabulary]."""


def mean_divergence(
    source: Scorer,
    other: Scorer,
    windows: Sequence[Sequence[int]],
    device: torch.device,
    advance: Callable[[float], None] = lambda _tokens: None,
) -> float:
    """Computes the mean over all predicted tokens of KL(source || other), in nats.

    Args:
        source: The reference; its vocabulary counts.
        other: The model that is scored; tokens beyond the source's vocabulary are left out.
        windows: Token ids, two or more each; the first of each is context alone.
        device: Where both take their ids.
        advance: Called with the number of tokens just scored.

    Returns:
        Nats per token; NaN or infinity for logits that are no numbers.
    """
    sums = []
    for window in windows:
        # The last token of a window predicts nothing that is in it.
        ids = torch.tensor([list(window[:-1])], device=device)
        wanted, found = source(ids)[0].float(), other(ids)[0].float()
        p = torch.log_softmax(wanted, dim=-1)
        q = torch.log_softmax(found[..., : p.shape[-1]], dim=-1)
        sums.append(float((p.exp() * (p - q)).sum(dim=-1).double().sum()))
        advance(len(window) - 1)
    total = sum(len(window) - 1 for window in windows)
    # math.fsum refuses opposite infinities.
    return (math.fsum(sums) if all(map(math.isfinite, sums)) else sum(sums)) / total
