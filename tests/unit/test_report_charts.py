"""Charts: what is drawn is where its number says, and fits into the picture."""

from __future__ import annotations

import itertools
import random
from xml.etree import ElementTree

import pytest

from pipeline.report.charts import WIDTH, Bar, bars, histogram, interval
from pipeline.report.plot import Point, frontier, pareto
from pipeline.report.scale import nice_ticks, span_of


def _drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def _titles(drawn: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in drawn.iter("title")]


def test_bars_are_proportional_and_as_wide_as_the_chart() -> None:
    drawn = _drawn(bars([Bar("a", 2.0, "two"), Bar("b", 1.0, "one"), Bar("c", None, "-")]))
    assert [float(bar.attrib["width"]) for bar in drawn.iter("rect")] == [WIDTH, WIDTH / 2]
    assert [text.text for text in drawn.iter("text")] == ["a", "two", "b", "one", "c", "-"]
    assert bars([]) == ""


def test_a_label_that_is_too_long_is_cut_in_its_middle() -> None:
    """What tells linears apart stands at either end of their names."""
    name = "model.layers.31.block_sparse_moe.experts.7.w1" * 2
    drawn = _drawn(bars([Bar(name, 1.0, "17.2 dB"), Bar(name[:30], 1.0, "17.2 dB")]))
    long, _, short, _ = (text.text or "" for text in drawn.iter("text"))
    assert short == name[:30]
    start, end = long.split("…")
    assert name.startswith(start)
    assert name.endswith(end)
    assert len(start) > 10 < len(end)
    assert name in _titles(drawn)[0]


def test_whiskers_end_where_the_interval_does() -> None:
    drawn = _drawn(bars([Bar("a", 2.0, "two", low=1.0, high=4.0)]))
    (bar,) = drawn.iter("rect")
    (whisker,) = drawn.iter("path")
    assert float(bar.attrib["width"]) == WIDTH / 2
    first, last = whisker.attrib["d"].split("H")
    assert first.startswith(f"M{WIDTH / 4:.1f} ")
    assert last.startswith(f"{WIDTH:.1f}M")


def test_bars_bear_what_is_below_zero() -> None:
    """A linear whose noise is louder than its signal has fewer than 0 dB."""
    drawn = _drawn(bars([Bar("a", -3.0, "-3 dB"), Bar("b", -1.0, "-1 dB", -2.0, 0.5)]))
    assert all(float(bar.attrib["width"]) >= 1.0 for bar in drawn.iter("rect"))


def test_bars_of_one_scale() -> None:
    drawn = _drawn(bars([Bar("a", 2.0, "two")], longest=8.0))
    assert [float(bar.attrib["width"]) for bar in drawn.iter("rect")] == [WIDTH / 4]


@pytest.mark.parametrize(
    ("low", "value", "high", "limit"),
    [
        (0.01, 0.02, 0.03, 0.04),
        (0.05, 0.06, 0.07, 0.04),
        (-1.0, 0.5, 2.0, 1.0),
        (1.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0, 0.0),
        (None, 3.0, None, 2.0),
    ],
)
def test_an_interval_and_its_limit_are_in_their_order(
    low: float | None, value: float, high: float | None, limit: float
) -> None:
    drawn = _drawn(interval(low, value, high, limit, "good"))
    width = float(drawn.attrib["viewBox"].split()[2])
    (dot,) = drawn.iter("circle")
    (line,) = (line for line in drawn.iter("line") if line.attrib["class"] == "limit")
    places = {"value": float(dot.attrib["cx"]), "limit": float(line.attrib["x1"])}
    for bar in drawn.iter("rect"):
        left = float(bar.attrib["x"])
        places |= {"low": left, "high": left + float(bar.attrib["width"])}
    numbers = {"low": low, "value": value, "high": high, "limit": limit}
    assert places.keys() == {name for name, number in numbers.items() if number is not None}
    for one, other in itertools.permutations(places, 2):
        if numbers[one] < numbers[other]:  # type: ignore[operator]
            assert places[one] < places[other] + 0.1, (one, other)
    assert all(0 <= place <= width for place in places.values())


def test_an_interval_needs_a_number_and_a_limit() -> None:
    assert interval(None, None, None, 0.1, "bad") == interval(0.1, 0.2, 0.3, None, "bad") == ""


def test_a_histogram_counts_every_positive_value_once() -> None:
    values = [0.0, 0.001, 0.01, 0.1, 0.1]
    drawn = _drawn(histogram(values, unit="nats", counted="windows", buckets=3))
    # From 0.001 to 0.1 are two decades in three parts; 0.01 lies in the second.
    assert [int(title.split()[0]) for title in _titles(drawn)] == [1, 1, 2]
    assert histogram([0.5], unit="nats", counted="windows") == ""
    assert histogram([0.0] * 9, unit="nats", counted="windows") == ""


def test_the_axes_of_a_histogram_have_decades_and_round_counts() -> None:
    values = [0.0002] * 1200 + [0.05]
    drawn = _drawn(histogram(values, unit="nats", counted="windows", buckets=30))
    texts = [text.text for text in drawn.iter("text")]
    assert texts == [
        "windows", "0", "500", "1,000", "0.0001", "0.001", "0.01", "0.1 nats",
    ]  # fmt: skip
    labels = {text.text: text.attrib for text in drawn.iter("text")}
    bars_at = {
        int((bar.find("title").text or "").split()[0]): float(bar.attrib["x"])  # type: ignore[union-attr]
        for bar in drawn.iter("rect")
    }
    # The bar of 0.0002 stands right of the first tick, at log10(2) of a decade.
    decade = float(labels["0.01"]["x"]) - float(labels["0.001"]["x"])
    place = bars_at[1200] - float(labels["0.0001"]["x"])
    assert place / decade == pytest.approx(0.3, abs=0.02)


