"""Measured loads in the form that a simulation is fitted to and held against."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import cycle
from typing import Any, NamedTuple

from pipeline.bench.stats import percentile
from pipeline.bench.traffic.schedule import CLOSED, Level
from pipeline.economics.capacity.records import Measured, Seen
from pipeline.economics.capacity.server import Server
from pipeline.economics.capacity.simulation import Arrival, Run, run_closed, run_open


class Decoding(NamedTuple):
    """What happened while one stream got its tokens after the first.

    Attributes:
        seconds: How long it took.
        steps: Its tokens, each of a step.
        tokens: Tokens that all streams got meanwhile, its own among them.
        prompt_tokens: Tokens of the prompts that were read meanwhile.
        requests: How many prompts these were.
        begin: Second of the round at which it began.
    """

    seconds: float
    steps: float
    tokens: float
    prompt_tokens: float
    requests: float
    begin: float


@dataclass(frozen=True)
class Times:
    """What requests waited for, in seconds.

    Attributes:
        pairs: Until the first token, and per token after it; None where there is none after it.
        tokens_per_second: Over all streams.
    """

    pairs: Sequence[tuple[float, float | None]]
    tokens_per_second: float

    @property
    def ttft(self) -> list[float]:
        """Seconds until the first token."""
        return [first for first, _ in self.pairs]

    @property
    def itl(self) -> list[float]:
        """Seconds per token after it, of those that have one."""
        return [each for _, each in self.pairs if each is not None]

    def at(self, name: str, percent: float) -> float | None:
        """Returns a percentile of ``ttft`` or ``itl``; None where there is none."""
        values = getattr(self, name)
        return percentile(values, percent) if values else None

    def good(self, ttft: float, itl: float) -> int:
        """Counts the requests that keep both limits, in seconds."""
        return sum(first <= ttft and (each is None or each <= itl) for first, each in self.pairs)


@dataclass(frozen=True)
class Load:
    """One measured load.

    Attributes:
        level: The kind and amount.
        times: What was measured.
        failed: Requests that were not answered.
        happened: What happened in each round while streams decoded.
        rounds: What was sent in each round: second, tokens of prompt and answer.
        warmup: Seconds of a round that are left out.
        seconds: Seconds of a round that count.
        a_round: Requests of a round of a closed load, where these and not the seconds end it.
    """

    level: Level
    times: Times
    failed: int
    happened: Sequence[Sequence[Decoding]]
    rounds: Sequence[Sequence[Arrival]]
    warmup: float = 0.0
    seconds: float = 0.0
    a_round: int = 0

    @property
    def requests(self) -> int:
        """Requests that were answered."""
        return len(self.times.pairs)

    def lengths(self) -> list[tuple[int, int]]:
        """Returns tokens of prompt and answer of all that was sent."""
        return [(prompt, output) for made in self.rounds for _, prompt, output in made]

    def replay(self, server: Server, again: int = 1) -> tuple[Times, int]:
        """Simulates the same load on a server.

        Args:
            server: The server.
            again: How often, each time with another course of its pace.

        Returns:
            What it waits for, counted as it was measured, and the most sequences that ran together.
        """
        made = [
            self._run(server, arrivals, f"{number} {time}")
            for time in range(again)
            for number, arrivals in enumerate(self.rounds)
            if arrivals
        ]
        rounds = [list(self._seen(run)) for run in made]
        times = times_of(Measured(self.level, rounds, 0))
        if self.a_round:
            spans = sum(max(one.last for one in seen) for seen in rounds)
            tokens = sum(one.output for seen in rounds for one in seen)
            times = Times(times.pairs, tokens / spans)
        return times, max(run.most for run in made)

    def _run(self, server: Server, arrivals: Sequence[Arrival], seed: str) -> Run:
        if self.level.kind != CLOSED:
            return run_open(server, 1, arrivals, seed)
        streams, sizes = int(self.level.amount), cycle(self.lengths())
        if self.a_round:
            return run_closed(server, streams, sizes, math.inf, most=self.a_round, seed=seed)
        return run_closed(server, streams, sizes, self.warmup + self.seconds, seed=seed)

    def _seen(self, run: Run) -> Iterator[Seen]:
        for job in run.jobs:
            if job.first is not None and job.ended is not None:
                yield Seen(
                    *(job.arrived, job.arrived, job.first, job.ended),
                    first_tokens=1,
                    prompt=job.prompt,
                    output=job.output,
                    counted=job.arrived >= self.warmup,
                )


def times_of(measured: Measured) -> Times:
    """Gathers what counts of a load."""
    return Times([(seen.ttft, seen.itl) for seen in measured.counted], measured.tokens_per_second)


def load_of(measured: Measured) -> Load:
    """Makes a load of the samples of a bench."""
    begins = [seen.planned for seen in measured.counted]
    ends = [seen.planned for made in measured.rounds for seen in made]
    warmup = math.floor(min(begins) * 1000) / 1000 if begins else 0.0
    return Load(
        measured.level,
        times_of(measured),
        measured.failed,
        [list(_decodings(made)) for made in measured.rounds],
        [
            sorted((seen.planned, seen.prompt, seen.output) for seen in made)
            for made in measured.rounds
        ],
        warmup=warmup,
        seconds=max(ends) - warmup,
    )


def _decodings(made: Sequence[Seen]) -> Iterator[Decoding]:
    """What happened in one round while each stream that counts got its tokens."""
    streams = sorted(made, key=lambda seen: seen.first)
    firsts = [seen.first for seen in streams]
    longest = max((seen.last - seen.first for seen in streams), default=0.0)
    for seen in streams:
        seconds = seen.last - seen.first
        if not (seen.counted and seen.later and seconds > 0):
            continue
        tokens = prompts = requests = 0.0
        for other in streams[bisect_left(firsts, seen.first - longest) :]:
            if other.first >= seen.last:
                break
            if other.later and other.last > other.first:
                within = min(seen.last, other.last) - max(seen.first, other.first)
                tokens += other.later * max(0.0, within) / (other.last - other.first)
            if other.first > seen.first:
                prompts += other.prompt
                requests += 1
        yield Decoding(seconds, seen.later, tokens, prompts, requests, seen.first)


def loads_of_report(load: Mapping[str, Any]) -> list[Load]:
    """Makes loads of what the ``bench`` stage measured: closed loops of so many requests.

    It keeps the times of each request in the order in which they ended, and not when that was. So
    each is taken to have begun when the first stream was free.

    Args:
        load: ``load`` of a ``report.json``.
    """
    samples = {made["concurrency"]: made for made in load["samples"]}
    made = []
    for row in load["measurements"]:
        streams, count = int(row["concurrency"]), int(row["requests"])
        times = samples.get(streams) or {}
        firsts, each = times.get("ttft_ms") or (), times.get("itl_ms") or ()
        a_round = count // int(load["rounds"])
        if not a_round or len(firsts) != count or len(each) != count:
            continue
        prompt = max(1, round(row["input_tokens"] / count))
        output = max(1, round(row["output_tokens"] / count))
        pairs = [(t / 1000, i / 1000) for t, i in zip(firsts, each, strict=True)]
        rounds = [
            _one_round(pairs[place : place + a_round], streams, prompt, output)
            for place in range(0, count, a_round)
        ]
        found = load_of(Measured(Level(CLOSED, streams), rounds, 0))
        times_made = Times(found.times.pairs, float(row["tokens_per_second"]["value"]))
        made.append(replace(found, times=times_made, warmup=0.0, a_round=a_round))
    return made


def _one_round(
    pairs: Sequence[tuple[float, float]], streams: int, prompt: int, output: int
) -> list[Seen]:
    free = [0.0] * streams
    seen = []
    for first, each in pairs:
        sent = heappop(free)
        last = sent + first + each * (output - 1)
        heappush(free, last)
        seen.append(Seen(sent, sent, sent + first, last, 1, prompt, output, counted=True))
    return seen
