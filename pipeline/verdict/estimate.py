"""A measured number with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95
"""The share of repetitions in which an interval holds the true number."""


@dataclass(frozen=True)
class Estimate:
    """A number and where it may lie.

    Attributes:
        value: What was measured; None is a number that was not finite.
        low: The lower end of its :data:`CONFIDENCE` interval; None where there is none to tell.
        high: The upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Returns the same as JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def negated(self) -> Estimate:
        """Returns the estimate of the number with the other sign, as of a loss for a change."""
        ends = (self.value, self.high, self.low)
        return Estimate(*(None if end is None else -end for end in ends))

    @classmethod
    def from_dict(cls, values: Mapping[str, float | None]) -> Estimate:
        """Makes an estimate of what :meth:`as_dict` returned."""
        return cls(values["value"], values["low"], values["high"])


@lru_cache
def student_quantile(freedom: int) -> float:
    """Returns how many standard errors a two-sided interval of Student's t reaches.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _inside(high, freedom) < CONFIDENCE:
        high *= 2.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2.0
        if _inside(middle, freedom) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _inside(t: float, freedom: int) -> float:
    """The probability of a value between -t and t: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total
