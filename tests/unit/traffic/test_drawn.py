"""Arrivals and lengths that are drawn, against scipy's distributions; fixed seeds, so no chance."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from pipeline.bench.traffic.lengths import parse_lengths
from pipeline.bench.traffic.schedule import CLOSED, OPEN, TRACE, Level, Sizes, plan, poisson
from pipeline.bench.traffic.traces import TraceRow
from pipeline.errors import UsageError

SIZES = Sizes(parse_lengths("uniform:10,20", "--input-tokens"), parse_lengths("7", "--o"))


@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    seconds = 2000 / rate
    arrivals = poisson(rate, seconds, random.Random(11))
    gaps = np.diff([0.0, *arrivals])
    assert stats.kstest(gaps, stats.expon(scale=1 / rate).cdf).pvalue > 0.05
    # Given their number, arrivals are uniform over the time.
    assert stats.kstest(arrivals, stats.uniform(0, seconds).cdf).pvalue > 0.05
    low, high = stats.poisson(2000).interval(0.99)
    assert low <= len(arrivals) <= high


def test_the_test_of_arrivals_tells_even_ones() -> None:
    """What it is worth: requests at even distances are no Poisson process."""
    gaps = np.full(2000, 1 / 8)
    assert stats.kstest(gaps, stats.expon(scale=1 / 8).cdf).pvalue < 1e-9


def test_a_plan_is_that_of_its_seed() -> None:
    one, same, other = (plan(Level(OPEN, 5.0), SIZES, 20.0, seed) for seed in ("a", "a", "b"))
    assert one == same != other
    assert [request.number for request in one] == list(range(len(one)))
    assert all(a.at < b.at for a, b in pairwise(one))
    assert all(10 <= request.input_tokens <= 20 for request in one)
    assert {request.output_tokens for request in one} == {7}


def test_a_closed_loop_plans_no_times_and_a_trace_its_own() -> None:
    assert {request.at for request in plan(Level(CLOSED, 2), SIZES, 5.0, "s")} == {None}
    rows = [TraceRow(0.0, 5, 6), TraceRow(1.5, 7, 8), TraceRow(9.0, 1, 1)]
    traced = Sizes(SIZES.inputs, SIZES.outputs, rows)
    found = plan(Level(TRACE, 1.0), traced, 5.0, "s")
    assert [(r.at, r.input_tokens, r.output_tokens) for r in found] == [(0.0, 5, 6), (1.5, 7, 8)]
    # At a rate of one's own, lengths are still the trace's, in turn.
    lengths = [r.output_tokens for r in plan(Level(OPEN, 4.0), traced, 5.0, "s")]
    assert lengths == [[6, 8, 1][number % 3] for number in range(len(lengths))]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("normal:500,80", stats.norm(500, 80)),
        ("uniform:100,900", stats.uniform(99.5, 801)),
        # scipy's s is sigma, its scale the median; the mean is the median times exp(s^2 / 2).
        ("lognormal:600,450", stats.lognorm(math.sqrt(2 * math.log(600 / 450)), scale=450)),
    ],
)
def test_lengths_have_their_distribution(text: str, wanted: stats.rv_continuous) -> None:
    lengths, source = parse_lengths(text, "--input-tokens"), random.Random(5)
    # Whole numbers stand for the values around them.
    drawn = [lengths.draw(source) + source.random() - 0.5 for _ in range(3000)]
    assert stats.kstest(drawn, wanted.cdf).pvalue > 0.05
    assert np.mean(drawn) == pytest.approx(wanted.mean(), rel=0.05)


def test_a_normal_length_is_never_below_one() -> None:
    lengths, source = parse_lengths("normal:2,50", "--input-tokens"), random.Random(5)
    drawn = [lengths.draw(source) for _ in range(2000)]
    assert min(drawn) == 1
    # Drawn again, and not moved to the border: half of a normal has a mean of 0.8 of its width.
    assert np.mean(drawn) == pytest.approx(stats.truncnorm(-0.04, 100, 2, 50).mean(), rel=0.05)


@pytest.mark.parametrize("text", ["64", "fixed:64", " 64 "])
def test_a_number_is_a_length(text: str) -> None:
    assert {parse_lengths(text, "--o").draw(random.Random(n)) for n in range(5)} == {64}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("many", "Write 128"),
        ("0", "at least 1"),
        ("1.5", "whole number"),
        ("-3", "at least 1"),
        ("nan", "at most"),
        ("1e99", "at most"),
        ("gamma:3,4", "Write 128"),
        ("normal:5", "Write 128"),
        ("uniform:9,3", "not below it"),
        ("uniform:0,3", "at least 1"),
        ("normal:5,-1", "not below 0"),
        ("lognormal:5,6", "not above the mean"),
        ("lognormal:5,0", "above 0"),
    ],
)
def test_what_is_no_length_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match="is no length in tokens") as caught:
        parse_lengths(text, "--output-tokens")
    assert why in str(caught.value)
    assert "--output-tokens" in str(caught.value)
