"""What a million tokens cost, and a day."""

from __future__ import annotations

from pipeline.tables import number

SECONDS_PER_HOUR = 3600
HOURS_PER_DAY = 24
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


def cost_per_day(replicas: int, price_per_hour: float) -> float:
    """Computes the price of a day of machines that are paid by the hour, busy or not.

    Args:
        replicas: How many there are.
        price_per_hour: Of one, in any currency, which is that of the result.
    """
    return replicas * price_per_hour * HOURS_PER_DAY


def cost_of_traffic(replicas: int, price_per_hour: float, tokens_per_second: float) -> float:
    """Computes the price of a million tokens of a traffic, of machines that run all the time.

    Args:
        replicas: How many there are.
        price_per_hour: Of one, in any currency, which is that of the result.
        tokens_per_second: Of the traffic, over all machines; above zero.
    """
    return cost_per_million(tokens_per_second, replicas * price_per_hour)


def money(amount: float | None) -> str:
    """Formats an amount of money: two digits behind the point, more for less than a tenth."""
    if amount is None:
        return number(None)
    return f"{amount:,.2f}" if amount >= 0.1 else number(amount, 2)
