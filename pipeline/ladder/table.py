"""A comparison as blocks of a table: rows are measures, columns are formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ladder.row import level_at
from pipeline.tables import memory_size, number, streams
from pipeline.verdict.decision import title_of
from pipeline.verdict.words import percent, signed_percent

NO_DIFFERENCE = "no difference"
DASH = "-"
Interval = Callable[[str, str, str, str], str]
Rungs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Block:
    """A part of the table with a heading of its own.

    Attributes:
        title: The heading.
        columns: What stands above the columns, without that of the measures.
        rows: The measure, and one cell for each column.
        caption: What has to be known to read it; may be empty.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    caption: str = ""


def short(value: str, low: str, high: str, half: str) -> str:
    """Writes an interval for a narrow column: half its width."""
    del low, high
    return f"{value} ±{half}" if half.strip("0.,") else value


def full(value: str, low: str, high: str, half: str) -> str:
    """Writes an interval with both ends."""
    return f"{value} [{low}, {high}]" if half.strip("0.,") else value


def blocks(comparison: Mapping[str, Any], interval: Interval) -> list[Block]:
    """Makes the blocks of a comparison; measures that no rung has are left out.

    Args:
        comparison: ``rungs``, ``baseline`` and ``cost``; see :func:`pipeline.ladder.climb.climb`.
        interval: :func:`short` or :func:`full`.
    """
    rungs: Rungs = comparison["rungs"]
    columns = headings(rungs)
    parts = [
        ("verdict and size", _size(rungs), ""),
        (_quality_title(rungs), _quality(rungs, interval), ""),
        ("speed", _speed(comparison, interval), ""),
        ("cost", _cost(comparison, interval), ""),
    ]
    return [
        Block(title, columns, kept, caption)
        for title, rows, caption in parts
        if (kept := [(label, cells) for label, cells in rows if set(cells) != {DASH}])
    ]


def headings(rungs: Rungs) -> list[str]:
    """Names the columns: by format, or by recipe where two have the same format."""
    formats = [rung["format"] for rung in rungs]
    return formats if len(set(formats)) == len(formats) else [rung["name"] for rung in rungs]


