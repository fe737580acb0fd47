"""Intervals over rounds, against printed tables, hand calculations, scipy and simulation."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.bench.intervals import (
    differs,
    estimate_text,
    over_rounds,
    paired_ratio,
)
from pipeline.verdict.estimate import Estimate, student_quantile

SLOW = [812.0, 640.0, 701.0, 955.0, 590.0, 760.0]
FAST = [1630.0, 1250.0, 1466.0, 1871.0, 1203.0, 1490.0]


@pytest.mark.parametrize(
    ("freedom", "printed"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_the_quantiles_are_those_of_printed_tables(freedom: int, printed: float) -> None:
    """Table T.2 of Montgomery and Runger, and any other: two-sided 95 %."""
    assert student_quantile(freedom) == pytest.approx(printed, abs=6e-4)


def test_an_interval_by_hand() -> None:
    # Logarithms to base 2 are 0, 1 and 2: mean 1, standard deviation 1, standard error 1/sqrt(3).
    found = over_rounds([1.0, 2.0, 4.0])
    assert found.value == 2.0
    assert found.low == pytest.approx(2.0 ** (1 - 4.3027 / math.sqrt(3)), rel=1e-4)
    assert found.high == pytest.approx(2.0 ** (1 + 4.3027 / math.sqrt(3)), rel=1e-4)


def test_without_rounds_there_is_nothing_to_tell() -> None:
    assert over_rounds([]) == Estimate(None)
    assert over_rounds([7.0]) == Estimate(7.0)
    assert over_rounds([7.0, 7.0]) == Estimate(7.0, 7.0, 7.0)
    assert not differs(paired_ratio([9.0], [3.0]))


def test_intervals_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    logs = [math.log(value) for value in FAST]
    low, high = stats.t.interval(0.95, len(logs) - 1, loc=sum(logs) / 6, scale=stats.sem(logs))
    found = over_rounds(FAST)
    assert found.value == pytest.approx(stats.gmean(FAST), rel=1e-5)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-5)


@pytest.mark.parametrize("shift", [1.0, 1.01, 1.03, 1.06, 2.0])
def test_a_difference_is_scipys_paired_test(shift: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    scattered = [1.03, 0.97, 1.01, 0.98, 1.02, 1.0]
    other = [value * shift * scatter for value, scatter in zip(SLOW, scattered, strict=True)]
    ratio = paired_ratio(other, SLOW)
    paired = stats.ttest_rel([math.log(a) for a in other], [math.log(b) for b in SLOW])
    low, high = paired.confidence_interval(0.95)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-5)
    assert differs(ratio) is bool(paired.pvalue < 0.05)


def test_a_ratio_reads_the_same_both_ways_and_is_that_of_the_numbers() -> None:
    there, back = paired_ratio(FAST, SLOW), paired_ratio(SLOW, FAST)
    assert there.value == pytest.approx(1 / back.value, rel=1e-5)
    assert there.low == pytest.approx(1 / back.high, rel=1e-5)
    assert there.value == pytest.approx(over_rounds(FAST).value / over_rounds(SLOW).value, rel=1e-5)


def test_what_slows_a_round_down_widens_the_numbers_and_not_their_ratio() -> None:
    slowed = [1.0, 0.5, 0.9, 0.4, 0.8, 0.6]
    one = [100 * share for share in slowed]
    other = [103 * share * (1 + 0.001 * n) for n, share in enumerate(slowed)]
    ratio = paired_ratio(other, one)
    assert over_rounds(one).high > 1.5 * over_rounds(one).low
    assert ratio.high < 1.01 * ratio.low
    assert differs(ratio)


def test_equal_servers_differ_in_one_of_twenty_runs_and_intervals_hold_the_truth_in_the_rest() -> (
    None
):
    """That is what 95 % means; rounds scatter by 15 % here, and whole runs drift."""
    drawn = random.Random(5)
    runs, wrong, missed = 4000, 0, 0
    for _ in range(runs):
        drift = [math.exp(drawn.gauss(0, 0.5)) for _ in range(5)]
        one, other = (
            [speed * 1000 * math.exp(drawn.gauss(0, 0.15)) for speed in drift] for _ in range(2)
        )
        wrong += differs(paired_ratio(one, other))
        found = over_rounds([1000 * math.exp(drawn.gauss(0, 0.15)) for _ in range(5)])
        missed += not found.low <= 1000 <= found.high
    # Three standard errors of a share of 5 % in so many runs are 1 %.
    assert 0.04 < wrong / runs < 0.06
    assert 0.04 < missed / runs < 0.06


def test_estimates_are_read_by_people() -> None:
    assert estimate_text({"value": 1765.4, "low": 1690.2, "high": 1843.0}) == (
        "1,765 (1,690 to 1,843)"
    )
    assert estimate_text({"value": 17.654, "low": None, "high": None}) == "17.7"
