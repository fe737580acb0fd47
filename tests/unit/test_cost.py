"""The price of tokens, against sums done by hand."""

from __future__ import annotations

import pytest

from pipeline.economics.cost import cost_per_million


def test_a_thousand_tokens_a_second_at_one_dollar_fifty() -> None:
    # 3.6 million tokens in an hour of 1.50: 0.41666... a million.
    assert cost_per_million(1000.0, 1.5) == pytest.approx(1.5 / 3.6)


def test_a_machine_that_idles_half_the_time_costs_twice_as_much_a_token() -> None:
    assert cost_per_million(1000.0, 1.5, 0.5) == pytest.approx(2 * 1.5 / 3.6)
