"""Speed against quality as inline SVG: which rungs no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 340, 70, 24, 30, 48
_SMALLEST, _LARGEST = 6.0, 18.0


@dataclass(frozen=True)
class Point:
    """One rung.

    Attributes:
        label: Its name.
        speed: Tokens a second with the interval; more is better.
        quality: A divergence with the interval; less is better.
        size: Bytes, which the area of its disc says.
        shown: The same in words.
        chosen: Whether it is the one that is recommended.
    """

    label: str
    speed: Mapping[str, float | None]
    quality: Mapping[str, float | None]
    size: int
    shown: str
    chosen: bool = False


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other beats in speed or quality without losing in the other.

    They are in the order of their speeds.
    """
    kept = [
        point
        for point in points
        if not any(_beats(other, point) for other in points if other is not point)
    ]
    return sorted(kept, key=lambda point: _value(point.speed))


def pareto(points: Sequence[Point], across: str, up: str) -> str:
    """Draws the points with their intervals, and a line through those that nothing beats.

    Args:
        points: The rungs.
        across: What the horizontal axis counts.
        up: What the vertical axis counts.

    Returns:
        An ``<svg>`` element; empty text for fewer than two points.
    """
    if len(points) < 2:
        return ""
    x = _Axis([end for point in points for end in _ends(point.speed)], LEFT, WIDTH - RIGHT)
    y = _Axis([end for point in points for end in _ends(point.quality)], HEIGHT - BOTTOM, TOP)
    parts = [
        *(_grid(x, y)),
        _text(WIDTH - RIGHT, HEIGHT - 6, "tick end", escape(across)),
        _text(0, 14, "tick", escape(up)),
    ]
    line = " ".join(
        f"{x.at(_value(point.speed)):.1f},{y.at(_value(point.quality)):.1f}"
        for point in front(points)
    )
    parts.append(f'<polyline points="{line}" class="front"/>')
    largest = max(point.size for point in points) or 1
    for point in points:
        parts += _mark(point, x, y, largest)
    return (
        f'<svg class="pareto" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(up)} against {escape(across)}">{"".join(parts)}</svg>'
    )


class _Axis:
    """A linear axis from zero, or from below the least value where all are far from zero."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) or abs(high) or 1.0
        self.low = 0.0 if 0 <= low < high / 2 or low == high == 0 else low - room * 0.15
        self.high = high + room * 0.15
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for value in y.ticks():
        at = y.at(value)
        parts += [
            _line(LEFT, at, WIDTH - RIGHT, at, "axis"),
            _text(LEFT - 8, at + 4, "tick end", f"{value:.3g}"),
        ]
    for value in x.ticks():
        at = x.at(value)
        parts += [
            _line(at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 5, "axis"),
            _text(at, HEIGHT - BOTTOM + 20, "tick middle", f"{value:,.4g}"),
        ]
    return parts


def _mark(point: Point, x: _Axis, y: _Axis, largest: int) -> list[str]:
    across, up = x.at(_value(point.speed)), y.at(_value(point.quality))
    radius = max(_LARGEST * math.sqrt(point.size / largest), _SMALLEST)
    name = "chosen" if point.chosen else "point"
    speeds, qualities = _ends(point.speed), _ends(point.quality)
    words = (
        f"{point.label}: {_value(point.speed):,.4g} [{min(speeds):,.4g}, {max(speeds):,.4g}], "
        f"{_value(point.quality):.3g} [{min(qualities):.3g}, {max(qualities):.3g}], {point.shown}"
    )
    # Towards the middle, so that no label leaves the picture.
    right = across < WIDTH / 2
    label = across + (radius + 6 if right else -radius - 6)
    disc = (
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius:.1f}" class="{name}">'
        f"<title>{escape(words)}</title></circle>"
    )
    told = f"{escape(point.label)} <tspan>{escape(point.shown)}</tspan>"
    return [
        _line(x.at(min(speeds)), up, x.at(max(speeds)), up, "whisker"),
        _line(across, y.at(min(qualities)), across, y.at(max(qualities)), "whisker"),
        disc,
        _text(label, up - radius, "name" if right else "name end", told),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}"/>'


def _text(x: float, y: float, name: str, content: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{name}">{content}</text>'


def _beats(one: Point, other: Point) -> bool:
    faster = _value(one.speed) - _value(other.speed)
    better = _value(other.quality) - _value(one.quality)
    return faster >= 0 and better >= 0 and faster + better > 0


def _value(found: Mapping[str, float | None]) -> float:
    value = found["value"]
    assert value is not None
    return float(value)


def _ends(found: Mapping[str, float | None]) -> list[float]:
    return [float(end) for end in (found["value"], found["low"], found["high"]) if end is not None]
