"""How many servers a traffic takes, so that its latency objective is kept."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.bench.stats import percentile
from pipeline.bench.traffic.lengths import Lengths
from pipeline.bench.traffic.traces import TraceRow
from pipeline.economics.capacity.replica import Job
from pipeline.economics.capacity.server import Server
from pipeline.economics.capacity.simulation import Arrival, Run, poisson_traffic, run_open

LEAST_REQUESTS, MOST_REQUESTS = 6_000, 100_000
MOST_SERVERS = 2_000
"""With more, :data:`MOST_REQUESTS` are too few for each of them to say anything."""
_PER_REPLICA = 1_000
_WARMUP = 0.1
_DRAWN = 4_000
_ALONE = 200
_APART_S = 1e6
_WAVES = 40


@dataclass(frozen=True)
class Traffic:
    """What is to be served.

    Attributes:
        rate: Requests per second.
        inputs: Lengths of prompts.
        outputs: Lengths of answers.
        rows: A trace, which says when requests come and how long they are; at another rate than
            its own its times are stretched.
    """

    rate: float
    inputs: Lengths | None
    outputs: Lengths | None
    rows: Sequence[TraceRow] = ()

    @property
    def means(self) -> tuple[float, float]:
        """Tokens of a prompt and of an answer, on average."""
        source = random.Random("means")  # noqa: S311  lengths, no secret
        if self.inputs is None or self.outputs is None:
            pairs = [(row.input_tokens, row.output_tokens) for row in self.rows]
        else:
            pairs = [(self.inputs.draw(source), self.outputs.draw(source)) for _ in range(_DRAWN)]
        return sum(p for p, _ in pairs) / len(pairs), sum(o for _, o in pairs) / len(pairs)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that are generated."""
        return self.rate * self.means[1]

    def times(self, factor: float) -> Traffic:
        """Returns so many times as much traffic of the same kind."""
        return replace(self, rate=self.rate * factor)

    def arrivals(self, count: int, seed: str) -> list[Arrival]:
        """Returns the first requests; a trace begins anew behind its end."""
        if self.inputs is None or self.outputs is None:
            return list(itertools.islice(self._replayed(), max(count, len(self.rows))))
        return list(poisson_traffic(self.rate, count, self.inputs, self.outputs, seed))

    def _replayed(self) -> Iterator[Arrival]:
        last, count = self.rows[-1].at_s, len(self.rows)
        # The gap between the last request and the first of the next time is an average one.
        length = last * count / (count - 1) if last else count / self.rate
        stretch = count / length / self.rate
        for again in itertools.count():
            for row in self.rows:
                at = (again * length + row.at_s) * stretch
                yield at, row.input_tokens, row.output_tokens


@dataclass(frozen=True)
class Objective:
    """What a share of all requests must keep.

    Attributes:
        ttft: Seconds to the first token.
        itl: Seconds per token after it.
        percent: How many of a hundred requests must keep each.
    """

    ttft: float
    itl: float
    percent: float


@dataclass(frozen=True)
class Sized:
    """What so many servers give, in a simulation.

    Attributes:
        replicas: How many.
        rate: Requests per second of all.
        simulated: Requests that were simulated and count.
        refused: The share of them that found a full queue.
        ttft: Seconds to the first token, by percentile.
        itl: Seconds per token after it, by percentile; empty where no answer has two tokens.
        good: The share of requests that keep both limits.
        busy: The share of the time in which a server has anything to do.
        most: The most sequences that ran together on one.
        kept: Whether the objective is kept.
    """

    replicas: int
    rate: float
    simulated: int
    refused: float
    ttft: dict[float, float]
    itl: dict[float, float]
    good: float
    busy: float
    most: int
    kept: bool


@dataclass(frozen=True)
class Unreachable:
    """Why no number of servers is enough.

    Attributes:
        why: In words.
    """

    why: str


