"""Where numbers lie on an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence


def span_of(values: Sequence[float], *, share: float = 0.08) -> tuple[float, float]:
    """Computes where an axis starts and how far it goes to hold all values.

    Args:
        values: At least one.
        share: Of their range, that is left free at either end.

    Returns:
        The start, and the width, which is above zero also for equal values.
    """
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high - low + 2 * room


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Lists round numbers between two: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: The start of the axis.
        high: Its end; above ``low``.
        count: About how many are wished.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    # Rounded, as 3 * 0.1 would be written with all its digits.
    digits = max(1 - math.floor(math.log10(step)), 0)
    return [round(index * step, digits) for index in range(first, last + 1)]


def decades_of(exponents: Sequence[float]) -> tuple[int, int]:
    """Finds the power of ten at which a logarithmic axis starts, and how many it covers."""
    low = math.floor(min(exponents))
    return low, max(math.ceil(max(exponents)) - low, 1)
