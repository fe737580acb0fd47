"""The capacity of a build, as one JSON document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.bench.stats import percentile
from pipeline.bench.traffic.schedule import CLOSED
from pipeline.bench.traffic.traces import TraceRow
from pipeline.economics.capacity.fit import Fit, fit
from pipeline.economics.capacity.loads import Load
from pipeline.economics.capacity.server import Limits
from pipeline.economics.capacity.sizing import (
    Objective,
    Sized,
    Traffic,
    Unreachable,
    most_per_second,
    size,
)
from pipeline.economics.cost import cost_of_traffic, cost_per_day, cost_per_million
from pipeline.tables import number

SCHEMA = 1
_MEDIAN = 50.0
_OTHER_LENGTH = 1.25
_POOR = 0.15
"""A fit of which half of the streams are farther than this is said to be poor."""
_SATURATED = 0.7
_CHECKED = ("tokens_per_second", "ttft_p50", "ttft", "itl_p50", "itl")


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        traffic: At its own rate.
        objective: What its requests must keep.
        multiply: How many times as much is asked for besides.
        price_per_hour: Of one server; None shows no prices.
        currency: How prices are written.
        seed: Of what is drawn.
        headroom: The share of the most measured tokens per second that no server is asked for.
    """

    traffic: Traffic
    objective: Objective
    multiply: Sequence[float] = ()
    price_per_hour: float | None = None
    currency: str = "USD"
    seed: int = 0
    headroom: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A server that was measured.

    Attributes:
        name: As it is called.
        loads: What was measured.
        limits: What its engine admits.
        prompt_token: Seconds of a prompt's token where that was measured apart.
    """

    name: str
    loads: Sequence[Load]
    limits: Limits
    prompt_token: float | None = None


def capacity(
    own: Subject,
    asked: Asked,
    *,
    baseline: Subject | None = None,
    source: Mapping[str, Any],
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Computes how many servers a traffic takes, and what they cost.

    Args:
        own: The build.
        asked: The traffic, its objective and the price.
        baseline: What it is compared with, measured in the same run.
        source: Where the measurements come from, as JSON values.
        on_step: Is told what is being done.

    Returns:
        JSON values, which docs/capacity.md describes.

    Raises:
        UsageError: The measurements are not enough.
    """
    fitted = _fit(own, on_step)
    other = _fit(baseline, on_step) if baseline else None
    rows = []
    for factor in dict.fromkeys((1.0, *asked.multiply)):
        on_step(f"simulate {factor:g} times the traffic")
        row = _row(own, fitted, asked, factor)
        if baseline and other:
            row["baseline"] = _row(baseline, other, asked, factor)
        rows.append(row)
    inputs, outputs = asked.traffic.means
    document = {
        "schema": SCHEMA,
        "name": own.name,
        "baseline": baseline.name if baseline else None,
        "source": dict(source),
        "traffic": {
            "arrivals": "trace" if asked.traffic.rows else "poisson",
            "requests_per_second": asked.traffic.rate,
            "input_tokens": round(inputs, 1),
            "output_tokens": round(outputs, 1),
            "tokens_per_second": asked.traffic.tokens_per_second,
        },
        "objective": {
            "time_to_first_token_ms": asked.objective.ttft * 1000,
            "inter_token_ms": asked.objective.itl * 1000,
            "percentile": asked.objective.percent,
        },
        "cost": None
        if asked.price_per_hour is None
        else {"currency": asked.currency, "price_per_hour": asked.price_per_hour},
        "headroom": asked.headroom,
        "limits": asdict(own.limits),
        "fit": fit_values(fitted),
        "measured": [_checked(load, fitted, asked.objective) for load in own.loads],
        "simulated": rows,
    }
    return {**document, "remarks": _remarks(own, fitted, asked, document)}


def _fit(subject: Subject, on_step: Callable[[str], None]) -> Fit:
    on_step(f"fit a server to what was measured of {subject.name}")
    return fit(subject.loads, subject.limits, subject.prompt_token)


