"""Measures several running servers in turns, so that what the machine does else hits all alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from pipeline.bench.intervals import differs, paired_ratio
from pipeline.bench.load import INPUT_TOKENS, alone, check_numbers, measurement, samples
from pipeline.bench.prompts import PROMPTS, Prompts
from pipeline.bench.visit import Visit, Visitor
from pipeline.client_errors import client_errors
from pipeline.engine_client.connect import connect_async
from pipeline.errors import PipelineError, ServerError, UsageError
from pipeline.triton.contract import BLS
from pipeline.verdict.estimate import Estimate

SECONDS = 30.0
WANTED_ROUNDS = 10
"""Rounds that the time is cut into; more of them would make intervals little narrower."""
LEAST_ROUNDS = 5
"""Rounds of a run whose requests take longer than its share of the time."""
MOST_ROUNDS = 100

Level = TypeVar("Level")
Visits = dict[tuple[str, int], list[Visit]]
"""One visit per round, by name of the server and level."""


def measure_interleaved(
    servers: Mapping[str, str],
    *,
    baseline: str,
    concurrency: Sequence[int] = (1, 8, 32),
    seconds: float = SECONDS,
    output_tokens: int = 32,
    input_tokens: int = INPUT_TOKENS,
    prompts: Sequence[str] = PROMPTS,
    model: str = BLS,
    seed: int = 0,
    timeout: float = 600.0,
    on_round: Callable[[int, float], None] = lambda _number, _share: None,
) -> dict[str, Any]:
    """Measures servers round by round: every round visits every server at every level once.

    The levels, and the servers within a level, come in an order shuffled with ``seed`` and in the
    reverse of it in the next round, so that none of them always runs first. Only the server that is
    visited gets requests.

    Args:
        servers: ``host:port`` of each running server by name. One alone is measured as well.
        baseline: The name of the server that the others are compared with.
        concurrency: Streams kept open together; one level each.
        seconds: Measured time of each server, all levels and rounds together, at least. A run over
            three servers therefore measures for about three times as long.
        output_tokens: Tokens generated per request, whatever the end token.
        input_tokens: Tokens of the prompts that prefill is measured with, about; shorter where the
            engine takes no such prompt.
        prompts: Beginnings of the other requests' prompts, used in turn.
        model: The Triton model that takes the requests.
        seed: Of the order.
        timeout: Seconds for one request.
        on_round: Called after each round with its number, from 1, and the share of ``seconds`` that
            the server measured least has.

    Returns:
        JSON values: ``{"model", "baseline", "seconds", "output_tokens", "rounds", "seed",
        "servers": {name: {...}}}``. Per server: ``seconds`` (measured), ``samples``,
        ``prefill_tokens_per_second`` and ``decode_tokens_per_second`` (estimates at concurrency 1,
        None where that is no level), and ``measurements``: for each level the fields of
        :class:`~pipeline.bench.load.Measurement` and three more. ``ratio`` is the estimate of its
        tokens per second over the baseline's, paired by round, ``difference`` says whether that
        interval excludes 1, and ``prefill_ratio`` is the same of prefill. For the baseline itself
        they are None, False and None.

    Raises:
        UsageError: A number is not above zero, there is no server or prompt, or ``baseline`` names
            none of the servers.
        ServerError: A request failed; the message names the server.
    """
    names, levels = list(servers), list(dict.fromkeys(concurrency))
    if not seconds > 0:
        raise UsageError(f"seconds must be above 0, not {seconds:g}")
    check_numbers(
        concurrency=min(levels, default=0),
        output_tokens=output_tokens,
        input_tokens=input_tokens,
        **{"the number of servers": len(names), "the number of prompts": len(prompts)},
    )
    if baseline not in servers:
        raise UsageError(
            f"the baseline {baseline} is none of the servers", fix=f"Name one of {', '.join(names)}"
        )

    async def load() -> Visits:
        visitors: dict[str, Visitor] = {}
        async with AsyncExitStack() as stack:
            for name, url in servers.items():
                with _named(name):
                    client = connect_async(url, model=model, timeout=timeout)
                    await stack.enter_async_context(client)
                    visitors[name] = visitor = Visitor(client, Prompts(prompts), output_tokens)
                    for level in levels:
                        await visitor.prepare(level)
                    await visitor.fit_long_prompts(input_tokens)
            # All get the same work.
            words = [visitor.long_words for visitor in visitors.values()]
            shortest = min((count for count in words if count is not None), default=None)
            for visitor in visitors.values():
                visitor.long_words = None if None in words else shortest

            async def visit(name: str, level: int, requests: int) -> Visit:
                with _named(name):
                    return await visitors[name].visit(level, requests, phases=True)

            return await take_turns(names, levels, visit, seconds, seed, on_round=on_round)

    visits = asyncio.run(load())
    return {
        "model": model,
        "baseline": baseline,
        "seconds": seconds,
        "output_tokens": output_tokens,
        "rounds": len(next(iter(visits.values()))),
        "seed": seed,
        "servers": {name: _of_server(name, baseline, levels, visits) for name in names},
    }


async def take_turns(
    names: Sequence[str],
    levels: Sequence[int],
    visit: Callable[[str, int, int], Awaitable[Visit]],
    seconds: float,
    seed: int,
    *,
    on_round: Callable[[int, float], None] = lambda _number, _share: None,
) -> Visits:
    """Visits every server at every level once per round, until each was measured long enough.

    The first visits only show how long they take, and how many requests therefore fill a level's
    share of the time; so a slow server is not measured longer than a fast one.

    Args:
        names: The servers.
        levels: Streams kept open together.
        visit: Measures a server, by its name, at a level with so many requests.
        seconds: Measured time of each server, at least.
        seed: Of the order.
        on_round: See :func:`measure_interleaved`.

    Returns:
        As many visits of each server at each level as there were rounds.
    """
    share = seconds / WANTED_ROUNDS / len(levels)
    requests = {
        (name, level): level * _waves(await visit(name, level, level), share)
        for level in levels
        for name in names
    }
    visits: Visits = {place: [] for place in requests}
    measured = dict.fromkeys(names, 0.0)
    for finished, there in zip(
        range(1, MOST_ROUNDS + 1), orders(names, levels, seed), strict=False
    ):
        for name, level in there:
            made = await visit(name, level, requests[name, level])
            visits[name, level].append(made)
            measured[name] += made.seconds
        least = min(measured.values())
        on_round(finished, min(least / seconds, 1.0))
        if finished >= LEAST_ROUNDS and least >= seconds:
            break
    return visits


def orders(
    names: Sequence[str], levels: Sequence[Level], seed: int
) -> Iterator[list[tuple[str, Level]]]:
    """Yields in which order each round visits the servers and levels, without an end.

    Every other round goes back the way that the one before it came: who came first comes last,
    which evens out a machine that grows slower all the time.

    Args:
        names: The servers.
        levels: What each is measured at.
        seed: Of the order.
    """
    order = random.Random(seed)  # noqa: S311  an order, no secret
    while True:
        there = _shuffled(names, levels, order)
        yield there
        yield there[::-1]


def _shuffled(
    names: Sequence[str], levels: Sequence[Level], order: random.Random
) -> list[tuple[str, Level]]:
    """All places; the servers of a level follow each other, so that a ratio compares what was
    measured together."""
    return [
        (name, level)
        for level in order.sample(levels, len(levels))
        for name in order.sample(names, len(names))
    ]


def _waves(trial: Visit, share: float) -> int:
    """How often the load of one request per stream fits into what the rest of a visit leaves."""
    left = share - (trial.seconds - trial.load_seconds)
    return max(1, round(left / trial.load_seconds))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Makes any failure one of the server with this name."""
    try:
        with client_errors():
            yield
    except PipelineError as error:
        failed = ServerError(
            f"the server of {name} could not be measured: {error.what}",
            where=error.where,
            why=error.why,
            fix=error.fix,
        )
        failed.name = error.name
        raise failed from error


def _of_server(name: str, baseline: str, levels: Sequence[int], visits: Visits) -> dict[str, Any]:
    made = {level: measurement(level, visits[name, level]) for level in levels}
    rows = []
    for level, one in made.items():
        ratio = prefill = None
        if name != baseline:
            own, base = visits[name, level], visits[baseline, level]
            ratio = paired_ratio(*([v.tokens_per_second for v in of] for of in (own, base)))
            prefill = _prefill_ratio(own, base)
        rows.append(
            {
                **asdict(one),
                "ratio": ratio.as_dict() if ratio else None,
                "difference": differs(ratio) if ratio else False,
                "prefill_ratio": prefill.as_dict() if prefill else None,
            }
        )
    return {
        "seconds": round(sum(v.seconds for level in levels for v in visits[name, level]), 3),
        "measurements": rows,
        "samples": [samples(level, visits[name, level]) for level in levels],
        **alone(list(made.values())),
    }


def _prefill_ratio(own: Sequence[Visit], base: Sequence[Visit]) -> Estimate | None:
    rates = [[v.prefill_tokens_per_second or 0.0 for v in of] for of in (own, base)]
    return paired_ratio(*rates) if all(map(all, rates)) else None
