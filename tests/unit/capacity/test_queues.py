"""The simulated server against closed formulas of queueing theory, and against sums by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from model_repo.tensorrt_llm.admission import Capacity
from pipeline.bench.traffic.lengths import parse_lengths
from pipeline.economics.capacity.replica import Job
from pipeline.economics.capacity.server import Front, Limits, Pace, Server, Steps
from pipeline.economics.capacity.simulation import (
    Arrival,
    poisson_traffic,
    run_closed,
    run_open,
)

ROOMY = Limits(slots=64, kv_blocks=10**9, block_tokens=32, step_tokens=10**6)
SINGLE = Limits(slots=1, kv_blocks=10**9, block_tokens=32, step_tokens=10**6)
TICK = Steps(fixed=0.001, sequence=0.0, prompt_token=0.0, request=0.0)


def server(steps: Steps, limits: Limits = ROOMY, front: Front | None = None) -> Server:
    return Server(steps, front or Front(), limits)


def wait(job: Job, steps: Steps) -> float:
    """Until its first step began; with one request at a time, that is how long it queued."""
    assert job.first is not None
    return job.first - job.arrived - steps.seconds(0, job.prompt, 1)


def test_one_request_at_a_time_waits_as_lindley_says() -> None:
    # W(n+1) = max(0, W(n) + S(n) - A(n)), exactly, whatever the arrivals and services are
    # (Lindley 1952, "The theory of queues with a single server").
    steps = Steps(fixed=0.002, sequence=0.001, prompt_token=0.0001, request=0.003)
    source = random.Random(1)
    arrivals: list[Arrival] = []
    at = 0.0
    for _ in range(3000):
        at += source.expovariate(4.0)
        arrivals.append((at, source.randint(1, 300), source.randint(1, 120)))
    jobs = run_open(server(steps, SINGLE), 1, arrivals).jobs
    waited, queued = 0.0, 0
    for place, ((at, prompt, output), job) in enumerate(zip(arrivals, jobs, strict=True)):
        assert wait(job, steps) == pytest.approx(waited, abs=1e-9)
        queued += waited > 0
        service = 0.002 + 0.0001 * prompt + 0.003 + (output - 1) * 0.003
        if place + 1 < len(arrivals):
            waited = max(0.0, waited + service - (arrivals[place + 1][0] - at))
    assert 1000 < queued < 2999


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_equal_requests_that_come_at_random_wait_as_in_m_d_1(load: float) -> None:
    # Pollaczek and Khinchine: the mean wait is rho D / (2 (1 - rho)).
    service = 100 * TICK.fixed
    lengths = parse_lengths("1", ""), parse_lengths("100", "")
    jobs = run_open(
        server(TICK, SINGLE), 1, poisson_traffic(load / service, 60_000, *lengths, "md1")
    ).jobs
    waits = [wait(job, TICK) for job in jobs]
    expected = load * service / (2 * (1 - load))
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.05)
    # And 1 - rho of them wait for nobody.
    assert sum(w < 1e-9 for w in waits) / len(waits) == pytest.approx(1 - load, rel=0.02)


@pytest.mark.parametrize(("slots", "load"), [(2, 0.5), (6, 0.75)])
def test_requests_of_exponential_length_wait_as_in_m_m_c(slots: int, load: float) -> None:
    # Erlang's C: the share that waits, and the mean wait C / (c mu - lambda). Steps are short
    # beside a service of 400 of them, so waiting for one to end is next to nothing.
    mean = 400
    source = random.Random(7)
    rate = load * slots / (mean * TICK.fixed)
    at, arrivals = 0.0, []
    for _ in range(50_000):
        at += source.expovariate(rate)
        arrivals.append((at, 1, max(1, round(source.expovariate(1 / mean)))))
    limits = Limits(slots, 10**9, 32, 10**6)
    jobs = run_open(server(TICK, limits), 1, arrivals).jobs
    waits = [wait(job, TICK) for job in jobs]
    offered = load * slots
    last = offered**slots / math.factorial(slots) / (1 - load)
    waiting = last / (sum(offered**n / math.factorial(n) for n in range(slots)) + last)
    expected = waiting / (slots / (mean * TICK.fixed) - rate)
    assert sum(w > 2 * TICK.fixed for w in waits) / len(waits) == pytest.approx(waiting, rel=0.05)
    mean_wait = sum(waits) / len(waits)
    # Waits of a busy system hang together for long, so that a mean of many is not sure either ...
    assert mean_wait == pytest.approx(expected, rel=0.15)
    # ... but those of these very requests are known (Kiefer and Wolfowitz 1955).
    work, exact, before = [0.0] * slots, 0.0, 0.0
    for came, _, length in arrivals:
        work = sorted(max(0.0, left - (came - before)) for left in work)
        exact += work[0]
        work[0] += length * TICK.fixed
        before = came
    assert mean_wait == pytest.approx(exact / len(arrivals), rel=0.02)


def test_a_closed_load_keeps_littles_law() -> None:
    # Streams = throughput x time of a request (Little 1961), as each sends when it was answered.
    sizes: Iterator[tuple[int, int]] = iter(lambda: (20, 50), None)
    run = run_closed(server(Steps(0.004, 0.0005, 0.0001, 0.001)), 6, sizes, 200.0)
    ended = [job for job in run.jobs if job.ended is not None]
    times = [job.ended - job.arrived for job in ended if job.ended is not None]
    seconds = max(job.ended or 0 for job in ended)
    assert len(ended) / seconds * sum(times) / len(times) == pytest.approx(6, rel=0.001)


def test_two_requests_batched_by_hand() -> None:
    steps = Steps(fixed=1.0, sequence=0.1, prompt_token=0.01, request=0.5)
    # The first is alone for its prompt: 1 + 10 x 0.01 + 0.5 = 1.6, and begins its second token's
    # step at 1.6, which takes 1.1 to 2.7. There the second one's prompt is read in a step that also
    # writes the first one's third token: 1 + 0.1 + 0.2 + 0.5 = 1.8, to 4.5. Then both: 1.2, to 5.7,
    # which is the first one's fourth and last. The second one alone: 1.1, to 6.8.
    jobs = run_open(server(steps), 1, [(0.0, 10, 4), (2.0, 20, 3)]).jobs
    assert [(job.first, job.ended) for job in jobs] == [
        pytest.approx((1.6, 5.7)),
        pytest.approx((4.5, 6.8)),
    ]


def test_a_prompt_that_is_longer_than_a_step_is_read_in_parts() -> None:
    steps = Steps(fixed=1.0, sequence=0.0, prompt_token=0.01, request=0.0)
    limits = Limits(8, 10**6, 32, step_tokens=100)
    chunked = run_open(server(steps, limits), 1, [(0.0, 250, 1)]).jobs
    # 100, 100 and 50 tokens.
    assert chunked[0].first == pytest.approx(3 + 2.5)
    whole = Limits(8, 10**6, 32, step_tokens=100, chunked=False)
    assert run_open(server(steps, whole), 1, [(0.0, 250, 1)]).jobs[0].first == pytest.approx(3.5)
    # Prompts that are not cut share a step only while all of each fits.
    jobs = run_open(server(steps, whole), 1, [(0.0, 60, 1), (0.0, 60, 1), (0.0, 30, 1)]).jobs
    assert [job.first for job in jobs] == pytest.approx([1.6, 2 * 1.0 + 0.6 + 0.9, 3.5])


def test_who_does_not_fit_into_the_kv_cache_holds_up_those_behind() -> None:
    steps = Steps(fixed=1.0, sequence=0.0, prompt_token=0.0, request=0.0)
    # Room for 10 blocks of 10 tokens: 6 of the first, so the second one's 7 have to wait, and the
    # third, which would fit beside the first, waits behind it.
    limits = Limits(8, kv_blocks=10, block_tokens=10, step_tokens=1000)
    jobs = run_open(server(steps, limits), 1, [(0.0, 50, 10), (0.5, 60, 10), (0.6, 10, 10)]).jobs
    assert [job.first for job in jobs] == pytest.approx([1.0, 11.0, 11.0])
    # And what can never fit is refused.
    (never,) = run_open(server(steps, limits), 1, [(0.0, 100, 10)]).jobs
    assert never.refused
    assert never.first is None


def test_a_full_queue_refuses() -> None:
    steps = Steps(fixed=1.0, sequence=0.0, prompt_token=0.0, request=0.0)
    limits = Limits(1, 10**6, 32, 1000, queue=2)
    arrivals = [(0.0, 1, 5)] * 4 + [(5.5, 1, 5)] * 2
    jobs = run_open(server(steps, limits), 1, arrivals).jobs
    # One runs and two wait; when the first has ended there is room for one more.
    assert [job.refused for job in jobs] == [False, False, False, True, False, True]


def test_a_front_that_takes_one_at_a_time_spreads_a_burst() -> None:
    front = Front(delay=0.2, serial=0.5)
    steps = Steps(fixed=0.001, sequence=0.0, prompt_token=0.0, request=0.0)
    jobs = run_open(server(steps, front=front), 1, [(1.0, 1, 1)] * 4).jobs
    assert [job.first for job in jobs] == pytest.approx([1.701, 2.201, 2.701, 3.201])


def test_a_request_goes_to_the_server_with_the_fewest() -> None:
    steps = Steps(fixed=1.0, sequence=0.0, prompt_token=0.0, request=0.0)
    limits = Limits(1, 10**6, 32, 1000)
    arrivals = [(0.0, 1, 10), (0.1, 1, 2), (0.2, 1, 1), (2.5, 1, 1)]
    jobs = run_open(server(steps, limits), 2, arrivals).jobs
    # The third finds one on each and goes to the first server, behind ten steps; the fourth finds
    # two there and none on the second, which is free since 2.1.
    assert [job.first for job in jobs] == pytest.approx([1.0, 1.1, 11.0, 3.5])


def _slowly(of: Server, arrivals: list[Arrival]) -> list[tuple[float, float]]:
    """The same server step by step, without counting steps that are alike at once."""
    steps, limits = of.steps, of.limits
    jobs, free = [], 0.0
    for at, prompt, output in arrivals:
        free = max(free, at) + of.front.serial
        jobs.append(_Slow(free + of.front.delay, prompt, output))
    ready, waiting, reading, writing = list(jobs), [], [], []  # type: ignore[var-annotated]
    # Who may start is decided by the code of the CPU's engine itself.
    admits = Capacity(
        SimpleNamespace(  # type: ignore[arg-type]
            max_batch_size=limits.slots, num_kv_blocks=limits.kv_blocks, guaranteed_no_evict=True
        )
    )
    now = 0.0
    while ready or waiting or reading or writing:
        while ready and ready[0].at <= now + 1e-12:
            waiting.append(ready.pop(0))
        while waiting:
            promised = admits.take(waiting[0].prompt, waiting[0].output)
            if promised is None:
                break
            waiting[0].held = promised
            reading.append(waiting.pop(0))
        if not reading and not writing:
            now = ready[0].at
            continue
        room, chunks, begun = limits.step_tokens - len(writing), [], 0
        for job in reading:
            chunk = min(job.prompt - job.read, room)
            if chunk <= 0:
                break
            begun += job.read == 0
            room -= chunk
            chunks.append(chunk)
        now += steps.seconds(len(writing), sum(chunks), begun)
        for job, chunk in zip(reading, chunks, strict=False):
            job.read += chunk
        done = [job for job in reading if job.read == job.prompt]
        for job in [*writing, *done]:
            job.written += 1
            job.first = job.first or now
            if job.written == job.output:
                job.last = now
                admits.give_back(job.held)
        writing = [job for job in [*writing, *done] if not job.last]
        reading = [job for job in reading if job.read < job.prompt]
    return [(job.first, job.last) for job in jobs]


@dataclass
class _Slow:
    at: float
    prompt: int
    output: int
    read: int = 0
    written: int = 0
    held: int = 0
    first: float = 0.0
    last: float = 0.0


@pytest.mark.parametrize("seed", range(6))
def test_counting_many_steps_at_once_changes_nothing(seed: int) -> None:
    source = random.Random(seed)
    steps = Steps(source.uniform(0.0005, 0.01), source.uniform(0.0005, 0.01), 0.0002, 0.002)
    limits = Limits(source.choice((2, 5)), source.choice((8, 20)), 32, source.choice((16, 64)))
    of = Server(steps, Front(0.003, source.choice((0.0, 0.02))), limits)
    arrivals: list[Arrival] = []
    at = 0.0
    for _ in range(300):
        at += source.expovariate(4.0)
        arrivals.append((at, source.randint(1, 120), source.randint(1, 100)))
    jobs = run_open(of, 1, arrivals).jobs
    for job, (first, last) in zip(jobs, _slowly(of, arrivals), strict=True):
        assert job.first == pytest.approx(first, abs=1e-6)
        assert job.ended == pytest.approx(last, abs=1e-6)


def test_a_machine_of_half_the_pace_is_a_server_that_takes_twice_as_long() -> None:
    steps = Steps(0.004, 0.0005, 0.0001, 0.001)
    twice = Steps(0.008, 0.001, 0.0002, 0.002)
    slow = Server(steps, Front(0.01, 0.02), ROOMY, Pace(0.25, [[2.0] * 7]))
    prompts, answers = parse_lengths("50", ""), parse_lengths("30", "")
    arrivals = list(poisson_traffic(8.0, 400, prompts, answers, "pace"))
    found = run_open(slow, 1, arrivals).jobs
    expected = run_open(Server(twice, Front(0.02, 0.04), ROOMY), 1, arrivals).jobs
    for one, other in zip(found, expected, strict=True):
        assert (one.first, one.ended) == pytest.approx((other.first, other.ended))


def test_the_pace_changes_from_one_while_to_the_next() -> None:
    # The while in which a step begins counts for all of it.
    pace = Pace(0.25, [[1.0, 1.0, 10.0, 1.0]])
    of = Server(Steps(0.01, 0.0, 0.0, 0.0), Front(), ROOMY, pace)
    (job,) = run_open(of, 1, [(0.0, 1, 60)], _from_its_start(pace)).jobs
    # 50 tokens of 10 ms to 0.5 s, three of 100 ms to 0.8 s, and seven of 10 ms.
    assert job.ended == pytest.approx(0.5 + 0.3 + 0.07)


def _from_its_start(pace: Pace) -> str:
    """A seed with which a pace begins at its first while; a server's place is added to it."""
    for seed in range(1000):
        played = pace.play(f"{seed} 0")
        if [next(played) for _ in range(4)] == list(pace.rounds[0]):
            return str(seed)
    raise AssertionError
