"""Small charts as inline SVG, so that the HTML report needs no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, BAR_HEIGHT, GAP, LABEL_WIDTH, VALUE_WIDTH = 640, 22, 8, 150, 110
PLOT_LEFT, PLOT_FLOOR, PLOT_HEIGHT = 44, 140, 116
PLOT_WIDTH = WIDTH - PLOT_LEFT


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Draws horizontal bars from zero.

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


def histogram(values: Sequence[float], *, unit: str, counted: str, buckets: int = 24) -> str:
    """Draws how often positive values fall into ranges of equal ratio: the axis is logarithmic.

    Args:
        values: The values; those that are not above zero are left out.
        unit: Of the values; written behind the last tick.
        counted: What is counted; written above the axis of counts.
        buckets: Number of ranges.

    Returns:
        An ``<svg>`` element, empty text for fewer than two values.
    """
    exponents = [math.log10(value) for value in values if value > 0]
    if len(exponents) < 2:
        return ""
    low = math.floor(min(exponents))
    decades = max(math.ceil(max(exponents)) - low, 1)
    counts = [0] * buckets
    for exponent in exponents:
        counts[min(int((exponent - low) / decades * buckets), buckets - 1)] += 1
    parts = _count_axis(max(counts), counted) + _decades(low, decades, unit)
    step = PLOT_WIDTH / buckets
    for index, count in enumerate(counts):
        bar = PLOT_HEIGHT * count / max(counts)
        start = 10 ** (low + index * decades / buckets)
        parts.append(
            f'<rect x="{PLOT_LEFT + index * step + 1:.1f}" y="{PLOT_FLOOR - bar:.1f}" '
            f'width="{step - 2:.1f}" height="{bar:.1f}">'
            f"<title>{count} from {start:.3g} {escape(unit)}</title></rect>"
        )
    height = PLOT_FLOOR + 28
    return f'<svg class="hist" viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _count_axis(most: int, counted: str) -> list[str]:
    """Horizontal lines at round counts."""
    rough = most / 3
    power = 10 ** math.floor(math.log10(max(rough, 1)))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    parts = [f'<text x="0" y="10" class="tick">{escape(counted)}</text>']
    for count in range(0, most + 1, step):
        y = PLOT_FLOOR - PLOT_HEIGHT * count / most
        parts += [
            f'<line x1="{PLOT_LEFT}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}" class="axis"/>',
            f'<text x="{PLOT_LEFT - 8}" y="{y + 4:.1f}" class="tick end">{count:,}</text>',
        ]
    return parts


def _decades(low: int, decades: int, unit: str) -> list[str]:
    """Ticks at the powers of ten, and short ones at their multiples."""
    width = PLOT_WIDTH / decades
    parts = []
    for decade in range(decades + 1):
        x = PLOT_LEFT + decade * width
        last = decade == decades
        label = f"{10.0 ** (low + decade):g}" + (f" {unit}" if last else "")
        anchor = "end" if last else "middle"
        parts += [
            _tick(x, 7),
            f'<text x="{x:.1f}" y="{PLOT_FLOOR + 22}" class="tick {anchor}">{escape(label)}</text>',
        ]
        if not last:
            parts += [_tick(x + width * math.log10(multiple), 4) for multiple in range(2, 10)]
    return parts


def _tick(x: float, length: int) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{PLOT_FLOOR}" x2="{x:.1f}" y2="{PLOT_FLOOR + length}" '
        'class="axis"/>'
    )
