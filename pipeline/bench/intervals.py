"""How sure a number is that was measured in several rounds.

What disturbs a server multiplies its speed, so everything is computed on logarithms: a number is
the geometric mean of its rounds, its interval is Student's on the mean of their logarithms
(Georges, Buytaert and Eeckhout, "Statistically Rigorous Java Performance Evaluation", OOPSLA 2007,
section 3.2, for few measurements). So a speed is never below zero, the ratio of two servers is the
reciprocal of the ratio the other way round, and it is the ratio of their two numbers (Fleming and
Wallace, "How Not to Lie With Statistics", CACM 29 (3), 1986).

An interval tells how rounds of this run scatter. A machine that is slower for the whole run moves
all rounds, which no interval of one run shows; a ratio that is paired by round does not move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.tables import number
from pipeline.verdict.estimate import Estimate, student_quantile

_DIGITS = 6


def over_rounds(values: Sequence[float]) -> Estimate:
    """Estimates a positive number of which every round gave one value.

    Args:
        values: One per round.

    Returns:
        The geometric mean with its interval; without an interval for fewer than two rounds, and
        without a number for none.
    """
    if not values:
        return Estimate(None)
    count = len(values)
    logs = [math.log(value) for value in values]
    middle = math.fsum(logs) / count
    if count == 1:
        return Estimate(significant(values[0]))
    variance = math.fsum((log - middle) ** 2 for log in logs) / (count - 1)
    reach = student_quantile(count - 1) * math.sqrt(variance / count)
    return Estimate(*(significant(math.exp(middle + d)) for d in (0.0, -reach, reach)))


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Estimates how many times as large one number is as another, round by round.

    What slows the machine down for a round slows both down, and leaves their ratio alone.

    Args:
        values: One per round.
        base: What they are compared with, of the same rounds.
    """
    return over_rounds([value / other for value, other in zip(values, base, strict=True)])


def differs(ratio: Estimate) -> bool:
    """Says whether a ratio's interval excludes 1; without an interval nothing is known."""
    if ratio.low is None or ratio.high is None:
        return False
    return not ratio.low <= 1.0 <= ratio.high


def estimate_text(estimate: Mapping[str, float | None]) -> str:
    """Formats a speed with its interval, as ``1,765 (1,690 to 1,843)``.

    Args:
        estimate: As :meth:`~pipeline.verdict.estimate.Estimate.as_dict` returned it.
    """
    value, between = number(estimate["value"], 3), interval_text(estimate)
    return value if between == number(None) else f"{value} ({between})"


def interval_text(estimate: Mapping[str, float | None]) -> str:
    """Formats an interval, as ``1,690 to 1,843``; a dash where there is none."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return number(None)
    return f"{number(low, 3)} to {number(high, 3)}"


def significant(value: float) -> float:
    """Rounds to as many digits as a measured number can be worth."""
    return float(f"{value:.{_DIGITS}g}")
