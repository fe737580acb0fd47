"""The shape and the numbers of ``evaluation.json``, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import MIN_UNITS
from pipeline.evaluation.scoring import TokenScores
from pipeline.evaluation.summary import by_document, summarize
from pipeline.evaluation.windows import Document, Window
from pipeline.verdict.estimate import Estimate


def scores(tokens: int, source_nll: float, nll: float, kl: float, agreements: int) -> TokenScores:
    """Of tokens that share their sums evenly."""
    each = (np.full(tokens, total / tokens, np.float32) for total in (source_nll, nll, kl))
    return TokenScores(*each, np.arange(tokens) < agreements)


def of_documents(parts: Sequence[TokenScores]) -> tuple[list[Document], list[Window]]:
    """One window for each, of four bytes a token."""
    documents = [Document(f"text {n}", [0] * (len(p) + 1), 4 * len(p)) for n, p in enumerate(parts)]
    windows = [Window(number, document.ids, 1) for number, document in enumerate(documents)]
    return documents, windows


def test_the_summary_by_hand() -> None:
    parts = [scores(10, 20.0, 21.0, 0.5, 9), scores(30, 60.0, 60.0, 1.5, 27)]
    documents, windows = of_documents(parts)
    found = summarize(documents, windows, parts)
    assert (found["tokens"], found["documents"], found["windows"]) == (40, 2, 2)
    assert found["bytes"] == 160
    assert found["source_perplexity"] == pytest.approx(math.exp(2.0))
    assert found["perplexity"]["value"] == pytest.approx(math.exp(81 / 40))
    # 81 nats in 160 bytes.
    assert found["bits_per_byte"]["value"] == pytest.approx(81 / math.log(2) / 160)
    assert found["source_bits_per_byte"] == pytest.approx(80 / math.log(2) / 160)
    assert found["perplexity_increase"]["value"] == pytest.approx(math.exp(1 / 40) - 1, rel=1e-5)
    assert found["kl_divergence"]["value"] == pytest.approx(0.05)
    assert found["top1_agreement"]["value"] == pytest.approx(0.9)
    # Every window has the same rate, so the rate is known exactly.
    assert found["kl_divergence"]["low"] == pytest.approx(0.05)
    assert found["kl_divergence"]["high"] == pytest.approx(0.05)
    # Two units: deviations 1 - 10/40 and 0 - 30/40 of the differences, one degree of freedom.
    error = math.sqrt(2 * (0.75**2 + 0.75**2)) / 40
    expected = math.expm1(1 / 40 + 12.7062 * error)
    assert found["perplexity_increase"]["high"] == pytest.approx(expected, rel=1e-3)
    json.dumps(found, allow_nan=False)


def test_the_sums_of_documents_by_hand() -> None:
    parts = [scores(4, 4.0, 6.0, 1.0, 3), scores(2, 1.0, 1.0, 0.5, 2), scores(3, 9.0, 8.0, 0.3, 0)]
    documents = [Document("one", range(7), 20), Document("two", range(4), 9)]
    windows = [Window(0, range(5), 1), Window(0, range(2, 7), 3), Window(1, range(4), 1)]
    first, second = by_document(documents, windows, parts)
    assert first == {
        "tokens": 6,
        "bytes": 20,
        "source_nll": pytest.approx(5.0),
        "nll": pytest.approx(7.0),
        "kl": pytest.approx(1.5),
        "agreements": 5,
        "begins": "one",
    }
    assert (second["tokens"], second["agreements"]) == (3, 0)


def test_intervals_are_over_documents_and_over_windows_where_those_are_few() -> None:
    """Windows of one document are alike, so that only documents tell how sure a number is."""
    generator = np.random.default_rng(2)

    def width(documents: int, windows: int) -> float:
        parts, places = [], []
        for document in range(documents):
            likely = generator.normal(2.0, 0.3)
            for number in range(windows):
                # The second window and later ones score two of their four.
                places.append(Window(document, range(4), 1 if number == 0 else 2))
                size = places[-1].scored
                parts.append(scores(size, size, size * likely, 0.1, 1))
        texts = [Document("", range(2 + 2 * windows), 10)] * documents
        nats = Estimate.from_dict(summarize(texts, places, parts)["perplexity"])
        assert nats.low is not None
        assert nats.high is not None
        return math.log(nats.high / nats.low)

    # The error of a mean of documents, whatever the number of their windows.
    for windows in (2, 40):
        assert width(50, windows) == pytest.approx(2 * 1.96 * 0.3 / math.sqrt(50), rel=0.35)
    # One text has an interval all the same: that of its windows, which are alike here.
    assert width(1, 40) == pytest.approx(0.0, abs=1e-6)
    assert width(MIN_UNITS - 1, 40) < width(MIN_UNITS, 40)


def test_bits_per_byte_of_few_documents_are_of_all_bytes() -> None:
    parts = [scores(4, 4.0, 5.0, 0.0, 4), scores(4, 4.0, 6.0, 0.0, 4), scores(4, 4.0, 8.0, 0.0, 4)]
    documents = [Document("", range(13), 31)]
    windows = [Window(0, range(5), 1), Window(0, range(8), 4), Window(0, range(8), 4)]
    found = summarize(documents, windows, parts)["bits_per_byte"]
    assert found["value"] == pytest.approx(19.0 / math.log(2) / 31)
    assert found["low"] < found["value"] < found["high"]


def test_numbers_of_a_broken_model_are_none_and_their_interval_too() -> None:
    parts = [scores(10, 20.0, 8000.0, 7980.0, 0), scores(9, 1.0, 9e3, 9e3, 0)]
    found = summarize(*of_documents(parts), parts)
    assert found["perplexity"]["value"] is None
    assert found["perplexity_increase"] == {"value": None, "low": None, "high": None}
    assert found["source_perplexity"] == pytest.approx(math.exp(21 / 19))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 20])
def test_scores_that_are_not_finite_do_not_end_the_summary(count: int) -> None:
    parts = [scores(5, math.inf, 5.0, 1.0, 1), scores(5, 5.0, math.inf, math.nan, 1)] * (count // 2)
    documents, windows = of_documents(parts)
    found = summarize(documents, windows, parts)
    json.dumps([found, by_document(documents, windows, parts)], allow_nan=False)
    assert found["perplexity"]["value"] is found["source_perplexity"] is None
    assert found["perplexity_increase"]["value"] is found["kl_divergence"]["value"] is None
    assert found["kl_divergence_p99"]["value"] is None
    assert found["top1_agreement"]["value"] == pytest.approx(0.2)


def test_no_interval_holds_what_cannot_be() -> None:
    """No share is above 1 and no divergence below 0; a perplexity of 1 is a text known by heart."""
    parts = [scores(4, 1.0, 0.1, 0.0, 4), scores(4, 1.0, 3.0, 0.5, 4), scores(4, 1.0, 0.1, 0.0, 2)]
    found = summarize(*of_documents(parts), parts)
    assert found["top1_agreement"]["high"] == 1.0
    assert found["kl_divergence"]["low"] == 0.0
    assert found["perplexity"]["low"] == 1.0
    assert found["bits_per_byte"]["low"] == 0.0
    # A change may go either way.
    assert found["perplexity_increase"]["low"] < 0.0 < found["perplexity_increase"]["high"]
