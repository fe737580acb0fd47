"""Small charts as inline SVG, so that the HTML report needs no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, BAR_HEIGHT, GAP, LABEL_WIDTH, VALUE_WIDTH = 640, 22, 8, 150, 110


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars from zero.

    Args:
        rows: Label, value and the value as it is written, one per bar; values are not negative.

    Returns:
        An ``<svg>`` element, empty text without rows.
    """
    if not rows:
        return ""
    longest = max(value for _, value, _ in rows) or 1.0
    space = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    parts = []
    for index, (label, value, shown) in enumerate(rows):
        top = index * (BAR_HEIGHT + GAP)
        middle = top + BAR_HEIGHT / 2
        length = max(space * value / longest, 1.0)
        parts += [
            f'<text x="{LABEL_WIDTH - 10}" y="{middle}" class="label">{escape(label)}</text>',
            (
                f'<rect x="{LABEL_WIDTH}" y="{top}" width="{length:.1f}" height="{BAR_HEIGHT}" '
                f'rx="3"><title>{escape(label)}: {escape(shown)}</title></rect>'
            ),
            (
                f'<text x="{LABEL_WIDTH + length + 8:.1f}" y="{middle}" class="value">'
                f"{escape(shown)}</text>"
            ),
        ]
    height = len(rows) * (BAR_HEIGHT + GAP)
    return f'<svg class="bars" viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def histogram(values: Sequence[float], *, unit: str, buckets: int = 24) -> str:
    """How often positive values fall into ranges of equal ratio: the axis is logarithmic.

    Args:
        values: The values; those that are not above zero are left out.
        unit: Written behind the ends of the axis.
        buckets: Number of ranges.

    Returns:
        An ``<svg>`` element, empty text for fewer than two values.
    """
    exponents = [math.log10(value) for value in values if value > 0]
    if len(exponents) < 2:
        return ""
    low, high = min(exponents), max(exponents)
    span = (high - low) or 1.0
    counts = [0] * buckets
    for exponent in exponents:
        counts[min(int((exponent - low) / span * buckets), buckets - 1)] += 1
    height, floor, step = 120, 100, WIDTH / buckets
    tallest = max(counts)
    parts = [f'<line x1="0" y1="{floor}" x2="{WIDTH}" y2="{floor}" class="axis"/>']
    for index, count in enumerate(counts):
        bar = (floor - 6) * count / tallest
        start = 10 ** (low + index * span / buckets)
        parts.append(
            f'<rect x="{index * step + 1:.1f}" y="{floor - bar:.1f}" width="{step - 2:.1f}" '
            f'height="{bar:.1f}"><title>{count} from {start:.3g} {escape(unit)}</title></rect>'
        )
    for x, anchor, value in ((0, "start", 10**low), (WIDTH, "end", 10**high)):
        parts.append(
            f'<text x="{x}" y="{height - 2}" style="text-anchor:{anchor}" class="tick">'
            f"{value:.3g} {escape(unit)}</text>"
        )
    return f'<svg class="hist" viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
