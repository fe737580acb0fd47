"""Traffic on simulated servers: who comes when, who gets it, and what it waited for."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from pipeline.bench.traffic.lengths import Lengths
from pipeline.economics.capacity.replica import Job, Replica
from pipeline.economics.capacity.server import Server

Arrival = tuple[float, int, int]
"""Second, tokens of the prompt, tokens of the answer."""

_AFTER_REFUSAL_S = 0.01


@dataclass(frozen=True)
class Run:
    """Simulated traffic.

    Attributes:
        jobs: The requests, in order of arrival.
        busy: The share of the time up to the last arrival in which the servers' engines, or
            what is in front of them where that is more, had work.
        most: The most sequences that ran together on one server.
    """

    jobs: Sequence[Job]
    busy: float
    most: int


def poisson_traffic(
    rate: float, count: int, inputs: Lengths, outputs: Lengths, seed: str
) -> Iterator[Arrival]:
    """Draws requests that come at random: gaps are exponential with mean ``1 / rate``.

    Args:
        rate: Requests per second.
        count: How many.
        inputs: Lengths of prompts.
        outputs: Lengths of answers.
        seed: Decides everything that is drawn.
    """
    source = random.Random(seed)  # noqa: S311  a load, no secret
    at = 0.0
    for _ in range(count):
        at += source.expovariate(rate)
        yield at, inputs.draw(source), outputs.draw(source)


def run_open(server: Server, replicas: int, arrivals: Iterable[Arrival], seed: str = "") -> Run:
    """Simulates traffic that comes whatever the servers do, to the end of the last answer.

    Each request goes to the server with the fewest unfinished ones, as a gateway sends it that
    knows what it has sent.

    Args:
        server: What each of them is.
        replicas: How many there are.
        arrivals: In order of time.
        seed: Decides how each server's pace changes.
    """
    farm = [Replica(server, f"{seed} {place}") for place in range(replicas)]
    loads = [0] * replicas
    events: list[tuple[float, int]] = []
    jobs: list[Job] = []
    for number, (at, prompt, output) in enumerate(arrivals):
        _work(farm, loads, events, at)
        chosen = loads.index(min(loads)) if replicas > 1 else 0
        job = Job(number, prompt, output, at)
        jobs.append(job)
        loads[chosen] += 1
        replica = farm[chosen]
        before = replica.due
        replica.submit(job, at)
        if replica.due != before:
            heappush(events, (replica.due, chosen))
    # What a server is busy with behind the last arrival is no part of the traffic.
    last = jobs[-1].arrived if jobs else 0.0
    busy = _busy(farm, last)
    _work(farm, loads, events, math.inf)
    return Run(jobs, busy, max(replica.most for replica in farm))


def _work(
    farm: Sequence[Replica], loads: list[int], events: list[tuple[float, int]], until: float
) -> None:
    """Lets the servers work up to a second."""
    while events and events[0][0] <= until:
        due, place = heappop(events)
        replica = farm[place]
        if replica.due != due:
            continue  # it was asked to do something else before
        loads[place] -= len(replica.finish())
        if replica.due != math.inf:
            heappush(events, (replica.due, place))


def run_closed(
    server: Server,
    streams: int,
    sizes: Iterator[tuple[int, int]],
    seconds: float,
    *,
    most: int | None = None,
    seed: str = "",
) -> Run:
    """Simulates streams on one server, each of which sends when its last request has ended.

    Args:
        server: What it is.
        streams: Kept open together.
        sizes: Tokens of prompt and answer, as many as are asked for.
        seconds: How long they send.
        most: How many requests they send at most, all together.
        seed: Decides how the server's pace changes.
    """
    replica = Replica(server, seed)
    jobs: list[Job] = []

    def send(at: float, stream: int) -> None:
        job = Job(len(jobs), *next(sizes), at, stream)
        jobs.append(job)
        replica.submit(job, at)

    for stream in range(streams if most is None else min(streams, most)):
        send(0.0, stream)
    while replica.due != math.inf:
        for job in replica.finish():
            # A server that refuses at once is not asked as fast as it refuses, as in the bench.
            at = replica.now + _AFTER_REFUSAL_S * job.refused
            if at < seconds and (most is None or len(jobs) < most):
                send(at, job.stream)
    return Run(jobs, _busy([replica], min(seconds, replica.now)), replica.most)


def _busy(farm: Sequence[Replica], seconds: float) -> float:
    if not seconds:
        return 0.0
    share = max(
        sum(replica.busy for replica in farm), sum(replica.front_busy for replica in farm)
    ) / (len(farm) * seconds)
    return min(1.0, share)
