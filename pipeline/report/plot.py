"""Models or builds by two measures, and those that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.charts import CHARACTER, WIDTH, fitted, svg
from pipeline.report.scale import nice_ticks, span_of
from pipeline.tables import number

LEFT, FLOOR, HEIGHT = 56, 214, 190
# Between the middle of a point and its label, which may stand at its height.
GAP = 9


@dataclass(frozen=True)
class Point:
    """One point of a plot.

    Attributes:
        label: What it is.
        x: Where it is.
        value: How high it is.
        low: The lower end of the interval of ``value``; None draws none.
        high: The upper end.
        marked: Whether it is the one that the page is about.
    """

    label: str
    x: float
    value: float
    low: float | None = None
    high: float | None = None
    marked: bool = False


def frontier(
    points: Sequence[Point], *, more_x_is_better: bool = True, more_y_is_better: bool = False
) -> list[bool]:
    """Says of each point whether no other is at least as good in both and better in one."""

    def good(point: Point) -> tuple[float, float]:
        return (
            point.x if more_x_is_better else -point.x,
            point.value if more_y_is_better else -point.value,
        )

    places = [good(point) for point in points]
    return [not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in places) for p in places]


def pareto(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    more_x_is_better: bool = True,
    more_y_is_better: bool = False,
    show_x: Callable[[float], str] = number,
    show_y: Callable[[float], str] = number,
) -> str:
    """Draws points by two measures, and a line through those that no other beats in both.

    Args:
        points: The points.
        x_label: What ``x`` is, with its unit.
        y_label: What ``y`` is.
        more_x_is_better: Which way is better.
        more_y_is_better: Likewise.
        show_x: How ticks are written.
        show_y: Likewise.

    Returns:
        An ``<svg>`` element, empty text for fewer than two points.
    """
    if len(points) < 2:
        return ""
    x_start, x_span = span_of([point.x for point in points], share=0.12)
    y_ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    y_start, y_span = span_of(y_ends, share=0.12)
    room = WIDTH - LEFT - 4

    def place_x(x: float) -> float:
        return LEFT + room * (x - x_start) / x_span

    def place_y(y: float) -> float:
        return FLOOR - HEIGHT * (y - y_start) / y_span

    parts = [f'<text x="0" y="10" class="tick">{escape(y_label)}</text>']
    for tick in nice_ticks(y_start, y_start + y_span):
        y = place_y(tick)
        parts += [
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}" class="axis"/>',
            (
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="tick end">'
                f"{escape(show_y(tick))}</text>"
            ),
        ]
    for tick in nice_ticks(x_start, x_start + x_span):
        x = place_x(tick)
        if x + len(show_x(tick)) * CHARACTER / 2 > WIDTH:
            continue
        parts += [
            f'<line x1="{x:.1f}" y1="{FLOOR}" x2="{x:.1f}" y2="{FLOOR + 4}" class="axis"/>',
            (
                f'<text x="{x:.1f}" y="{FLOOR + 17}" class="tick middle">'
                f"{escape(show_x(tick))}</text>"
            ),
        ]
    parts.append(f'<text x="{WIDTH}" y="{FLOOR + 34}" class="tick end">{escape(x_label)}</text>')
    best = frontier(points, more_x_is_better=more_x_is_better, more_y_is_better=more_y_is_better)
    front = sorted((p.x, p.value) for p, is_best in zip(points, best, strict=True) if is_best)
    path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in front)
    parts.append(f'<polyline points="{path}" class="front"/>')
    for point in points:
        x, y = place_x(point.x), place_y(point.value)
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line x1="{x:.1f}" y1="{place_y(point.low):.1f}" x2="{x:.1f}" '
                f'y2="{place_y(point.high):.1f}" class="whisker"/>'
            )
        kind = "marked" if point.marked else "other"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"><title>'
            f"{escape(point.label)}: {escape(show_x(point.x))}, {escape(show_y(point.value))}"
            "</title></circle>"
        )
    parts += _labels([(place_x(p.x), place_y(p.value), p) for p in points])
    return svg("plot", FLOOR + 40, parts)


def _labels(places: Sequence[tuple[float, float, Point]]) -> list[str]:
    """Writes a name beside each point; names that would lie on each other are moved down."""
    parts = []
    taken: list[tuple[float, float, float]] = []
    for x, y, point in sorted(places, key=lambda place: place[1]):
        character = CHARACTER + point.marked
        label = fitted(point.label, WIDTH * CHARACTER / character)
        width = len(label) * character
        right = x + GAP + width <= WIDTH
        start = x + GAP if right else max(x - GAP - width, 0.0)
        at = max(y - 8, 24.0)
        while any(
            abs(at - other) < 13 and start < last and first < start + width
            for first, last, other in taken
        ):
            at += 13
        taken.append((start, start + width, at))
        kind = "value strong" if point.marked else "value"
        end, edge = ("", start) if right else (" end", max(x - GAP, width))
        parts.append(
            f'<text x="{edge:.1f}" y="{at:.1f}" class="{kind}{end}">{escape(label)}</text>'
        )
    return parts