def test_a_histogram_of_many_decades_has_room_for_its_labels() -> None:
    drawn = _drawn(histogram([1e-9, 1e-4, 3.0], unit="nats", counted="documents"))
    places = [
        (float(text.attrib["x"]), len(text.text or ""))
        for text in drawn.iter("text")
        if "middle" in text.attrib["class"]
    ]
    assert len(places) > 1
    for (one, _), (other, _) in itertools.pairwise(places):
        assert other - one > 40


def _points(count: int, seed: int) -> list[Point]:
    # Few values, so that some are equal.
    random_ = random.Random(seed)
    return [Point(f"build-{i}", random_.randrange(6), random_.randrange(6)) for i in range(count)]


def test_the_frontier_is_what_nothing_dominates() -> None:
    """Against the front of points sorted by speed, whose best value so far each must beat."""
    for seed in range(200):
        points = _points(8, seed)
        best = frontier(points)
        expected = set()
        lowest = float("inf")
        for x in sorted({point.x for point in points}, reverse=True):
            least = min(point.value for point in points if point.x == x)
            if least < lowest:
                lowest = least
                expected.add((x, least))
        on_it = {(p.x, p.value) for p, is_best in zip(points, best, strict=True) if is_best}
        assert on_it == expected
        assert all(
            is_best == ((p.x, p.value) in expected) for p, is_best in zip(points, best, strict=True)
        )


def test_a_smaller_size_is_better() -> None:
    small, large = Point("small", 2.0, 0.5), Point("large", 7.0, 0.5)
    assert frontier([small, large], more_x_is_better=False) == [True, False]
    assert frontier([small, large]) == [False, True]


def test_a_label_keeps_clear_of_its_point() -> None:
    points = [Point("left, 1 MiB", 1.0, 0.01), Point("right, 2 MiB", 2.0, 0.0, marked=True)]
    drawn = _drawn(pareto(points, x_label="a", y_label="b"))
    circles = [(float(c.attrib["cx"]), float(c.attrib["r"])) for c in drawn.iter("circle")]
    edges = {text.text: float(text.attrib["x"]) for text in drawn.iter("text")}
    for point, (middle, radius) in zip(points, circles, strict=True):
        assert abs(edges[point.label] - middle) >= radius + 3


def test_a_plot_has_every_point_where_its_numbers_say() -> None:
    points = [
        Point("slow", 100.0, 0.0),
        Point("fast", 300.0, 0.01, 0.005, 0.02, marked=True),
        Point("bad", 200.0, 0.02),
    ]
    drawn = _drawn(pareto(points, x_label="tokens/s", y_label="increase"))
    dots = {
        title.split(":")[0]: dot.attrib
        for title, dot in zip(_titles(drawn), drawn.iter("circle"), strict=True)
    }
    x = {name: float(dot["cx"]) for name, dot in dots.items()}
    y = {name: float(dot["cy"]) for name, dot in dots.items()}
    assert (x["bad"] - x["slow"]) == pytest.approx(x["fast"] - x["bad"], abs=0.2)
    assert (y["slow"] - y["fast"]) == pytest.approx(y["fast"] - y["bad"], abs=0.2)
    assert dots["fast"]["class"] == "marked"
    (line,) = drawn.iter("polyline")
    assert line.attrib["points"] == " ".join(
        f"{x[name]:.1f},{y[name]:.1f}" for name in ("slow", "fast")
    )
    (whisker,) = (line for line in drawn.iter("line") if line.attrib["class"] == "whisker")
    half, whole = y["slow"] - float(whisker.attrib["y1"]), y["slow"] - float(whisker.attrib["y2"])
    assert half / whole == pytest.approx(0.25, abs=0.01)
    assert pareto(points[:1], x_label="a", y_label="b") == ""


def test_names_of_points_do_not_lie_on_each_other_nor_beyond_the_edge() -> None:
    points = [Point(f"tiny-llama-format-{i}", 100.0 + i % 3, 0.01) for i in range(6)]
    drawn = _drawn(pareto(points, x_label="tokens/s", y_label="increase"))
    places = []
    for text in drawn.iter("text"):
        if "tick" in text.attrib["class"]:
            continue
        width = 6.0 * len(text.text or "")
        x = float(text.attrib["x"])
        left = x - width if "end" in text.attrib["class"].split() else x
        assert left >= -1
        assert left + width <= WIDTH + 1
        places.append((left, left + width, float(text.attrib["y"])))
    assert len(places) == 6
    for one, other in itertools.combinations(places, 2):
        apart = one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= 12
        assert apart, (one, other)


def test_labels_are_escaped() -> None:
    bad = '<b>"&'
    for svg in (
        bars([Bar(bad, 1.0, bad)]),
        pareto([Point(bad, 1.0, 1.0), Point(bad, 2.0, 2.0)], x_label=bad, y_label=bad),
        histogram([1.0, 2.0], unit=bad, counted=bad),
    ):
        assert "<b>" not in svg
        assert bad in "".join(text.text or "" for text in _drawn(svg).iter("text"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
        (-0.001, 0.0042, [-0.0, 0.002, 0.004]),
        (1180.0, 2250.0, [1500.0, 2000.0]),
        (0.0, 0.5, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


@pytest.mark.parametrize("values", [[1.0, 3.0], [2.0], [0.0, 0.0], [-1.0]])
def test_an_axis_holds_all_values_with_room(values: list[float]) -> None:
    start, width = span_of(values)
    assert start < min(values) <= max(values) < start + width
