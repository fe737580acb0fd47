"""Confidence intervals by the bootstrap, over units that were drawn independently.

Tokens of one document are alike, so whole documents (or rows of a task) are drawn anew, with
replacement (cluster bootstrap; Davison and Hinkley 1997, *Bootstrap Methods and their Application*,
section 3.8). Everything measured on a document goes with it, which pairs the two models of a
difference. The draw is seeded: the same numbers always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.verdict.estimate import CONFIDENCE, Estimate, student_quantile

RESAMPLES = 2000
SEED = 20240229
MIN_UNITS = 10
"""The fewest units that a bootstrap interval is made of; below it is too narrow."""
# Numbers of one table that is held at a time.
_TABLE = 1 << 23
Array = NDArray[np.float64]


def ratio_estimate(
    numerators: ArrayLike,
    denominators: ArrayLike,
    transform: Callable[[float], float] = lambda ratio: ratio,
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> Estimate:
    """Estimates a function of a ratio of sums, such as nats per token or their exponential.

    The interval is the BCa one (bias-corrected and accelerated; Efron 1987, *Better Bootstrap
    Confidence Intervals*, JASA 82), which keeps its promise for skewed numbers better than plain
    percentiles. It is widened to the value where it leaves that out. Fewer than :data:`MIN_UNITS`
    units have too few resamples that differ: they get Student's t interval with the linearised
    standard error of a ratio (Cochran 1977, *Sampling Techniques*, equation 6.4), of the ratio
    before it is transformed.

    Args:
        numerators: One sum per unit.
        denominators: What each is a sum over, such as tokens; positive in total.
        transform: An increasing function of the ratio.
        least: The smallest ratio that there can be; an interval does not reach below it.
        most: The largest one.

    Returns:
        Its value; None where it is not finite. The ends are None where they are not finite, and
        where one unit alone does not tell them.
    """
    above, below = _float64(numerators), _float64(denominators)
    total = float(below.sum())
    with np.errstate(invalid="ignore"):
        ratio = float(above.sum()) / total if total > 0 else math.nan
    value = _finite(transform, ratio)
    if len(above) < 2 or value is None or not np.isfinite(above).all():
        return Estimate(value)
    if len(above) < MIN_UNITS:
        low, high = _student(above, below, ratio)
    else:
        low, high = _accelerated(above, below, ratio)
    low, high = max(low, least), min(high, most)
    return Estimate(
        value, _finite(transform, min(low, ratio)), _finite(transform, max(high, ratio))
    )


def share_estimate(hits: ArrayLike, totals: ArrayLike) -> Estimate:
    """Estimates a share, such as that of tokens at which two models agree.

    Where all are hits, or none is, no resample differs and the bootstrap has nothing to tell. The
    interval is then the exact one of a binomial share (Clopper and Pearson 1934, Biometrika 26), as
    if all were drawn independently: at the least so much is not known.

    Args:
        hits: How many of each unit.
        totals: Out of how many; at least one in total.
    """
    found = ratio_estimate(hits, totals, least=0.0, most=1.0)
    if found.value not in (0.0, 1.0):
        return found
    unseen = _unseen(float(_float64(totals).sum()))
    return Estimate(found.value, max(found.value - unseen, 0.0), min(found.value + unseen, 1.0))


def change_estimate(before: ArrayLike, after: ArrayLike) -> Estimate:
    """Estimates by how much a share changes, of the same rows asked twice.

    Where no row changes its side, the interval reaches as far on both sides as the share of rows
    that do may, by :func:`share_estimate`.

    Args:
        before: Whether each row was a hit.
        after: The same later.
    """
    changes = _float64(after) - _float64(before)
    if changes.any():
        return ratio_estimate(changes, np.ones(len(changes)), least=-1.0, most=1.0)
    unseen = _unseen(len(changes))
    return Estimate(0.0, -unseen, unseen)


def _unseen(count: float) -> float:
    """The largest share that may well not show in so many draws."""
    return 1.0 - float(((1.0 - CONFIDENCE) / 2.0) ** (1.0 / count))


def quantile_estimate(values: ArrayLike, units: ArrayLike, share: float) -> Estimate:
    """Estimates a quantile of values that come in units, such as tokens of documents.

    It is the smallest value that ``share`` of them do not exceed (Hyndman and Fan 1996, definition
    1). Its interval has the percentiles of the bootstrap, since acceleration by the jackknife does
    not suit a quantile, which is not smooth (Efron and Tibshirani 1993, *An Introduction to the
    Bootstrap*, section 11.6). Fewer than :data:`MIN_UNITS` units give none.

    Args:
        values: All values.
        units: The unit of each, counted from 0 without a gap.
        share: Above 0, at most 1.
    """
    numbers, members = _float64(values), np.asarray(units, dtype=np.int64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return Estimate(None)
    order = np.argsort(-numbers, kind="stable")
    numbers, members = numbers[order], members[order]
    sizes = np.bincount(members)
    value = float(_quantiles(numbers, members, np.ones((1, len(sizes))), sizes, share)[0])
    if len(sizes) < MIN_UNITS:
        return Estimate(value)
    found = np.concatenate(
        [_quantiles(numbers, members, c, sizes, share) for c in _counts(len(sizes))]
    )
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _accelerated(above: Array, below: Array, ratio: float) -> tuple[float, float]:
    """The ends of the BCa interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.concatenate([(c @ above) / (c @ below) for c in _counts(len(above))])
        # The influence of each unit is found by leaving it out.
        without = (above.sum() - above) / (below.sum() - below)
    # A resample of units without a denominator, such as documents without a byte, tells nothing.
    ratios = ratios[np.isfinite(ratios)]
    normal = NormalDist()
    # Ties count half, so that numbers that are all the same have no bias.
    smaller = float((ratios < ratio).mean() + (ratios == ratio).mean() / 2.0)
    edge = 0.5 / len(ratios)
    bias = normal.inv_cdf(min(max(smaller, edge), 1.0 - edge))
    pull = without.mean() - without
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6.0 * spread**1.5) if spread > 0 else 0.0
    ends = []
    for tail in ((1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0):
        shifted = bias + normal.inv_cdf(tail)
        # Beyond this the correction turns over, which only a few wild units bring about.
        slack = max(1.0 - acceleration * shifted, 1e-3)
        ends.append(normal.cdf(bias + shifted / slack))
    low, high = np.quantile(ratios, ends)
    return float(low), float(high)


def _student(above: Array, below: Array, ratio: float) -> tuple[float, float]:
    count = len(above)
    spread = float(((above - ratio * below) ** 2).sum())
    error = math.sqrt(spread * count / (count - 1)) / float(below.sum())
    reach = student_quantile(count - 1) * error
    return ratio - reach, ratio + reach


def _counts(units: int) -> Iterator[Array]:
    """How often each resample has each unit, [resamples, units], some resamples at a time."""
    generator = np.random.default_rng(SEED)
    rows = max(1, _TABLE // units)
    for start in range(0, RESAMPLES, rows):
        some = min(rows, RESAMPLES - start)
        drawn = generator.integers(0, units, size=(some, units))
        drawn += np.arange(some)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=some * units).reshape(some, units).astype(float)


def _quantiles(
    falling: Array,
    members: NDArray[np.int64],
    counts: Array,
    sizes: NDArray[np.int64],
    share: float,
) -> Array:
    """The quantile of each resample: ``falling`` are the values of all units, largest first."""
    # As many of a resample's values as this may be larger than the quantile.
    beyond = np.floor((1.0 - share) * (counts @ sizes) + 1e-9)
    found = np.full(len(counts), falling[-1])
    # Only the upper values matter, which are few; the rest is looked at where they do not do.
    rows = np.arange(len(counts))
    passed = np.zeros(len(counts))
    width, start = max(64, 4 * math.ceil((1.0 - share) * len(falling))), 0
    while len(rows) and start < len(falling):
        width = min(width, max(1, _TABLE // len(rows)))
        part = members[start : start + width]
        running = passed[rows, None] + np.cumsum(counts[np.ix_(rows, part)], axis=1)
        is_beyond = running > beyond[rows, None]
        hit = is_beyond.any(axis=1)
        found[rows[hit]] = falling[start + is_beyond.argmax(axis=1)[hit]]
        passed[rows] = running[:, -1]
        rows, start = rows[~hit], start + len(part)
    return found


def _float64(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _finite(transform: Callable[[float], float], ratio: float) -> float | None:
    """The transformed ratio; None where there is no finite one."""
    try:
        value = transform(ratio)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