def fit_values(fitted: Fit) -> dict[str, Any]:
    """Returns what a server was fitted to be, as JSON values; times in milliseconds."""
    steps, front = fitted.server.steps, fitted.server.front
    return {
        "step_ms": steps.fixed * 1000,
        "sequence_ms": steps.sequence * 1000,
        "prompt_token_ms": steps.prompt_token * 1000,
        "request_ms": steps.request * 1000,
        "front_delay_ms": front.delay * 1000,
        "front_serial_ms": front.serial * 1000,
        "pace_p95": _slowest(fitted),
        "error": fitted.error,
        "held_out": fitted.held_out,
        "streams": fitted.streams,
        "prompt_tokens": list(fitted.prompts),
    }


def _slowest(fitted: Fit) -> float | None:
    """How many times as long everything took in the slowest twentieth of all whiles, or longer."""
    pace = fitted.server.pace
    return percentile([one for made in pace.rounds for one in made], 95) if pace else None


def _checked(load: Load, fitted: Fit, objective: Objective) -> dict[str, Any]:
    """A measured load, the simulation of the same load, and their ratios."""
    simulated, most = load.replay(fitted.server)
    asked = load.requests + load.failed
    good = load.times.good(objective.ttft, objective.itl)
    rows = {}
    for name, times in (("measured", load.times), ("simulated", simulated)):
        rows[name] = {
            "tokens_per_second": times.tokens_per_second,
            "ttft_p50": times.at("ttft", _MEDIAN),
            "ttft": times.at("ttft", objective.percent),
            "itl_p50": times.at("itl", _MEDIAN),
            "itl": times.at("itl", objective.percent),
        }
    measured = rows["measured"]
    ratios = {
        key: rows["simulated"][key] / measured[key]  # type: ignore[operator]
        if rows["simulated"][key] and measured[key]
        else None
        for key in _CHECKED
    }
    closed = load.level.kind == CLOSED
    outputs = [output for _, output in load.lengths()]
    rate = measured["tokens_per_second"] / (sum(outputs) / len(outputs))  # type: ignore[operator]
    return {
        "load": load.level.kind,
        "concurrency": int(load.level.amount) if closed else None,
        "rate": None if closed else load.level.amount,
        "requests": load.requests,
        "failed": load.failed,
        "requests_per_second": rate,
        "tokens_per_second": measured["tokens_per_second"],
        **_milliseconds(measured),
        "good": good / asked if asked else None,
        "goodput_per_second": rate * good / load.requests if load.requests else None,
        "running": most,
        "simulated_over_measured": ratios,
    }


def _milliseconds(row: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        f"{name}_ms": None if (value := row[name]) is None else value * 1000
        for name in ("ttft_p50", "ttft", "itl_p50", "itl")
    }


def _row(subject: Subject, fitted: Fit, asked: Asked, factor: float) -> dict[str, Any]:
    traffic = asked.traffic.times(factor)
    # What nobody saw a server do is not planned with. And streams that wait for their answers reach
    # more than requests do that come at random, whose queue grows without an end there.
    most = max(load.times.tokens_per_second for load in subject.loads)
    least = math.ceil(traffic.tokens_per_second / (most * (1 - asked.headroom)) - 1e-9)
    found = size(fitted.server, traffic, asked.objective, str(asked.seed), least=least)
    values: dict[str, Any] = {
        "name": subject.name,
        "multiply": factor,
        "requests_per_second": traffic.rate,
        "tokens_per_second": traffic.tokens_per_second,
    }
    if isinstance(found, Unreachable):
        return {**values, "replicas": None, "why": found.why}
    share = traffic.tokens_per_second / found.replicas / most
    return {**values, **_sized(found, asked, share), **_prices(found, traffic, asked)}


def _sized(found: Sized, asked: Asked, share: float) -> dict[str, Any]:
    percent = asked.objective.percent
    return {
        "replicas": found.replicas,
        "why": None,
        "utilization": share,
        "busy": found.busy,
        **_milliseconds(
            {
                "ttft_p50": found.ttft.get(_MEDIAN),
                "ttft": found.ttft.get(percent),
                "itl_p50": found.itl.get(_MEDIAN),
                "itl": found.itl.get(percent),
            }
        ),
        "good": found.good,
        "refused": found.refused,
        "running": found.most,
        "requests_simulated": found.simulated,
    }


