"""How far a compiled engine is from the checkpoint that it was made of, and from the source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring import Model, TokenScores, compare_logits, predictions, split
from pipeline.evaluation.summary import summarize
from pipeline.evaluation.windows import Document, Window

_OF_LOGITS = ("kl_divergence", "kl_divergence_p99", "top1_agreement")


@dataclass(frozen=True)
class EngineScores:
    """One engine's scores of the same windows against two models.

    Attributes:
        source: Against the source model, for each window.
        checkpoint: Against the checkpoint's reference, for each window.
        logits: Whether the engine gave logits; without them divergence and agreement are no
            numbers.
    """

    source: Sequence[TokenScores]
    checkpoint: Sequence[TokenScores]
    logits: bool


def score_engine(
    source: Model,
    checkpoint: Model,
    engine: Model | None,
    windows: Sequence[Window],
    *,
    vocabulary: int,
    advance: Callable[[float], None] = lambda _tokens: None,
) -> EngineScores:
    """Scores every window under three models, each of which computes it once.

    Args:
        source: The source model; its vocabulary counts.
        checkpoint: The reference of the checkpoint.
        engine: The engine; None for one without logits.
        windows: What to score.
        vocabulary: The size of the source's vocabulary.
        advance: Called with the number of tokens just scored.

    Returns:
        The scores; without logits the engine's likelihoods are NaN, for :func:`with_losses`.
    """
    found: dict[int, tuple[TokenScores, TokenScores]] = {}
    models = [model for model in (source, checkpoint, engine) if model]
    for batch, pieces in predictions(models, windows, vocabulary):
        compared: list[tuple[TokenScores, TokenScores]] = []
        for logits, targets in pieces:
            # Without an engine the other model takes its place, and _unknown what came of that.
            expected, written, last = (one[..., :vocabulary] for one in (*logits, logits[-1])[:3])
            pair = compare_logits(expected, last, targets), compare_logits(written, last, targets)
            compared.append(pair if engine else (_unknown(pair[0]), _unknown(pair[1])))
        parts = [
            split(TokenScores.joined(side), [windows[index] for index in batch])
            for side in zip(*compared, strict=True)
        ]
        found |= zip(batch, zip(*parts, strict=True), strict=True)
        advance(sum(windows[index].scored for index in batch))
    every = [found[index] for index in range(len(windows))]
    return EngineScores([a for a, _ in every], [b for _, b in every], engine is not None)


def with_losses(
    scores: EngineScores, windows: Sequence[Window], losses: Sequence[NDArray[np.float32]]
) -> EngineScores:
    """Replaces the engine's likelihoods by those that it gives when it runs as it is served.

    Args:
        scores: Of the windows.
        windows: The windows.
        losses: For each the negative log-likelihoods of its ids but the first, in nats.
    """
    parts = [own[window.first - 1 :] for window, own in zip(windows, losses, strict=True)]
    source, checkpoint = (
        [replace(score, nll=nll) for score, nll in zip(side, parts, strict=True)]
        for side in (scores.source, scores.checkpoint)
    )
    return replace(scores, source=source, checkpoint=checkpoint)


def summarize_engine(
    documents: Sequence[Document], windows: Sequence[Window], scores: EngineScores
) -> dict[str, Any]:
    """Sums up an engine's scores, with intervals by the bootstrap over documents.

    Args:
        documents: What was scored.
        windows: Their windows.
        scores: Those of the windows.

    Returns:
        ``tokens``, ``documents``, and as estimates ``perplexity``, ``perplexity_increase``,
        ``kl_divergence`` and ``top1_agreement``, against the source; ``against_checkpoint`` has
        ``perplexity_increase``, ``kl_divergence``, ``kl_divergence_p99`` and ``top1_agreement``.
        Divergences and agreements are None for an engine without logits.
    """
    source = summarize(documents, windows, scores.source)
    checkpoint = summarize(documents, windows, scores.checkpoint)
    if not scores.logits:
        source, checkpoint = (
            {**side, **dict.fromkeys(_OF_LOGITS)} for side in (source, checkpoint)
        )
    return {
        **{name: source[name] for name in ("tokens", "documents", "perplexity")},
        **{name: source[name] for name in ("perplexity_increase", *_OF_LOGITS)},
        "against_checkpoint": {
            name: checkpoint[name] for name in ("perplexity_increase", *_OF_LOGITS)
        },
    }


def _unknown(scores: TokenScores) -> TokenScores:
    nothing = np.full(len(scores), np.nan, np.float32)
    return replace(scores, nll=nothing, kl=nothing, agrees=np.zeros(len(scores), np.bool_))
