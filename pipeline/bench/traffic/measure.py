"""Measures servers under load from client processes, in rounds and in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from pipeline.bench.interleaved import orders
from pipeline.bench.prompts import PROMPTS, Prompts
from pipeline.bench.traffic.fleet import Fleet, Server
from pipeline.bench.traffic.objectives import Objectives
from pipeline.bench.traffic.peer import Peer, peer_row
from pipeline.bench.traffic.rounds import Round
from pipeline.bench.traffic.samples import Rounds, sample_rows
from pipeline.bench.traffic.schedule import TRACE, Level, Request, Sizes, plan
from pipeline.bench.traffic.summary import ratios, summary
from pipeline.bench.traffic.words import Words, try_words
from pipeline.client_errors import client_errors
from pipeline.engine_client.connect import connect_async
from pipeline.errors import ServerError, UsageError
from pipeline.triton.contract import BLS, answering_model

SECONDS = 30.0
WARMUP_S = 1.0
ROUNDS = 5
_END_OF_TRACE = 1e-6


def measure_load(
    servers: Mapping[str, Server],
    levels: Sequence[Level],
    sizes: Sizes,
    *,
    baseline: str | None = None,
    objectives: Objectives | None = None,
    model: str = BLS,
    seconds: float = SECONDS,
    warmup: float = WARMUP_S,
    rounds: int = ROUNDS,
    clients: int = 1,
    seed: int = 0,
    timeout: float = 600.0,
    peer: Peer | None = None,
    on_round: Callable[[int], None] = lambda _number: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measures servers at several levels of load, round by round.

    Every round visits each server at each level once, as
    :func:`~pipeline.bench.interleaved.measure_interleaved` does. The first ``warmup`` seconds of a
    visit are left out, and so is what begins behind its end. A trace is sent whole and nothing of
    it is left out.

    Args:
        servers: Where load is sent, by name.
        levels: Each kind and amount.
        sizes: How long requests are.
        baseline: The server that the others are compared with; None for the last one.
        objectives: What makes a request a good one.
        model: The Triton model that takes the requests.
        seconds: Measured time of each server and level, all rounds together; a trace is cut there.
        warmup: Seconds in front of each round that are left out.
        rounds: How often each is measured; intervals need two.
        clients: Processes that send.
        seed: Of arrivals, lengths and order.
        timeout: Seconds for one request.
        peer: Another tool that measures the first server in the same rounds; closed loops only.
        on_round: Called after each round with its number, from 1.

    Returns:
        JSON values, which docs/bench.md describes, and a row per request.

    Raises:
        UsageError: A number is not above zero.
        ServerError: A server failed before it was measured, every request to one failed, or a
            client process ended.
    """
    _check(servers, levels, seconds=seconds, warmup=warmup, rounds=rounds, clients=clients)
    names = list(servers)
    baseline = names[-1] if baseline is None else baseline
    longest = _longest(sizes)
    ready = {name: _prepare(server, model, longest, timeout) for name, server in servers.items()}
    made: dict[tuple[str, Level], list[Round]] = {
        (name, level): [] for level in levels for name in names
    }
    share = seconds if any(level.kind == TRACE for level in levels) else seconds / rounds
    with Fleet(clients, servers, model=model, timeout=timeout) as fleet:

        def visit(name: str, level: Level, seed: str) -> Round:
            words, streams = ready[name]
            begin = 0.0 if level.kind == TRACE else warmup
            planned = plan(level, sizes, begin + share, seed)
            rows = [(request, words.for_tokens(request.input_tokens)) for request in planned]
            answers, busy = fleet.run(name, level, rows, begin + share, streams=streams)
            end = begin + share
            if level.kind == TRACE:
                ends = [a.timeline.arrivals[-1][0] for a in answers if a.timeline is not None]
                end = max([*(answer.begins for answer in answers), *ends]) + _END_OF_TRACE
            return Round(begin, end, tuple(answers), busy)

        if peer is not None:
            for level in levels:
                peer.know(level, visit(names[0], level, f"{seed} trial").requests_per_second)
        turns = orders([*names, *([peer.name] if peer else [])], levels, seed)
        for number, there in zip(range(1, rounds + 1), turns, strict=False):
            for name, level in there:
                if peer is not None and name == peer.name:
                    planned = plan(level, sizes, share, f"{seed} {number} {name}")
                    peer.visit(level, _texts(planned, ready[names[0]][0]), share, warmup)
                else:
                    made[name, level].append(visit(name, level, f"{seed} {number}"))
            on_round(number)
    _check_answers(made)
    results = {
        "model": model,
        "load": levels[0].kind,
        "input_tokens": "as the trace says" if sizes.rows else sizes.inputs.text,
        "output_tokens": "as the trace says" if sizes.rows else sizes.outputs.text,
        "rounds": rounds,
        "warmup_seconds": 0.0 if levels[0].kind == TRACE else warmup,
        "clients": clients,
        "seed": seed,
    }
    if len(names) == 1:
        results |= _of_server(names[0], names[0], levels, made, objectives)
    else:
        results["baseline"] = baseline
        results["servers"] = {
            name: _of_server(name, baseline, levels, made, objectives) for name in names
        }
    if peer is not None:
        results["perf_analyzer"] = [
            peer_row(level, made[names[0], level], peer.visits[level]) for level in levels
        ]
    return results, list(sample_rows(made, objectives))


