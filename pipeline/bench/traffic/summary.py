"""Numbers of a level: all its rounds together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.bench.intervals import differs, over_rounds, paired_ratio, significant
from pipeline.bench.stats import Timeline, percentile, summary_ms
from pipeline.bench.traffic.objectives import Objectives
from pipeline.bench.traffic.remarks import remarks
from pipeline.bench.traffic.rounds import Answer, Round
from pipeline.bench.traffic.schedule import CLOSED, OPEN, Level
from pipeline.verdict.estimate import Estimate

PERCENTS = (50, 90, 95, 99)

TIMES: Mapping[str, Callable[[Timeline], float | None]] = {
    "ttft_ms": lambda timeline: timeline.ttft_s if timeline.streamed else None,
    "itl_ms": lambda timeline: timeline.token_s,
    "gap_ms": lambda timeline: timeline.gap_s,
    "latency_ms": lambda timeline: timeline.latency_s,
}
"""The times of a request, in seconds, by the name that they have in milliseconds."""


def summary(level: Level, rounds: Sequence[Round], objectives: Objectives | None) -> dict[str, Any]:
    """Puts the rounds of one level together.

    Args:
        level: The load.
        rounds: At least one.
        objectives: What makes a request a good one; None counts none.

    Returns:
        JSON values; docs/bench.md says what each is.
    """
    counted = [answer for one in rounds for answer in one.counted]
    timelines = [timeline for one in rounds for timeline in one.timelines]
    failures = [answer.error for answer in counted if answer.error is not None]
    rates = [one.tokens_per_second for one in rounds]
    by_round = {name: [median_ms(one.timelines, name) for one in rounds] for name in TIMES}
    row = {
        "load": level.kind,
        "concurrency": int(level.amount) if level.kind == CLOSED else None,
        "rate": None if level.kind == CLOSED else significant(level.amount),
        "requests": len(timelines),
        "failed": len(failures),
        "failures": _kinds(failures),
        "left_out": sum(len(one.answers) for one in rounds) - len(counted),
        "input_tokens": sum(timeline.input_tokens for timeline in timelines),
        "output_tokens": sum(timeline.output_tokens for timeline in timelines),
        "seconds": round(sum(one.seconds for one in rounds), 4),
        "tokens_per_second": estimate(rates),
        "coefficient_of_variation": _variation(rates),
        "requests_per_second": significant(_mean([one.requests_per_second for one in rounds])),
        **{name: summary_ms(_times(timelines, name), PERCENTS) for name in TIMES},
        "p50_over_rounds": {name: estimate(by_round[name]) for name in TIMES},
        "by_round": [significant(rate) for rate in rates],
        "goodput": _goodput(rounds, objectives),
        "schedule": None if level.kind == CLOSED else _schedule(level, rounds, counted),
        "client_busy": round(max(one.busy for one in rounds), 3),
    }
    return {**row, "remarks": remarks(row)}


def ratios(own: Sequence[Round], base: Sequence[Round], objectives: Objectives | None) -> Any:
    """Compares two servers, round by round.

    Args:
        own: The rounds of one.
        base: Those of the other, of the same level.
        objectives: As of :func:`summary`.

    Returns:
        JSON values: ``ratio`` of tokens per second, ``difference``, and ``ratios`` by measure:
        estimates, None where a round has nothing to compare.
    """
    pairs: dict[str, list[list[float | None]]] = {
        "tokens_per_second": [[one.tokens_per_second for one in of] for of in (own, base)],
        **{
            name: [[median_ms(one.timelines, name) for one in of] for of in (own, base)]
            for name in TIMES
        },
    }
    if objectives is not None:
        pairs["goodput"] = [
            [_good(one, objectives) / one.seconds for one in of] for of in (own, base)
        ]
    found = {name: ratio(*both) for name, both in pairs.items()}
    speed = found["tokens_per_second"]
    return {
        "ratio": speed.as_dict() if speed else None,
        "difference": differs(speed) if speed else False,
        "ratios": {name: one.as_dict() if one else None for name, one in found.items()},
    }


def ratio(own: Sequence[float | None], base: Sequence[float | None]) -> Estimate | None:
    """Estimates a ratio that is paired by round; None where a round has nothing above 0."""
    known = [[value for value in values if value] for values in (own, base)]
    if not known[0] or any(len(values) < len(own) for values in known):
        return None
    return paired_ratio(*known)


def _times(timelines: Sequence[Timeline], name: str) -> list[float]:
    return [time for time in map(TIMES[name], timelines) if time is not None]


def median_ms(timelines: Sequence[Timeline], name: str) -> float | None:
    """Computes the median of one of :data:`TIMES` in milliseconds; None where there is none."""
    times = _times(timelines, name)
    return percentile(times, 50) * 1000 if times else None


def estimate(values: Sequence[float | None]) -> dict[str, float | None]:
    """Estimates a number over rounds; its value is None where a round has nothing above 0."""
    known = [value for value in values if value]
    return (over_rounds(known) if len(known) == len(values) else Estimate(None)).as_dict()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample over its mean."""
    mean = _mean(values)
    if len(values) < 2 or not mean:
        return None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return round(math.sqrt(variance) / mean, 4)


def _kinds(failures: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Failures by kind: how many, and what the first one said."""
    counts = Counter(kind for kind, _ in failures)
    return {
        kind: {"count": count, "first": next(text for of, text in failures if of == kind)}
        for kind, count in counts.most_common()
    }


def _good(one: Round, objectives: Objectives) -> int:
    return sum(objectives.met(timeline) for timeline in one.timelines)


def _goodput(rounds: Sequence[Round], objectives: Objectives | None) -> dict[str, Any] | None:
    if objectives is None:
        return None
    good = [_good(one, objectives) for one in rounds]
    asked = sum(len(one.counted) for one in rounds)
    return {
        "objectives_ms": dict(objectives.limits_ms),
        "good": sum(good),
        "share": round(sum(good) / asked, 4) if asked else None,
        "requests_per_second": significant(sum(good) / sum(one.seconds for one in rounds)),
        "by_round": [significant(n / one.seconds) for n, one in zip(good, rounds, strict=True)],
    }


def _schedule(level: Level, rounds: Sequence[Round], counted: Sequence[Answer]) -> dict[str, Any]:
    seconds = sum(one.seconds for one in rounds)
    sent = sum(one.begin <= answer.sent < one.end for one in rounds for answer in one.answers)
    return {
        "arrivals": "poisson" if level.kind == OPEN else "trace",
        "planned": len(counted),
        "planned_per_second": significant(len(counted) / seconds),
        "sent_per_second": significant(sent / seconds),
        "late_ms": summary_ms([answer.late_s for answer in counted], PERCENTS),
    }
