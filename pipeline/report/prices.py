"""What tokens cost at a measured speed."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.economics.cost import cost_per_million
from pipeline.verdict.estimate import Estimate


def price_of(
    speed: Mapping[str, float | None], price_per_hour: float, utilization: float
) -> dict[str, float | None]:
    """Computes the price of a million tokens, as an estimate in JSON.

    Args:
        speed: Tokens per second, as an estimate in JSON.
        price_per_hour: Of the machine, in any currency.
        utilization: The share of the time in which it works.
    """

    def price(tokens_per_second: float | None) -> float | None:
        if not tokens_per_second:
            return None
        return cost_per_million(tokens_per_second, price_per_hour, utilization)

    # The fastest that it may be is the cheapest.
    return Estimate(price(speed["value"]), price(speed["high"]), price(speed["low"])).as_dict()
