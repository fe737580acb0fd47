"""The limits of alerts and autoscalers, each computed from what the load test measured.

No limit is a constant that was true for somebody else's model: each has the measured figure and the
formula that it comes from in its sentence, which travels into the rules and the dashboard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.monitoring.figures import Figures, LoadTest, mean_blocks, next_bound
from pipeline.tables import number

LATENCY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Upper bounds of the engine's histograms of times, as it publishes them."""

BUSY = 0.7
"""The share of a batch, and of the KV cache, at which one more replica is wanted.

Knative scales at 70 % of a container's concurrency unless told otherwise
(``container-concurrency-target-percentage``), for the same reason: what comes while a replica
starts needs the rest.
"""

LEAST_DOWN_S = 300
"""Kubernetes' own stabilization window of scaling down, in seconds; its longest is an hour."""
MOST_DOWN_S = 3600

LEAST_STALL_S = 60
QUIET_S = 600
"""Seconds without one request after which a replica's silence is looked at."""
EXPECTED_IN_SILENCE = 7
"""Requests that would have come in that time: of a Poisson process none comes with probability
exp(-7), which is below 0.1 %."""

LEAST_ERRORS, MOST_ERRORS = 0.01, 0.05


@dataclass(frozen=True)
class Threshold:
    """One limit.

    Attributes:
        value: In ``unit``.
        unit: In words, such as ``requests``.
        why: The figure and the formula, a sentence without its full stop.
        quantile: What is held to an objective, ``p50`` or ``p95``; empty of other limits.
        share: Whether the value is one of ``unit``, and is told in per cent.
    """

    value: float
    unit: str
    why: str
    quantile: str = ""
    share: bool = False

    @property
    def text(self) -> str:
        """The value with its unit."""
        value = f"{100 * self.value:.3g} %" if self.share else number(self.value)
        return f"{value} {self.unit}"

    @property
    def promql(self) -> str:
        """The value as PromQL writes it."""
        return f"{self.value:.6g}" if self.value < 1e6 else f"{self.value:.0f}"


@dataclass(frozen=True)
class Thresholds:
    """All limits of one build.

    Attributes:
        waiting: Requests that may wait at one replica.
        ttft: Milliseconds to the first token; None of a model that answers once.
        itl: Milliseconds per token after it; None where it was not measured.
        free_blocks: KV blocks below which the cache is nearly full.
        full_blocks: KV blocks that a full batch of requests of the measured length holds.
        errors: The share of requests that may fail.
        stall_s: Seconds in which an engine that has work must make a step.
        quiet: Requests per second and replica at which ten minutes of silence are no chance.
        resumes: Streams resumed in ten minutes.
        busy: The share of a batch, and of the KV cache, at which one more replica is wanted.
        down_s: Seconds that a lower need must last before a replica is taken away.
    """

    waiting: Threshold
    ttft: Threshold | None
    itl: Threshold | None
    free_blocks: Threshold
    full_blocks: Threshold
    errors: Threshold
    stall_s: Threshold
    quiet: Threshold
    resumes: Threshold
    busy: Threshold
    down_s: Threshold


def thresholds_of(
    figures: Figures, ttft_ms: float | None = None, itl_ms: float | None = None
) -> Thresholds:
    """Computes the limits.

    Args:
        figures: What was measured.
        ttft_ms: The objective of the 95th percentile of the time to first token, in milliseconds;
            None takes the recipe's, or computes one.
        itl_ms: The same of the time per token.
    """
    load, blocks = figures.load, mean_blocks(figures)
    ttft = _objective(
        "the time to first token", figures, load.ttft_ms, ttft_ms, figures.median_ttft_ms
    )
    itl = _objective("the time per token", figures, load.itl_ms, itl_ms, figures.median_itl_ms)
    spare = math.ceil(figures.max_batch_size / 20)
    length = (
        f"{number(load.input_tokens, 3)} tokens in and {number(load.output_tokens, 3)} out, the "
        f"means of {_measured(load)}, are {blocks} KV blocks of {figures.tokens_per_block}"
    )
    return Thresholds(
        waiting=_waiting(figures, ttft),
        ttft=ttft,
        itl=itl,
        free_blocks=Threshold(
            spare * blocks,
            "blocks",
            f"{length}; a twentieth of max_batch_size {figures.max_batch_size} is "
            f"{spare} such request{'s' * (spare > 1)}",
        ),
        full_blocks=Threshold(
            figures.max_batch_size * blocks,
            "blocks",
            f"{length}, times max_batch_size {figures.max_batch_size}",
        ),
        errors=_errors(load),
        stall_s=_stall(ttft),
        quiet=Threshold(
            EXPECTED_IN_SILENCE / QUIET_S,
            "requests/s a replica",
            f"{EXPECTED_IN_SILENCE} requests expected in {QUIET_S} s: of a Poisson process none of "
            "them comes with a probability below 0.1 %; not from the load test",
        ),
        resumes=Threshold(
            figures.max_batch_size,
            "streams in ten minutes",
            f"max_batch_size: one server that ends breaks at most {figures.max_batch_size} streams "
            "that have begun, so more are a second one, or the same again",
        ),
        busy=Threshold(
            BUSY,
            "of a batch, and of the KV cache",
            f"of max_batch_size {figures.max_batch_size} and of all blocks; the rest is for what "
            "comes while a replica starts, as Knative's default has it; not from the load test",
            share=True,
        ),
        down_s=_down(figures, itl),
    )


