"""Intervals, held against scipy's bootstrap and against how often they hold the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import (
    MIN_UNITS,
    change_estimate,
    quantile_estimate,
    ratio_estimate,
    share_estimate,
)
from pipeline.verdict.estimate import Estimate

stats = pytest.importorskip("scipy.stats")


def documents(seed: int, count: int) -> tuple[Any, Any]:
    """Sums of a skewed number per token, such as a KL divergence, and tokens of documents."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 400, count).astype(float)
    return tokens * generator.lognormal(-3.0, 0.8, count), tokens


@pytest.mark.parametrize("count", [12, 40, 200])
def test_the_interval_is_scipys(count: int) -> None:
    sums, tokens = documents(count, count)
    expected = stats.bootstrap(
        (sums, tokens),
        lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        method="BCa",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    found = ratio_estimate(sums, tokens)
    assert found.value == pytest.approx(sums.sum() / tokens.sum())
    width = expected.high - expected.low
    # Two independent draws of resamples.
    assert found.low == pytest.approx(expected.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.high, abs=0.08 * width)


@pytest.mark.parametrize(("count", "least"), [(5, 0.90), (15, 0.86), (60, 0.90)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(
    count: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 600)
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        tokens = generator.integers(100, 300, count).astype(float)
        found = ratio_estimate(tokens * generator.normal(0.02, 0.01, count), tokens)
        held += within(found, 0.02)
    # Of a number whose share is 0.95, 400 draws stay above 0.92 in all but a percent of cases; an
    # interval of few units promises less.
    assert least <= held / 400 <= 0.99


def test_pairing_narrows_a_difference_and_a_transformed_interval_is_transformed() -> None:
    generator = np.random.default_rng(5)
    tokens = generator.integers(50, 400, 80).astype(float)
    source = tokens * generator.normal(2.0, 0.5, 80)
    written = source + tokens * generator.normal(0.01, 0.002, 80)
    alone = ratio_estimate(written, tokens, math.exp)
    increase = ratio_estimate(written - source, tokens, math.expm1)
    assert within(increase, math.expm1(0.01))
    assert width(increase) < 0.01 * width(alone)
    plain = ratio_estimate(written - source, tokens)
    assert increase.low == pytest.approx(math.expm1(plain.low or 0.0))
    assert increase.high == pytest.approx(math.expm1(plain.high or 0.0))


def test_the_same_numbers_give_the_same_interval() -> None:
    assert ratio_estimate(*documents(1, 30)) == ratio_estimate(*documents(1, 30))
    assert ratio_estimate(*documents(1, 30)) != ratio_estimate(*documents(2, 30))


def test_few_units_have_students_interval_by_hand() -> None:
    found = ratio_estimate([1.0, 2.0, 4.5], [1.0, 2.0, 3.0])
    # The ratio is 7.5 / 6, the residuals -0.25, -0.5 and 0.75, so the error is
    # sqrt((0.0625 + 0.25 + 0.5625) * 3 / 2) / 6.
    error = math.sqrt(0.875 * 1.5) / 6
    assert found.value == pytest.approx(1.25)
    assert found.high == pytest.approx(1.25 + stats.t.ppf(0.975, 2) * error, rel=1e-4)
    assert found.low == pytest.approx(1.25 - stats.t.ppf(0.975, 2) * error, rel=1e-4)
    for units in range(2, MIN_UNITS):
        values = np.arange(units, dtype=float)
        half = stats.t.ppf(0.975, units - 1) * values.std(ddof=1) / math.sqrt(units)
        found = ratio_estimate(values, np.ones(units))
        assert width(found) == pytest.approx(2 * half, rel=1e-4)


def test_one_unit_tells_no_interval() -> None:
    assert ratio_estimate([3.0], [2.0]) == Estimate(1.5)
    for units in (1, MIN_UNITS - 1):
        # Of so few units nearly every resample has the same largest values.
        values = np.arange(2.0 * units)
        assert quantile_estimate(values, np.arange(2 * units) // 2, 1.0) == Estimate(2 * units - 1)


def test_what_never_changes_has_no_width() -> None:
    found = ratio_estimate(np.full(50, 0.3), np.full(50, 3.0))
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


@pytest.mark.parametrize("count", [1, 3, 54, 200])
def test_a_share_of_all_or_none_is_not_certain(count: int) -> None:
    exact = stats.binomtest(count, count).proportion_ci(0.95, method="exact")
    found = share_estimate(np.ones(count), np.ones(count))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(exact.low, rel=1e-9)
    none = share_estimate(np.zeros(count), np.ones(count))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - exact.low, rel=1e-9)
    # What counts is how many were drawn, not in how many units they came.
    assert share_estimate([count * 2.0], [count * 2.0]) == share_estimate(
        np.ones(2 * count), np.ones(2 * count)
    )


@pytest.mark.parametrize("units", [2, 3, 5, 12])
def test_no_interval_of_a_share_leaves_0_to_1(units: int) -> None:
    hits = np.full(units, 40.0)
    hits[0] = 37.0
    found = share_estimate(hits, np.full(units, 40.0))
    assert found.value == pytest.approx(1 - 3 / (40 * units))
    assert found.high is not None
    assert found.high <= 1.0
    few = share_estimate(40 - hits, np.full(units, 40.0))
    assert few.low is not None
    assert few.low >= 0.0
    # Without its bounds Student's interval of so few units reaches beyond them.
    if units < MIN_UNITS:
        assert (ratio_estimate(hits, np.full(units, 40.0)).high or 0.0) > 1.0


def test_answers_that_stay_the_same_may_still_change() -> None:
    before = np.array([True] * 60 + [False] * 40)
    found = change_estimate(before, before)
    # The chance that none of 100 changes is 0.025 where 3.6 % do.
    assert (1 - (found.high or 0.0)) ** 100 == pytest.approx(0.025)
    assert found == Estimate(0.0, -(found.high or 0.0), found.high)
    after = before.copy()
    after[:3] = False
    lost = change_estimate(before, after)
    assert lost.value == pytest.approx(-0.03)
    assert within(lost, -0.03)
    assert change_estimate([True, False], [False, True]).low == -1.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_none(wrong: float) -> None:
    assert ratio_estimate([1.0, wrong, *[1.0] * 20], np.ones(22)) == Estimate(None)
    assert quantile_estimate([1.0, wrong], [0, 1], 0.5) == Estimate(None)
    assert ratio_estimate([1.0, 2.0], [0.0, 0.0]) == Estimate(None)
    assert ratio_estimate([math.inf, -math.inf], [1.0, 1.0]) == Estimate(None)
    # Only the upper end overflows.
    found = ratio_estimate([600.0, 700.0, 800.0], np.ones(3), math.exp)
    assert found.value == pytest.approx(math.exp(700.0))
    assert found.high is None


def test_a_quantile_is_numpys_and_its_interval_that_of_repeated_draws() -> None:
    generator = np.random.default_rng(11)
    units = np.sort(generator.integers(0, 30, 3000))
    values = generator.exponential(size=3000) * (1 + units / 30)
    found = quantile_estimate(values, units, 0.99)
    assert found.value == np.quantile(values, 0.99, method="inverted_cdf")
    drawn = [
        np.quantile(
            np.concatenate([values[units == unit] for unit in generator.integers(0, 30, 30)]),
            0.99,
            method="inverted_cdf",
        )
        for _ in range(600)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.995, 1.0])
@pytest.mark.parametrize("count", [1, 7, 100, 201])
def test_quantiles_of_every_share_are_numpys(share: float, count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    found = quantile_estimate(values, np.arange(count) // 3, share)
    assert found.value == np.quantile(values, share, method="inverted_cdf")


def test_small_tables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, tokens = documents(4, 25)
    units = np.repeat(np.arange(25), 40)
    values = np.random.default_rng(1).exponential(size=1000)
    whole = ratio_estimate(sums, tokens), quantile_estimate(values, units, 0.9)
    monkeypatch.setattr(bootstrap, "_TABLE", 130)
    parts = ratio_estimate(sums, tokens), quantile_estimate(values, units, 0.9)
    assert parts[0].low == pytest.approx(whole[0].low, rel=1e-9)
    assert parts[1] == whole[1]


def within(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low
