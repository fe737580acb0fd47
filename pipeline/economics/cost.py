"""What a million tokens cost."""

from __future__ import annotations

SECONDS_PER_HOUR = 3600
MILLION = 1_000_000


def cost_per_million(
    tokens_per_second: float, price_per_hour: float, utilization: float = 1.0
) -> float:
    """Computes the price of a million tokens of a machine that is paid by the hour.

    Args:
        tokens_per_second: While it works; above zero.
        price_per_hour: In any currency, which is that of the result.
        utilization: The share of the time in which it works; above zero.
    """
    tokens_per_hour = tokens_per_second * utilization * SECONDS_PER_HOUR
    return price_per_hour / tokens_per_hour * MILLION
