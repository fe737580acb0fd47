"""How far one model's next-token distributions are from another's, on windows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import UsageError
from pipeline.source.texts import Tokenizer

# Logits of one batch, in elements; float32 copies of several of these are alive at once.
BATCH_LOGITS = 1 << 26
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class WindowScore:
    """Sums over one window's scored positions.

    Attributes:
        tokens: Positions scored: one less than the window is long.
        source_nll: Negative log-likelihood under the source, in nats.
        nll: The same under the other model.
        kl: KL divergence of the other model from the source, in nats.
        agreements: Positions where both models' most likely token is the same.
    """

    tokens: int
    source_nll: float
    nll: float
    kl: float
    agreements: int


def token_windows(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, tokens: int
) -> list[list[int]]:
    """Cuts texts into windows of at most ``length`` tokens, up to ``tokens`` predictions in all.

    No window crosses from one text into the next; a longer text gives several windows.

    Raises:
        UsageError: No text has two tokens.
    """
    windows: list[list[int]] = []
    left = tokens
    for text in texts:
        ids = tokenizer.encode(text)
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + min(length, left + 1)]
            if len(window) > 1:
                windows.append(window)
                left -= len(window) - 1
            if not left:
                return windows
    if not windows:
        raise UsageError("no evaluation text has two tokens for this model's tokenizer")
    return windows


@torch.inference_mode()
def compare(
    source: Any,
    other: Any,
    windows: Sequence[Sequence[int]],
    device: torch.device,
    advance: Callable[[float], None] = lambda _tokens: None,
) -> list[WindowScore]:
    """Scores every window under both models.

    Args:
        source: A causal language model; its vocabulary counts.
        other: Another one; tokens beyond the source's vocabulary are left out.
        windows: Token ids, two or more each.
        device: Where both models are.
        advance: Called with the number of tokens just scored.
    """
    vocabulary = int(source.config.vocab_size)
    scores = []
    for batch in _batches(windows, vocabulary):
        # No attention mask: behind a causal one, padding on the right changes nothing before it.
        width = max(len(window) for window in batch)
        padded = [[*window, *[window[-1]] * (width - len(window))] for window in batch]
        ids = torch.tensor(padded, device=device)
        source_logits = source(input_ids=ids, use_cache=False).logits
        logits = other(input_ids=ids, use_cache=False).logits[..., :vocabulary]
        for row, window in enumerate(batch):
            scored = slice(0, len(window) - 1)
            targets = ids[row, 1 : len(window)]
            scores.append(_score(source_logits[row, scored], logits[row, scored], targets))
            advance(scores[-1].tokens)
    return scores


def summarize(scores: Sequence[WindowScore]) -> dict[str, Any]:
    """Sums up the scores of all windows; standard errors treat windows as independent.

    Returns:
        ``tokens``, ``windows``, ``source_perplexity``, ``perplexity``, ``perplexity_increase``
        (relative), ``kl_divergence`` (nats per token), ``top1_agreement``, and
        ``*_standard_error`` of the last three. What is not a finite number is None: JSON has no
        other word for the numbers of a model that is broken.
    """
    counts = [score.tokens for score in scores]
    total = sum(counts)
    source_nll = _sum([score.source_nll for score in scores]) / total
    nll = _sum([score.nll for score in scores]) / total
    ratio = _exp(nll - source_nll)
    differences = [score.nll - score.source_nll for score in scores]
    divergences = [score.kl for score in scores]
    agreements = [float(score.agreements) for score in scores]
    found = {
        "source_perplexity": _exp(source_nll),
        "perplexity": _exp(nll),
        "perplexity_increase": ratio - 1.0,
        # d exp(m) = exp(m) dm
        "perplexity_increase_standard_error": ratio * _ratio_error(differences, counts),
        "kl_divergence": _sum(divergences) / total,
        "kl_divergence_standard_error": _ratio_error(divergences, counts),
        "top1_agreement": math.fsum(agreements) / total,
        "top1_agreement_standard_error": _ratio_error(agreements, counts),
    }
    numbers = {name: finite_or_none(value) for name, value in found.items()}
    return {"tokens": total, "windows": len(scores), **numbers}


def finite_or_none(number: float) -> float | None:
    """Returns the number, or None for infinity and NaN, which JSON does not have."""
    return number if math.isfinite(number) else None


def _score(source_logits: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> WindowScore:
    p, q = (torch.log_softmax(x.float(), dim=-1) for x in (source_logits, logits))
    rows = torch.arange(len(targets), device=targets.device)
    return WindowScore(
        tokens=len(targets),
        source_nll=-float(p[rows, targets].double().sum()),
        nll=-float(q[rows, targets].double().sum()),
        kl=float((p.exp() * (p - q)).sum(dim=-1).double().sum()),
        agreements=int((p.argmax(dim=-1) == q.argmax(dim=-1)).sum()),
    )


def _batches(windows: Sequence[Sequence[int]], vocabulary: int) -> Iterator[list[Sequence[int]]]:
    limit = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary)
    batch: list[Sequence[int]] = []
    for window in windows:
        width = max(len(row) for row in (*batch, window))
        if batch and width * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _exp(nats: float) -> float:
    """e to the power of ``nats``, infinite beyond the largest float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _sum(values: Sequence[float]) -> float:
    """Their sum; unlike math.fsum's, that of opposite infinities is NaN."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def _ratio_error(sums: Sequence[float], counts: Sequence[int]) -> float:
    """Standard error of sum(sums) / sum(counts) over clusters (Cochran 1977, equation 6.4)."""
    clusters = len(sums)
    if clusters < 2:
        return math.nan
    total = sum(counts)
    ratio = _sum(sums) / total
    spread = _sum([(s - ratio * n) ** 2 for s, n in zip(sums, counts, strict=True)])
    return math.sqrt(spread * clusters / (clusters - 1)) / total