def size(
    server: Server,
    traffic: Traffic,
    objective: Objective,
    seed: str,
    *,
    least: int = 1,
) -> Sized | Unreachable:
    """Finds the fewest servers with which a traffic keeps its objective.

    Args:
        server: What each is.
        traffic: What comes.
        objective: What must be kept.
        seed: Of what is drawn.
        least: As few are not tried.
    """
    if why := _alone(server, traffic, objective):
        return Unreachable(why)

    def attempt(replicas: int) -> Sized:
        return simulate(server, replicas, traffic, objective, seed)

    # Fewer cannot finish what comes.
    needed = max(1.0, least, traffic.rate / most_per_second(server, traffic) - 1e-9)
    if needed > MOST_SERVERS:
        return Unreachable(
            f"it takes {needed:.3g} servers by their throughput alone, and no more than "
            f"{MOST_SERVERS:,} are simulated"
        )
    low = math.ceil(needed)
    failed, replicas, step = low - 1, low, max(1, low // 8)
    found = attempt(replicas)
    # Servers that have next to nothing to do keep it, or none does.
    most = min(4 * low + 40, MOST_SERVERS)
    while not found.kept:
        if replicas >= most:
            return Unreachable(
                f"{replicas} servers do not keep it either, though they have little to do: "
                f"{_times_words(found, objective)}"
            )
        failed, replicas, step = replicas, min(replicas + step, most), step * 2
        found = attempt(replicas)
    while found.replicas - failed > 1:
        middle = (failed + found.replicas) // 2
        tried = attempt(middle)
        if tried.kept:
            found = tried
        else:
            failed = middle
    return found


def simulate(
    server: Server, replicas: int, traffic: Traffic, objective: Objective, seed: str
) -> Sized:
    """Simulates a traffic on so many servers.

    Args:
        server: What each is.
        replicas: How many there are.
        traffic: What comes.
        objective: What requests are held against.
        seed: Of what is drawn.
    """
    count = min(MOST_REQUESTS, max(LEAST_REQUESTS, _PER_REPLICA * replicas))
    arrivals = traffic.arrivals(count, f"{seed} {traffic.rate:g}")
    run = run_open(server, replicas, arrivals, seed)
    return _sized(run, replicas, traffic, objective)


def _sized(run: Run, replicas: int, traffic: Traffic, objective: Objective) -> Sized:
    counted = run.jobs[int(len(run.jobs) * _WARMUP) :]
    answered = [(job, job.first) for job in counted if job.first is not None]
    ttft = [first - job.arrived for job, first in answered]
    itl = [
        (job.ended - first) / (job.output - 1)
        for job, first in answered
        if job.ended is not None and job.output > 1
    ]
    asked = len(counted)
    # A queue that grows all the time may keep a limit on the average of a time that is short.
    half = asked // 2
    kept = all(_keeps(part, objective) for part in (counted, counted[half:]))
    good = sum(
        first - job.arrived <= objective.ttft
        and (job.output == 1 or (job.ended or 0) - first <= objective.itl * (job.output - 1))
        for job, first in answered
    )
    percents = sorted({50.0, objective.percent})
    return Sized(
        replicas=replicas,
        rate=traffic.rate,
        simulated=asked,
        refused=sum(job.refused for job in counted) / asked,
        ttft={percent: percentile(ttft, percent) for percent in percents} if ttft else {},
        itl={percent: percentile(itl, percent) for percent in percents} if itl else {},
        good=good / asked,
        busy=run.busy,
        most=run.most,
        kept=kept,
    )


def _times_words(found: Sized, objective: Objective) -> str:
    times = (("to the first token", found.ttft), ("for each after it", found.itl))
    told = (f"{of[objective.percent] * 1000:.3g} ms {name}" for name, of in times if of)
    return f"{' and '.join(told)} (percentile {objective.percent:g})"


def _keeps(jobs: Sequence[Job], objective: Objective) -> bool:
    late = slow = 0
    for job in jobs:
        if job.first is None or job.ended is None or job.first - job.arrived > objective.ttft:
            late += 1
        if job.first is not None and job.ended is not None:
            slow += job.ended - job.first > objective.itl * (job.output - 1) * (1 + 1e-9)
    allowed = len(jobs) * (100 - objective.percent) / 100
    return late <= allowed and slow <= allowed


def most_per_second(server: Server, traffic: Traffic) -> float:
    """Returns the requests per second that one server finishes at most, at its usual pace."""
    patient = replace(server, limits=replace(server.limits, queue=0), pace=None)
    count = _WAVES * server.limits.slots
    arrivals = [(0.0, prompt, output) for _, prompt, output in traffic.arrivals(count, "most")]
    run = run_open(patient, 1, arrivals[:count])
    ends = sorted(job.ended for job in run.jobs if job.ended is not None)
    if len(ends) < 2:
        return math.inf
    # The beginning, while the server fills, and the end, while it empties, are left out.
    low, high = len(ends) // 4, len(ends) * 3 // 4
    return (high - low) / (ends[high] - ends[low]) if ends[high] > ends[low] else math.inf


def _alone(server: Server, traffic: Traffic, objective: Objective) -> str | None:
    """Says what requests miss that have a server for themselves; None where they miss nothing."""
    arrivals = [
        (number * _APART_S, prompt, output)
        for number, (_, prompt, output) in enumerate(traffic.arrivals(_ALONE, "alone")[:_ALONE])
    ]
    found = _sized(run_open(server, 1, arrivals), 1, traffic, objective)
    if found.refused:
        return (
            f"the engine refuses {found.refused * 100:.0f} % of the requests, which are longer "
            "than its KV cache"
        )
    for name, times, limit in (
        ("the first token takes", found.ttft, objective.ttft),
        ("each token after the first takes", found.itl, objective.itl),
    ):
        least = times.get(objective.percent)
        if least is not None and least > limit:
            return (
                f"{name} {least * 1000:.3g} ms (percentile {objective.percent:g}) on a server that "
                f"has nothing else to do, and may take {limit * 1000:g} ms"
            )
    return None
