"""The numbers of a whole measurement, each with its interval, as ``evaluation.json`` has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.bootstrap import (
    MIN_UNITS,
    quantile_estimate,
    ratio_estimate,
    share_estimate,
)
from pipeline.evaluation.scoring import TokenScores
from pipeline.evaluation.windows import Document, Window

HIGH = 0.99
"""The share of tokens whose KL divergence ``kl_divergence_p99`` is not below."""


def summarize(
    documents: Sequence[Document], windows: Sequence[Window], scores: Sequence[TokenScores]
) -> dict[str, Any]:
    """Sums up the scores of all windows, with intervals by the bootstrap over documents.

    Fewer documents than :data:`~pipeline.evaluation.bootstrap.MIN_UNITS` say little about others,
    so then windows are drawn: their scored parts are blocks that do not overlap. That keeps the
    dependence within each and neglects what is left between neighbours (Carlstein 1986, *The Use of
    Subseries Values for Estimating the Variance of a General Statistic*, Annals of Statistics 14).

    Args:
        documents: What was scored.
        windows: Their windows, in the documents' order.
        scores: Those of each window.

    Returns:
        ``tokens``, ``documents``, ``windows``, ``bytes``, ``source_perplexity``,
        ``source_bits_per_byte``; estimates as JSON values: ``perplexity``, ``bits_per_byte``,
        ``perplexity_increase`` (relative), ``kl_divergence`` and ``kl_divergence_p99`` (nats per
        token), ``top1_agreement``. What is not a finite number is None: JSON has no other word for
        the numbers of a model that is broken.
    """
    tokens = TokenScores.joined(scores)
    of_window = np.repeat(np.arange(len(windows)), [window.scored for window in windows])
    of_document = np.array([window.document for window in windows])[of_window]
    few = len(documents) < MIN_UNITS
    units = of_window if few else of_document
    counts = _sums(np.ones(len(tokens)), units)
    source_nll, nll, kl, agreements = (
        _sums(values, units) for values in (tokens.source_nll, tokens.nll, tokens.kl, tokens.agrees)
    )
    size = sum(document.bytes for document in documents)
    # Which bytes are a window's is not known; then each token has as many as the average.
    sizes = counts * (size / len(tokens))
    if not few:
        sizes = np.array([document.bytes for document in documents], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        increases = nll - source_nll
    estimates = {
        "perplexity": ratio_estimate(nll, counts, math.exp, least=0.0),
        "bits_per_byte": ratio_estimate(nll, sizes, _bits, least=0.0),
        "perplexity_increase": ratio_estimate(increases, counts, math.expm1),
        "kl_divergence": ratio_estimate(kl, counts, least=0.0),
        "kl_divergence_p99": quantile_estimate(tokens.kl, units, HIGH),
        "top1_agreement": share_estimate(agreements, counts),
    }
    return {
        "tokens": len(tokens),
        "documents": len(documents),
        "windows": len(windows),
        "bytes": size,
        "source_perplexity": ratio_estimate(source_nll, counts, math.exp).value,
        "source_bits_per_byte": ratio_estimate(source_nll, sizes, _bits).value,
        **{name: estimate.as_dict() for name, estimate in estimates.items()},
    }


def by_document(
    documents: Sequence[Document], windows: Sequence[Window], scores: Sequence[TokenScores]
) -> list[dict[str, Any]]:
    """Sums up each document's tokens.

    Args:
        documents: See :func:`summarize`.
        windows: See :func:`summarize`.
        scores: See :func:`summarize`.

    Returns:
        ``tokens``, ``bytes``, ``source_nll``, ``nll`` and ``kl`` (sums in nats; None where not
        finite), ``agreements`` and ``begins`` of each document.
    """
    parts: list[list[TokenScores]] = [[] for _ in documents]
    for window, score in zip(windows, scores, strict=True):
        parts[window.document].append(score)
    return [
        _document(document, TokenScores.joined(part))
        for document, part in zip(documents, parts, strict=True)
    ]


def finite_or_none(number: float) -> float | None:
    """Returns the number, or None for infinity and NaN, which JSON does not have."""
    return number if math.isfinite(number) else None


def _document(document: Document, scores: TokenScores) -> dict[str, Any]:
    sums = {
        name: finite_or_none(float(values.sum(dtype=np.float64)))
        for name, values in (
            ("source_nll", scores.source_nll),
            ("nll", scores.nll),
            ("kl", scores.kl),
        )
    }
    return {
        "tokens": len(scores),
        "bytes": document.bytes,
        **sums,
        "agreements": int(scores.agrees.sum()),
        "begins": document.begins,
    }


def _bits(nats: float) -> float:
    return nats / math.log(2.0)


def _sums(values: NDArray[Any], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of each unit's values, in float64."""
    return np.bincount(units, weights=values).astype(np.float64)