def _prices(found: Sized, traffic: Traffic, asked: Asked) -> dict[str, Any]:
    price = asked.price_per_hour
    if price is None:
        return {"per_day": None, "per_million_tokens": None}
    return {
        "per_day": cost_per_day(found.replicas, price),
        "per_million_tokens": cost_of_traffic(found.replicas, price, traffic.tokens_per_second),
    }


def _remarks(own: Subject, fitted: Fit, asked: Asked, document: Mapping[str, Any]) -> list[str]:
    said = []
    failed = sum(load.failed for load in own.loads)
    if failed:
        said.append(f"{failed} requests of the load test failed; they are in no time and no rate.")
    if fitted.error > _POOR:
        said.append(
            f"The fit is poor: half of the streams are {fitted.error * 100:.0f} % or farther from "
            "it. Measure longer, or on a quieter machine."
        )
    reached = _share_reached(own, fitted)
    if reached < _SATURATED:
        said.append(
            f"The load test asked {reached * 100:.0f} % of what the server can do by the "
            "simulation, so it may do more than was measured. Measure at a higher load to plan "
            "with it."
        )
    running = max((row.get("running") or 0 for row in document["simulated"]), default=0)
    if running > fitted.streams * _OTHER_LENGTH:
        said.append(
            f"Up to {running} sequences run together in the simulation, and "
            f"{number(fitted.streams, 2)} decoded together in the load test at most, on average: "
            "what such steps take is a straight line drawn on. Measure with more streams."
        )
    said += _other_lengths(own, fitted, asked)
    return said


def _share_reached(subject: Subject, fitted: Fit) -> float:
    """How much of what the simulated server finishes at most the load test asked of it."""

    def share(load: Load) -> float:
        rows = [TraceRow(0.0, *lengths) for lengths in load.lengths()]
        most = most_per_second(fitted.server, Traffic(1.0, None, None, rows))
        outputs = [row.output_tokens for row in rows]
        return load.times.tokens_per_second / (most * sum(outputs) / len(outputs))

    return max(map(share, subject.loads))


def _other_lengths(own: Subject, fitted: Fit, asked: Asked) -> list[str]:
    lengths = [pair for load in own.loads for pair in load.lengths()]
    said = []
    for name, place, wanted in (
        ("prompts", 0, asked.traffic.means[0]),
        ("answers", 1, asked.traffic.means[1]),
    ):
        mean = sum(pair[place] for pair in lengths) / len(lengths)
        if not 1 / _OTHER_LENGTH <= wanted / mean <= _OTHER_LENGTH:
            said.append(
                f"The {name} of the load test had {number(mean, 3)} tokens on average, and those "
                f"of the traffic have {number(wanted, 3)}: measure with the lengths of the traffic."
            )
            if place == 0 and not fitted.prompt_and_request:
                said.append(
                    "All prompts of the load test were as long, so the time of a prompt's token is "
                    "not told from that of a request."
                )
    return said


def beside(
    levels: Mapping[str, Any] | None, price_per_hour: float | None, utilization: float
) -> dict[str, Any] | None:
    """Adds prices to what a build gave beside 16 bit in one interleaved run.

    Args:
        levels: What :func:`~pipeline.economics.interleaved.beside_16_bit` found.
        price_per_hour: Of the machine; None adds none.
        utilization: The share of the time in which it works.
    """
    if levels is None:
        return None
    rows = []
    for level in levels["levels"]:
        prices = {
            f"{name}per_million_tokens": cost_per_million(
                level[f"{name}tokens_per_second"]["value"], price_per_hour, utilization
            )
            if price_per_hour is not None and level[f"{name}tokens_per_second"]["value"]
            else None
            for name in ("", "baseline_")
        }
        rows.append({**level, **prices})
    return {**levels, "utilization": utilization, "levels": rows}
