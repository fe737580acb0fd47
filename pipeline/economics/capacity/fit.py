"""Fits a simulated server to measured loads, and says how far it is from them.

The time in which a stream got its tokens after the first is the sum of its steps. The seconds of a
step are linear in what happens in it (:class:`~pipeline.economics.capacity.server.Steps`), and so
that sum is linear in the stream's own tokens, in the tokens that all streams got meanwhile, and in
the prompts that were read meanwhile; where one step ends and the next begins need not be known.
What a request passes before the engine has it is fitted to the waits for the first token, as the
simulation of the same load gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.economics.capacity.least_squares import non_negative
from pipeline.economics.capacity.loads import Decoding, Load
from pipeline.economics.capacity.server import Front, Limits, Pace, Server, Steps
from pipeline.errors import UsageError

_PERCENTS = (50, 95)
_GRID = 8
_REFINED = 8
WHILE_S = 0.25
"""Seconds in which the pace of a machine is taken not to change."""
_KNOWN = 0.3
_SAME_LENGTH = 0.1
"""Prompts whose lengths scatter less than this do not tell a token's time from a request's."""


@dataclass(frozen=True)
class Fit:
    """A server that was fitted.

    Attributes:
        server: It.
        error: The median of how far the time in which a stream got its tokens is from what the
            steps say, as a share; of the rounds that were not fitted to, where there are two or
            more.
        held_out: Whether they were not.
        streams: The most streams that decoded together on average, in any load.
        prompts: The shortest and the longest prompt.
        prompt_and_request: Whether the time of a prompt's tokens is told from that of a request.
    """

    server: Server
    error: float
    held_out: bool
    streams: float
    prompts: tuple[int, int]
    prompt_and_request: bool


def fit(loads: Sequence[Load], limits: Limits, prompt_token: float | None = None) -> Fit:
    """Fits a server to loads.

    Args:
        loads: At least one, with requests of more than one token.
        limits: What the engine admits.
        prompt_token: Seconds of a prompt's token where that was measured apart; it is fitted where
            None.

    Raises:
        UsageError: There is nothing to fit to.
    """
    if not any(made for load in loads for made in load.happened):
        raise UsageError(
            "the load test tells nothing of the time between tokens",
            why="No request that counts has tokens after its first response",
            fix="Measure with more --output-tokens",
        )
    longest = max(prompt + output for load in loads for prompt, output in load.lengths())
    room = limits.kv_blocks * limits.block_tokens
    if longest > room:
        raise UsageError(
            f"a KV cache of {room:,} tokens has no room for what was measured",
            why=f"A request of the load test has {longest:,} tokens, prompt and answer together",
            fix="Give --kv-tokens with what the measured server had",
        )
    lengths = [prompt for load in loads for prompt, _ in load.lengths()]
    mean = sum(lengths) / len(lengths)
    apart = max(lengths) - min(lengths) > _SAME_LENGTH * mean
    steps, error, held_out = _fitted_steps(loads, apart, prompt_token)
    played = [made for load in loads for made in paces(load, steps) if made]
    rough = Server(steps, Front(), limits, Pace(WHILE_S, played) if played else None)
    return Fit(
        server=replace(rough, front=_front(rough, loads)),
        error=error,
        held_out=held_out,
        streams=max(_together(load) for load in loads),
        prompts=(min(lengths), max(lengths)),
        prompt_and_request=apart or prompt_token is not None,
    )


def _together(load: Load) -> float:
    happened = [one for made in load.happened for one in made]
    steps = sum(one.steps for one in happened)
    return sum(one.tokens for one in happened) / steps if steps else 0.0


def _fitted_steps(
    loads: Sequence[Load], apart: bool, prompt_token: float | None
) -> tuple[Steps, float, bool]:
    def of_half(load: Load, half: int) -> list[Decoding]:
        return [one for made in load.happened[half::2] for one in made]

    def solve(*halves: int) -> Steps:
        levels = [[one for half in halves for one in of_half(load, half)] for load in loads]
        return _steps(levels, apart, prompt_token)

    steps = solve(0, 1)
    held_out = all(of_half(load, 0) and of_half(load, 1) for load in loads)
    judges = [(solve(1), 0), (solve(0), 1)] if held_out else [(steps, 0), (steps, 1)]
    errors = [
        abs(_said(judge, one) / one.seconds - 1)
        for judge, half in judges
        for load in loads
        for one in of_half(load, half)
    ]
    return steps, sorted(errors)[len(errors) // 2], held_out


def paces(load: Load, steps: Steps) -> list[list[float]]:
    """Says how much longer or shorter than usual streams took for their tokens, while by while.

    Args:
        load: What was measured.
        steps: What was fitted.

    Returns:
        A factor for each :data:`WHILE_S` of each round in which streams decoded. What all of the
        load took longer or shorter is left out: that is the fit's error and no change of pace.
    """
    rounds = []
    took_all = usual_all = 0.0
    for made in load.happened:
        took: dict[int, float] = {}
        usual: dict[int, float] = {}
        for one in made:
            first, last = one.begin, one.begin + one.seconds
            for place in range(int(first / WHILE_S), int(last / WHILE_S) + 1):
                within = min(last, (place + 1) * WHILE_S) - max(first, place * WHILE_S)
                took[place] = took.get(place, 0.0) + within
                part = _said(steps, one) * within / one.seconds
                usual[place] = usual.get(place, 0.0) + part
        took_all += sum(took.values())
        usual_all += sum(usual.values())
        # What is known of a moment alone is not known of a while.
        rounds.append(
            [took[p] / usual[p] for p in sorted(took) if usual[p] and took[p] > _KNOWN * WHILE_S]
        )
    whole = took_all / usual_all if usual_all else 1.0
    return [[factor / whole for factor in factors] for factors in rounds]


def _steps(levels: Sequence[Sequence[Decoding]], apart: bool, prompt_token: float | None) -> Steps:
    rows, values, weights = [], [], []
    for happened in levels:
        if not happened:
            continue
        mean = sum(one.seconds for one in happened) / len(happened)
        for one in happened:
            known = (prompt_token or 0.0) * one.prompt_tokens
            prompts = 0.0 if prompt_token is not None else one.prompt_tokens
            # Where all prompts are as long, their tokens stand for the requests too.
            rows.append((one.steps, one.tokens, prompts, one.requests if apart else 0.0))
            values.append(max(0.0, one.seconds - known))
            # Each load counts as much, and its mean is kept.
            weights.append(1 / (mean * mean * len(happened)))
    fixed, sequence, token, request = non_negative(rows, values, weights)
    return Steps(fixed, sequence, token if prompt_token is None else prompt_token, request)


def _said(steps: Steps, one: Decoding) -> float:
    """Seconds that the steps take by the fit."""
    return (
        steps.fixed * one.steps
        + steps.sequence * one.tokens
        + steps.prompt_token * one.prompt_tokens
        + steps.request * one.requests
    )


def _front(server: Server, loads: Sequence[Load]) -> Front:
    """Finds the front with which simulated first tokens come when the measured ones did."""
    least = min(load.times.at("ttft", 50) or 0.0 for load in loads)

    def with_serial(serial: float) -> tuple[float, Front]:
        front = Front(0.0, serial)
        differences = []
        for load in loads:
            simulated, _ = load.replay(replace(server, front=front))
            differences.append(
                (load.times.at("ttft", 50) or 0.0) - (simulated.at("ttft", 50) or 0.0)
            )
        # A delay moves every first token by itself, where nobody waits for anybody.
        front = Front(max(0.0, min(differences)), serial)
        return _distance(replace(server, front=front), loads), front

    tried = [with_serial(least * 1.5 * place / _GRID) for place in range(_GRID + 1)]
    best = min(range(len(tried)), key=lambda place: tried[place][0])
    low = tried[max(0, best - 1)][1].serial
    high = tried[min(_GRID, best + 1)][1].serial
    refined = _golden(with_serial, low, high)
    return min([*tried, *refined], key=lambda one: one[0])[1]


def _distance(server: Server, loads: Sequence[Load]) -> float:
    """How far first tokens and throughput of the simulated loads are from the measured ones."""
    total = 0.0
    for load in loads:
        simulated, _ = load.replay(server)
        pairs = [(simulated.at("ttft", p), load.times.at("ttft", p)) for p in _PERCENTS]
        pairs.append((simulated.tokens_per_second, load.times.tokens_per_second))
        total += sum(math.log(a / b) ** 2 for a, b in pairs if a and b)
    return total


def _golden(
    ask: Callable[[float], tuple[float, Front]], low: float, high: float
) -> list[tuple[float, Front]]:
    """Narrows the place of a minimum by the golden section; returns all that was tried."""
    share = (math.sqrt(5) - 1) / 2
    places = [high - share * (high - low), low + share * (high - low)]
    tried = [ask(place) for place in places]
    found = list(tried)
    for _ in range(_REFINED - 2):
        if tried[0][0] <= tried[1][0]:
            high, places[1], tried[1] = places[1], places[0], tried[0]
            places[0] = high - share * (high - low)
            tried[0] = ask(places[0])
            found.append(tried[0])
        else:
            low, places[0], tried[0] = places[0], places[1], tried[1]
            places[1] = low + share * (high - low)
            tried[1] = ask(places[1])
            found.append(tried[1])
    return found
