"""Least squares with coefficients that are not below zero, for a handful of unknowns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def non_negative(
    rows: Sequence[Sequence[float]], values: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Finds coefficients of at least zero that bring the rows closest to the values.

    The optimum has some coefficients at zero and is the plain optimum of the others (the conditions
    of Karush, Kuhn and Tucker), so with few unknowns every choice of them is tried: that needs no
    iteration (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23).

    Args:
        rows: A number for each unknown.
        values: What each row should give.
        weights: How much the square of each difference counts.

    Returns:
        A coefficient for each unknown.
    """
    unknowns = len(rows[0])
    products = [
        [
            math.fsum(w * r[i] * r[j] for r, w in zip(rows, weights, strict=True))
            for j in range(unknowns)
        ]
        for i in range(unknowns)
    ]
    right = [
        math.fsum(w * r[i] * v for r, v, w in zip(rows, values, weights, strict=True))
        for i in range(unknowns)
    ]
    best, least = [0.0] * unknowns, 0.0
    for count in range(1, unknowns + 1):
        for chosen in combinations(range(unknowns), count):
            found = _solve(
                [[products[i][j] for j in chosen] for i in chosen], [right[i] for i in chosen]
            )
            if found is None or min(found) < 0:
                continue
            # The sum of squares without what no choice changes.
            loss = -math.fsum(right[i] * x for i, x in zip(chosen, found, strict=True))
            if loss < least * (1 + 1e-9):
                best, least = [0.0] * unknowns, loss
                for i, x in zip(chosen, found, strict=True):
                    best[i] = x
    return best


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Solves linear equations by elimination; None where they do not decide the unknowns."""
    size = len(right)
    # Unknowns may be of very different sizes.
    scale = [math.sqrt(matrix[i][i]) for i in range(size)]
    if not all(scale):
        return None
    work = [
        [matrix[i][j] / scale[i] / scale[j] for j in range(size)] + [right[i] / scale[i]]
        for i in range(size)
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(work[row][column]))
        if abs(work[pivot][column]) < 1e-9:
            return None
        work[column], work[pivot] = work[pivot], work[column]
        for row in range(size):
            if row != column:
                factor = work[row][column] / work[column][column]
                work[row] = [a - factor * b for a, b in zip(work[row], work[column], strict=True)]
    return [work[i][size] / work[i][i] / scale[i] for i in range(size)]
