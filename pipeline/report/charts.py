"""Small charts as inline SVG, so that the HTML report needs no other file.

Each is as wide as a phone, so that it is drawn smaller nowhere and its text stays legible; colours
are the page's own, by class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.scale import decades_of, span_of

WIDTH = 360
ROW_HEIGHT, BAR_TOP, BAR_HEIGHT = 38, 19, 11
PLOT_LEFT, PLOT_FLOOR, PLOT_HEIGHT = 40, 132, 108
PLOT_WIDTH = WIDTH - PLOT_LEFT - 4
# What a character of a label may be wide, so that none is drawn beyond the edge.
CHARACTER = 6.9
INTERVAL_WIDTH, INTERVAL_HEIGHT, INTERVAL_PAD = 150, 22, 6


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: What it is of.
        value: How long it is; what is below zero, or None, has no length.
        shown: The value as it is written.
        low: The lower end of the value's interval; None draws none.
        high: The upper end.
        faint: Whether it is only there to compare with.
    """

    label: str
    value: float | None
    shown: str
    low: float | None = None
    high: float | None = None
    faint: bool = False


def bars(rows: Sequence[Bar], *, longest: float | None = None) -> str:
    """Draws horizontal bars from zero, each below its label, with whiskers for intervals.

    Args:
        rows: The bars.
        longest: The value whose bar is as long as the chart is wide; None is the largest.

    Returns:
        An ``<svg>`` element, empty text without rows.
    """
    if not rows:
        return ""
    ends = [end for row in rows for end in (row.value, row.high) if end is not None]
    longest = longest or max([*ends, 0.0]) or 1.0
    parts = []
    for index, row in enumerate(rows):
        top = index * ROW_HEIGHT
        room = WIDTH - (len(row.shown) + 2) * CHARACTER
        label, shown = escape(row.label), escape(row.shown)
        parts += [
            f'<text x="0" y="{top + 9}" class="label">{escape(fitted(row.label, room))}</text>',
            f'<text x="{WIDTH}" y="{top + 9}" class="value end">{shown}</text>',
        ]
        if row.value is None:
            continue
        y = top + BAR_TOP
        length = max(WIDTH * row.value / longest, 1.0)
        kind = ' class="faint"' if row.faint else ""
        parts.append(
            f'<rect x="0" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2"{kind}>'
            f"<title>{label}: {shown}</title></rect>"
        )
        if row.low is not None and row.high is not None:
            ends = [max(WIDTH * end / longest, 0.0) for end in (row.low, row.high)]
            parts.append(_whisker(ends[0], ends[1], y + BAR_HEIGHT / 2))
    return svg("bars", len(rows) * ROW_HEIGHT, parts)


def interval(
    low: float | None, value: float | None, high: float | None, limit: float | None, kind: str
) -> str:
    """Draws an interval against the limit that it is held to.

    Args:
        low: The lower end; None draws the value alone.
        value: What was measured.
        high: The upper end.
        limit: The limit.
        kind: The class of what is drawn, which gives it its colour.

    Returns:
        An ``<svg>`` element, empty text without a value or a limit.
    """
    if value is None or limit is None:
        return ""
    start, width = span_of([end for end in (low, value, high, limit) if end is not None])

    def place(at: float) -> float:
        return INTERVAL_PAD + (INTERVAL_WIDTH - 2 * INTERVAL_PAD) * (at - start) / width

    middle = INTERVAL_HEIGHT / 2
    parts = [f'<line x1="0" y1="{middle}" x2="{INTERVAL_WIDTH}" y2="{middle}" class="axis"/>']
    if low is not None and high is not None:
        left, right = place(low), place(high)
        parts.append(
            f'<rect x="{left:.1f}" y="{middle - 4}" width="{max(right - left, 1.5):.1f}" '
            f'height="8" rx="2" class="{escape(kind)} range"/>'
        )
    parts += [
        f'<circle cx="{place(value):.1f}" cy="{middle}" r="3.5" class="{escape(kind)}"/>',
        (
            f'<line x1="{place(limit):.1f}" y1="1" x2="{place(limit):.1f}" '
            f'y2="{INTERVAL_HEIGHT - 1}" class="limit"/>'
        ),
    ]
    return svg("interval", INTERVAL_HEIGHT, parts, width=INTERVAL_WIDTH)


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
    low, decades = decades_of(exponents)
    counts = [0] * buckets
    for exponent in exponents:
        counts[min(int((exponent - low) / decades * buckets), buckets - 1)] += 1
    parts = _count_axis(max(counts), counted) + _decades(low, decades, unit)
    step = PLOT_WIDTH / buckets
    for index, count in enumerate(counts):
        if not count:
            continue
        bar = PLOT_HEIGHT * count / max(counts)
        start = 10 ** (low + index * decades / buckets)
        parts.append(
            f'<rect x="{PLOT_LEFT + index * step + 0.5:.1f}" y="{PLOT_FLOOR - bar:.1f}" '
            f'width="{step - 1:.1f}" height="{bar:.1f}">'
            f"<title>{count} from {start:.3g} {escape(unit)}</title></rect>"
        )
    return svg("hist", PLOT_FLOOR + 26, parts)


def _whisker(left: float, right: float, y: float) -> str:
    return (
        f'<path d="M{left:.1f} {y - 4}v8M{left:.1f} {y}H{right:.1f}M{right:.1f} {y - 4}v8" '
        'class="whisker"/>'
    )


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
            f'<text x="{PLOT_LEFT - 6}" y="{y + 4:.1f}" class="tick end">{count:,}</text>',
        ]
    return parts


def _decades(low: int, decades: int, unit: str) -> list[str]:
    """Ticks at the powers of ten, and short ones at their multiples."""
    width = PLOT_WIDTH / decades
    every = math.ceil(decades / 4)
    parts = []
    for decade in range(decades + 1):
        x = PLOT_LEFT + decade * width
        last = decade == decades
        parts.append(_tick(x, 7))
        if last or (decade % every == 0 and decades - decade >= every):
            label = f"{10.0 ** (low + decade):g}" + (f" {unit}" if last else "")
            anchor = "end" if last else "middle"
            parts.append(
                f'<text x="{x:.1f}" y="{PLOT_FLOOR + 21}" class="tick {anchor}">'
                f"{escape(label)}</text>"
            )
        if not last:
            parts += [_tick(x + width * math.log10(multiple), 4) for multiple in range(2, 10)]
    return parts


def _tick(x: float, length: int) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{PLOT_FLOOR}" x2="{x:.1f}" y2="{PLOT_FLOOR + length}" '
        'class="axis"/>'
    )


def fitted(label: str, room: float) -> str:
    """Shortens a label in its middle to what fits into that width."""
    most = max(int(room / CHARACTER), 3)
    if len(label) <= most:
        return label
    start = most // 3
    return f"{label[:start]}…{label[len(label) - (most - 1 - start) :]}"


def svg(kind: str, height: int, parts: Sequence[str], *, width: int = WIDTH) -> str:
    """Wraps what was drawn into an ``<svg>`` of that class, width and height."""
    # Without role="img", so that its texts can be read aloud and copied.
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