def _of_server(
    name: str,
    baseline: str,
    levels: Sequence[Level],
    made: Rounds,
    objectives: Objectives | None,
) -> dict[str, Any]:
    rows = []
    for level in levels:
        row = summary(level, made[name, level], objectives)
        if name != baseline:
            row |= ratios(made[name, level], made[baseline, level], objectives)
        rows.append(row)
    return {"measurements": rows}


def _texts(planned: Sequence[Request], words: Words) -> Iterator[tuple[str, int]]:
    """Prompts of the planned lengths, none twice, with the tokens of their answers; endless."""
    prompts = Prompts(PROMPTS)
    for request in cycle(planned):
        yield prompts.long(words.for_tokens(request.input_tokens)), request.output_tokens


def _longest(sizes: Sizes) -> int:
    """Tokens up to which words are tried: all of a trace, most of a distribution."""
    if sizes.rows:
        return max(row.input_tokens for row in sizes.rows)
    kind, numbers = sizes.inputs.kind, sizes.inputs.numbers
    reach = {"uniform": numbers[-1], "normal": numbers[0] + 2 * numbers[-1]}
    return round(reach.get(kind, 2 * numbers[0] if kind == "lognormal" else numbers[0]))


def _prepare(server: Server, model: str, longest: int, timeout: float) -> tuple[Words, bool]:
    """Learns of a server how long words are, and whether it streams; that warms it up as well."""

    async def ask() -> tuple[Words, bool]:
        async with connect_async(
            server.url, model=model, timeout=timeout, tls=server.tls, headers=server.headers
        ) as client:
            told = await client.model_metadata(answering_model(client.model))
            words = await try_words(client, Prompts(PROMPTS), longest, streams=told.decoupled)
            return words, told.decoupled

    with client_errors():
        return asyncio.run(ask())


def _check(
    servers: Mapping[str, Server],
    levels: Sequence[Level],
    *,
    seconds: float,
    warmup: float,
    rounds: int,
    clients: int,
) -> None:
    if not seconds > 0:
        raise UsageError(f"--duration must be above 0 seconds, not {seconds:g}")
    if not warmup >= 0:
        raise UsageError(f"--warmup must not be below 0 seconds, as {warmup:g} is")
    for option, value in (("--rounds", rounds), ("--clients", clients)):
        if value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}")
    if not servers or not levels:
        raise UsageError("there is nothing to measure", fix="Name a server and a load")
    for level in levels:
        if not level.amount > 0:
            raise UsageError(f"a load must be above 0, not {level.amount:g}")


def _check_answers(made: Rounds) -> None:
    """Refuses to give numbers of a server that answered nothing at a level."""
    for (name, level), rounds in made.items():
        answers = [answer for one in rounds for answer in one.answers]
        if not answers:
            raise UsageError(
                f"no request fell into the time measured at {level.amount:g} requests/s",
                fix="Give a longer --duration, or a higher --rate",
            )
        if any(answer.timeline is not None for answer in answers):
            continue
        error = next(answer.error for answer in answers if answer.error is not None)
        raise ServerError(
            f"every request to {name} failed ({len(answers)} of them)",
            why=f"{error[0]}: {error[1]}",
            fix="Ask it once first: trtllm-pipeline generate --url HOST:PORT Hello",
        )