def wrong(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists the rungs that are not accepted: how they are called, and why in words."""
    rungs: Rungs = comparison["rungs"]
    return [
        (name, _why(rung))
        for name, rung in zip(headings(rungs), rungs, strict=True)
        if rung["verdict"] != "ACCEPT" and rung["headline"]
    ]


def _why(rung: Mapping[str, Any]) -> str:
    """The headline, which begins with the format or else does not say the verdict."""
    headline, title = rung["headline"], f"{title_of(rung['format'])}: "
    if headline.startswith(title):
        return str(headline.removeprefix(title))
    return f"{rung['verdict']}: {headline}"


def claims(comparison: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Lists what is claimed of the formats beside what was measured here.

    Returns:
        Rows of format, measure, claim, what was measured here and the number of the source; and
        the sources, the first of which is number 1.
    """
    rows, sources = [], []
    for rung in comparison["rungs"]:
        for claim in rung["claims"]:
            source = f"{claim['source']}: {claim['model']}"
            if source not in sources:
                sources.append(source)
            rows.append(
                [
                    rung["format"],
                    _claim_name(claim),
                    f"{claim['bound']}{_claim_value(claim['measure'], claim['value'])}",
                    _here(claim),
                    f"[{sources.index(source) + 1}] {claim['kind']}",
                    claim["setting"],
                ]
            )
    return rows, sources


def estimate(
    found: Mapping[str, Any] | None,
    interval: Interval,
    *,
    factor: float = 1.0,
    sign: str = "",
    most_decimals: int = 6,
) -> str:
    """Writes a measured number as exactly as its interval allows; a dash where there is none.

    Args:
        found: ``value``, ``low`` and ``high``.
        interval: :func:`short` or :func:`full`.
        factor: What the number is multiplied by, such as 100 for a percentage.
        sign: ``+`` writes the sign of what is above zero, too.
        most_decimals: Behind the point; an interval that is narrower is not written.
    """
    if found is None or found["value"] is None:
        return DASH
    value = found["value"] * factor
    if found["low"] is None or found["high"] is None:
        return f"{sign if value > 0 else ''}{number(float(value))}"
    low, high = found["low"] * factor, found["high"] * factor
    half = (high - low) / 2
    # Two digits of half the width; without a width, as many as a number has elsewhere.
    least = half / 10 if half > 0 else abs(value) / 1000
    decimals = min(-math.floor(math.log10(least)), most_decimals) if least > 0 else 0

    def show(one: float, mark: str = "") -> str:
        # Below zero, decimals count the zeros before the point.
        text = f"{round(one, decimals):{mark},.{max(decimals, 0)}f}"
        return text.lstrip("+-") if not text.strip("+-0.,") else text

    return interval(show(value, sign), show(low, sign), show(high, sign), show(half))


def _size(rungs: Rungs) -> list[tuple[str, list[str]]]:
    return [
        ("verdict", [rung["verdict"] or DASH for rung in rungs]),
        ("engine of", [rung["engine"] or DASH for rung in rungs]),
        ("bits of a weight", [str(rung["weight_bits"]) for rung in rungs]),
        ("bits of an activation", [str(rung["activation_bits"]) for rung in rungs]),
        ("bits on disk, a weight", _numbers(rungs, "bits_per_parameter", 3)),
        ("checkpoint", [_bytes(rung["checkpoint_bytes"]) for rung in rungs]),
        ("share of 16 bit", [_share(rung["share_of_16bit"]) for rung in rungs]),
        ("engine", [_bytes(rung["engine_bytes"]) for rung in rungs]),
        ("memory of the server", [_bytes(rung["memory_bytes"]) for rung in rungs]),
    ]


def _quality_title(rungs: Rungs) -> str:
    scored = next((rung for rung in rungs if rung["tokens"]), None)
    if scored is None:
        return "quality"
    source = number(scored["source_perplexity"])
    return f"quality on {number(scored['tokens'])} held-out tokens, source's perplexity {source}"


def _quality(rungs: Rungs, interval: Interval) -> list[tuple[str, list[str]]]:
    def row(label: str, key: str) -> tuple[str, list[str]]:
        return label, [estimate(rung[key], interval) for rung in rungs]

    def share(label: str, key: str, sign: str = "") -> tuple[str, list[str]]:
        return label, [_percent(rung[key], interval, sign) for rung in rungs]

    rows = [
        row("perplexity", "perplexity"),
        share("against source, %", "perplexity_increase", "+"),
        row("KL, nats a token", "kl_divergence"),
        row("KL, 99th percentile", "kl_divergence_p99"),
        share("top-1 agreement, %", "top1_agreement"),
        share("engine vs checkpoint, %", "engine_perplexity_increase", "+"),
    ]
    for name in dict.fromkeys(task["name"] for rung in rungs for task in rung["tasks"]):
        tasks: list[Mapping[str, Any]] = [
            next((task for task in rung["tasks"] if task["name"] == name), {}) for rung in rungs
        ]
        changes = [_percent(task.get("accuracy_change"), interval, "+") for task in tasks]
        rows += [
            (f"{name}, %", [_percent(task.get("accuracy"), interval) for task in tasks]),
            ("  change", changes),
        ]
    return rows


def _percent(found: Mapping[str, Any] | None, interval: Interval, sign: str = "") -> str:
    return estimate(found, interval, factor=100.0, sign=sign, most_decimals=3)


def _speed(comparison: Mapping[str, Any], interval: Interval) -> list[tuple[str, list[str]]]:
    rungs: Rungs = comparison["rungs"]
    base = comparison["baseline"]
    rows: list[tuple[str, list[str]]] = []
    for level in sorted({level["concurrency"] for rung in rungs for level in rung["load"]}):
        found = [level_at(rung, level) for rung in rungs]
        rows += [
            (
                f"tokens/s, {streams(level)}",
                [estimate(at and at["tokens_per_second"], interval) for at in found],
            ),
            (
                f"  times {comparison['baseline_format']}" if base else "  ratio",
                [
                    _ratio(rung["name"] == base, at, interval)
                    for rung, at in zip(rungs, found, strict=True)
                ],
            ),
            *(
                (label, [estimate(at and at[key], interval) for at in found])
                for label, key in (
                    ("  prefill, tokens/s", "prefill_tokens_per_second"),
                    ("  decode, tokens/s", "decode_tokens_per_second"),
                )
            ),
            ("  first token, ms", [_times(at, "ttft_ms") for at in found]),
            ("  between tokens, ms", [_times(at, "itl_ms") for at in found]),
        ]
    return rows


def _ratio(is_base: bool, level: Mapping[str, Any] | None, interval: Interval) -> str:
    if level is None or (level["ratio"] is None and not is_base):
        return DASH
    if is_base:
        return "1"
    if not level["difference"]:
        return NO_DIFFERENCE
    return estimate(level["ratio"], interval)


def _times(level: Mapping[str, Any] | None, name: str) -> str:
    times = level[name] if level else None
    return DASH if times is None else number(float(times["p50"]), 3)


def _cost(comparison: Mapping[str, Any], interval: Interval) -> list[tuple[str, list[str]]]:
    cost = comparison["cost"]
    label = f"{cost['currency']} a million tokens" if cost else "a million tokens"
    rungs: Rungs = comparison["rungs"]
    return [(label, [estimate(rung["cost_per_million"], interval) for rung in rungs])]


def _claim_name(claim: Mapping[str, Any]) -> str:
    name = {
        "speed_up": "speed-up",
        "perplexity_increase": "perplexity",
        "accuracy_loss": "accuracy lost",
        "share_of_16bit": "size of 16 bit",
    }[claim["measure"]]
    return f"{name} at {claim['streams']}" if claim["streams"] else name


def _claim_value(measure: str, value: float) -> str:
    if measure == "speed_up":
        return f"{value:.3g}x"
    if measure == "share_of_16bit":
        return f"{value:.0%}".replace("%", " %")
    return signed_percent(value) if measure == "perplexity_increase" else percent(value)


def _here(claim: Mapping[str, Any]) -> str:
    found, measure = claim["here"], claim["measure"]
    if found is None or found["value"] is None:
        return "not measured"
    nothing = {"speed_up": 1.0, "accuracy_loss": 0.0}.get(measure)
    ends = (found["low"], found["high"])
    if nothing is not None and None not in ends and ends[0] <= nothing <= ends[1]:
        return NO_DIFFERENCE
    if measure != "speed_up":
        return _claim_value(measure, found["value"])
    at = "" if claim["streams"] else f" at {claim['here_streams']}"
    return f"{found['value']:.2f}x{at}"


def _numbers(rungs: Rungs, key: str, digits: int) -> list[str]:
    return [DASH if rung[key] is None else number(float(rung[key]), digits) for rung in rungs]


def _bytes(count: int | None) -> str:
    return DASH if count is None else memory_size(count).strip()


def _share(share: float | None) -> str:
    return DASH if share is None else f"{share * 100:.0f} %"