def _measured(load: LoadTest) -> str:
    return f"{load.level} in {load.source}"


def _objective(
    name: str,
    figures: Figures,
    measured: Mapping[str, float] | None,
    asked_ms: float | None,
    median_ms: float | None,
) -> Threshold | None:
    if measured is None:
        return None
    load = figures.load
    found = f"measured at {_measured(load)}: p50 {number(measured['p50'], 3)}, p95 "
    found += f"{number(measured['p95'], 3)}, p99 {number(measured['p99'], 3)} ms"
    if asked_ms is not None:
        return Threshold(asked_ms, "ms", f"the objective given for {name}; {found}", "p95")
    if median_ms is not None:
        why = f"the recipe's objective for the median of {name} (constraints); {found}"
        return Threshold(median_ms, "ms", why, "p50")
    factor = max(1.0, figures.max_batch_size / load.concurrency)
    grown = measured["p99"] * factor
    why = (
        f"{found}; p99 times {number(factor, 3)}, which is max_batch_size "
        f"{figures.max_batch_size} over the streams measured, as a full batch shares the same "
        f"machine, is {number(grown, 3)} ms; up to the next bound of the histogram"
    )
    return Threshold(next_bound(grown, LATENCY_BOUNDS_MS), "ms", why, "p95")


def _waiting(figures: Figures, ttft: Threshold | None) -> Threshold:
    load = figures.load
    rate = load.requests_per_second
    at = f"{number(rate, 3)} requests/s, measured at {_measured(load)}"
    if ttft is None or load.ttft_ms is None:
        amount, why = rate, f"{at}: what one replica answers in a second"
    else:
        left_ms = ttft.value - load.ttft_ms[ttft.quantile]
        amount = rate * left_ms / 1000
        why = (
            f"{at}, times {number(max(left_ms, 0.0), 3)} ms: what is left of the objective "
            f"{number(ttft.value)} ms after the {ttft.quantile} measured there, so a request "
            "behind them still keeps it"
        )
    most = figures.max_queue_size // 2
    if most and amount > most:
        return Threshold(
            most, "requests", f"half of max_queue_size {figures.max_queue_size}; more than {why}"
        )
    return Threshold(max(1, math.floor(amount)), "requests", f"{why}; at least 1")


def _errors(load: LoadTest) -> Threshold:
    asked = load.requests + load.failed
    likely = load.failed / asked + 3 / asked
    why = (
        f"{load.failed} of {asked} requests failed at {_measured(load)}; what is seen in none of n "
        "is below 3/n with 95 % confidence (the rule of three), so the limit is that share plus "
        f"3/{asked}, held between {100 * LEAST_ERRORS:g} and {100 * MOST_ERRORS:g} %"
    )
    return Threshold(
        min(max(likely, LEAST_ERRORS), MOST_ERRORS), "of the requests", why, share=True
    )


def _stall(ttft: Threshold | None) -> Threshold:
    if ttft is None:
        return Threshold(LEAST_STALL_S, "s", "four scrapes; no time to first token was measured")
    seconds = max(LEAST_STALL_S, math.ceil(10 * ttft.value / 1000))
    why = f"ten times the limit of the time to first token, {number(ttft.value)} ms, at least "
    return Threshold(seconds, "s", f"{why}{LEAST_STALL_S} s, which are four scrapes")


def _down(figures: Figures, itl: Threshold | None) -> Threshold:
    if itl is None:
        return Threshold(LEAST_DOWN_S, "s", "Kubernetes' own; no time per token was measured")
    longest = math.ceil(figures.max_seq_len * itl.value / 1000)
    why = (
        f"the longest stream: max_seq_len {figures.max_seq_len} tokens at the limit of "
        f"{number(itl.value)} ms each are {longest} s; held between {LEAST_DOWN_S} and "
        f"{MOST_DOWN_S} s"
    )
    return Threshold(min(max(longest, LEAST_DOWN_S), MOST_DOWN_S), "s", why)
