"""How many tokens a prompt or an answer has, drawn from a distribution."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.errors import UsageError

_EXAMPLES = "128, uniform:64,256, normal:128,32 or lognormal:128,96"
_REDRAWN = 1000
LARGEST = 10_000_000


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths.

    Attributes:
        text: As it was written.
        kind: ``fixed``, ``uniform``, ``normal`` or ``lognormal``.
        numbers: Its parameters.
    """

    text: str
    kind: str
    numbers: tuple[float, ...]

    def draw(self, source: random.Random) -> int:
        """Draws a number of tokens, 1 or more.

        Args:
            source: Where randomness comes from.
        """
        return max(1, round(_DRAWN[self.kind](source, *self.numbers)))


def parse_lengths(text: str, option: str) -> Lengths:
    """Reads a distribution of lengths.

    The names and parameters are those of AIPerf's configuration files (docs.nvidia.com/aiperf,
    "Sampling Distributions in YAML Configs"): ``normal`` is given by mean and standard deviation,
    and what would be below 0 is drawn again; ``lognormal`` by mean and median. ``uniform``, by its
    ends, is vLLM's ``--random-range-ratio``.

    Args:
        text: ``128``, ``fixed:128``, ``uniform:LOW,HIGH``, ``normal:MEAN,STDDEV`` or
            ``lognormal:MEAN,MEDIAN``.
        option: Names it in an error.

    Raises:
        UsageError: It is none of these, or its numbers are impossible.
    """
    kind, separator, rest = text.strip().rpartition(":")
    if not separator:
        kind = "fixed"
    try:
        numbers = tuple(float(word) for word in rest.split(","))
    except ValueError:
        raise _no_lengths(text, option, None) from None
    if kind not in _DRAWN or len(numbers) != (1 if kind == "fixed" else 2):
        raise _no_lengths(text, option, None)
    if not all(math.isfinite(number) and number <= LARGEST for number in numbers):
        raise _no_lengths(text, option, f"a length is at most {LARGEST:,}")
    if why := _impossible(kind, numbers):
        raise _no_lengths(text, option, why)
    return Lengths(text, kind, numbers)


def _impossible(kind: str, numbers: tuple[float, ...]) -> str | None:
    first = numbers[0]
    if kind == "fixed" and (first < 1 or first != int(first)):
        return "A length is a whole number, at least 1"
    if kind == "uniform" and not 1 <= first <= numbers[1]:
        return "The lower end is at least 1, and the upper end not below it"
    if kind == "normal" and not (first >= 1 and numbers[1] >= 0):
        return "The mean is at least 1, and the standard deviation not below 0"
    if kind == "lognormal" and not 0 < numbers[1] <= first:
        return "The median is above 0 and not above the mean"
    return None


def _no_lengths(text: str, option: str, why: str | None) -> UsageError:
    fix = f"Write {_EXAMPLES}"
    return UsageError(f"{option} {text} is no length in tokens", why=why, fix=fix)


def _normal(source: random.Random, mean: float, stddev: float) -> float:
    for _ in range(_REDRAWN):
        drawn = source.gauss(mean, stddev)
        if drawn >= 0:
            return drawn
    return mean


def _lognormal(source: random.Random, mean: float, median: float) -> float:
    # The median of a log-normal is exp(mu), its mean exp(mu + sigma^2 / 2).
    return source.lognormvariate(math.log(median), math.sqrt(2 * math.log(mean / median)))


_DRAWN: Mapping[str, Callable[..., float]] = {
    "fixed": lambda _source, tokens: tokens,
    "uniform": lambda source, low, high: source.randint(math.ceil(low), math.floor(high)),
    "normal": _normal,
    "lognormal": _lognormal,
}
