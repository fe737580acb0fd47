"""What is a near tie, by hand: probabilities of one run sum to at most 1."""

from __future__ import annotations

import math

import pytest

from pipeline.verify.near_tie import TOLERANCE, why_no_near_tie

HALF = math.log(0.5)
BEFORE = [-0.1, -1.2]


def why(one: list[float], other: list[float], place: int = 2, **kind: bool) -> str | None:
    return why_no_near_tie([*BEFORE, *one], [*BEFORE, *other], [place], TOLERANCE, **kind)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([HALF, -2.0], [HALF - 0.01, -0.3]),  # each has half of the probability
        ([math.log(0.55), -2.0], [math.log(0.45), -0.3]),  # 0.2 apart
        ([-3.0, -2.0], [-3.2, -0.3]),  # many tokens are as likely
        ([HALF], [HALF]),  # the last token, after which nothing tells anything
    ],
)
def test_two_that_may_each_have_been_the_likeliest(one: list[float], other: list[float]) -> None:
    assert why(one, other) is None


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ([HALF, -2.0], [HALF - 0.3, -0.3], "0.3 apart, and 0.25 is allowed"),
        # 0.8 + 0.7 exp(-0.25) is 1.35.
        ([math.log(0.8), -2.0], [math.log(0.7), -0.3], "cannot both be that likely"),
        ([-0.001, -2.0], [-0.001, -0.3], "cannot both be that likely"),
        ([HALF, -2.0, -1.0], [HALF, -2.0, -1.0], "the tokens are the same and the text is not"),
    ],
)
def test_two_of_which_one_is_wrong(one: list[float], other: list[float], reason: str) -> None:
    assert reason in (why(one, other) or "nothing")


def test_what_comes_before_must_agree() -> None:
    told = why_no_near_tie([-0.1, HALF, -3.0], [-0.6, HALF, -1.0], [1], TOLERANCE)
    assert told == "before token 1 log probabilities differ by 0.5, and 0.25 is allowed"


def test_of_sampled_tokens_only_what_comes_before_tells_something() -> None:
    assert why([-0.1, -2.0], [-5.0, -1.0], greedy=False) is None
    assert why([-0.1, -2.0], [-5.0, -1.0]) is not None


def test_one_may_end_where_the_other_goes_on_if_both_were_as_likely() -> None:
    assert why([], [HALF, -1.0]) is None
    # The end would have at least 0.9 exp(-0.5) of the probability that 0.9 leaves.
    assert "one of them ends at token 2" in (why([], [math.log(0.9), -1.0]) or "")
    assert why([], [HALF, -1.0], may_end=False) == "one has 2 tokens, the other 4"


def test_normalized_log_probabilities_tell_nothing() -> None:
    told = why_no_near_tie([0.0, 0.0], [0.0, 0.0], [1], TOLERANCE)
    assert "normalize_log_probs" in (told or "")


def test_a_place_that_is_not_known_exactly_may_be_any_near_it() -> None:
    one, other = [-0.1, HALF, -3.0, -1.0], [-0.1, HALF, -0.4, -2.0]
    assert why_no_near_tie(one, other, [2], TOLERANCE) is not None
    assert why_no_near_tie(one, other, [2, 1, 3], TOLERANCE) is None
