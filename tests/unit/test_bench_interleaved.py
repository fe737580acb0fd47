"""Servers in turns: the schedule on a simulated clock, the rest against fake servers."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from pipeline.bench import measure_interleaved
from pipeline.bench.interleaved import LEAST_ROUNDS, MOST_ROUNDS, WANTED_ROUNDS, take_turns
from pipeline.bench.intervals import differs, over_rounds, paired_ratio
from pipeline.bench.stats import Timeline
from pipeline.bench.visit import Visit
from pipeline.errors import ServerError, UsageError
from tests.unit.client.fake_triton import FakeTriton, piece, refusal


@dataclass
class Simulation:
    """Servers on one machine whose clock moves when one of them is visited.

    Attributes:
        token_s: Seconds per token of a stream, by server.
        now: The clock.
        log: Every visit, as server, level, requests and the time it began.
    """

    token_s: dict[str, float]
    now: float = 0.0
    log: list[tuple[str, int, int, float]] = field(default_factory=list)
    noise: random.Random = field(default_factory=lambda: random.Random(3))

    def moods(self) -> float:
        """The machine becomes three times slower in a minute, and scatters by 3 %."""
        return (1 + 2 * min(self.now / 60, 1)) * self.noise.uniform(0.97, 1.03)

    async def visit(self, name: str, level: int, requests: int) -> Visit:
        self.log.append((name, level, requests, self.now))
        load = []
        for _ in range(requests // level):
            took = 10 * self.token_s[name] * self.moods()
            load += [Timeline(self.now, ((self.now + took, 10),), 5)] * level
            self.now += took
        return Visit(level, tuple(load))

    def run(self, seconds: float, *, levels: tuple[int, ...] = (1, 8), seed: int = 0) -> Any:
        names = list(self.token_s)
        return asyncio.run(take_turns(names, levels, self.visit, seconds, seed))


def speeds(visits: list[Visit]) -> list[float]:
    return [visit.tokens_per_second for visit in visits]


def test_each_round_visits_every_server_at_every_level_once() -> None:
    simulated = Simulation({"a": 0.001, "b": 0.002, "c": 0.003})
    visits = simulated.run(3.0)
    places = [(name, level) for name, level, *_ in simulated.log]
    every = {(name, level) for name in "abc" for level in (1, 8)}
    rounds = [places[start : start + 6] for start in range(0, len(places), 6)]
    assert len(rounds) > LEAST_ROUNDS
    assert all(set(one) == every for one in rounds)
    # The first ones only show how long a visit takes.
    assert {place: len(made) for place, made in visits.items()} == dict.fromkeys(
        every, len(rounds) - 1
    )


def test_the_order_is_shuffled_the_servers_of_a_level_follow_each_other_and_a_seed_repeats_it() -> (
    None
):
    def order(seed: int) -> list[tuple[str, int]]:
        simulated = Simulation({"a": 0.001, "b": 0.001, "c": 0.001})
        simulated.run(30.0, seed=seed)
        return [(name, level) for name, level, *_ in simulated.log][6:]

    first = order(1)
    assert first == order(1) != order(2)
    rounds = [first[start : start + 6] for start in range(0, len(first), 6)]
    assert all(back == there[::-1] for there, back in zip(rounds[::2], rounds[1::2], strict=False))
    assert len(set(map(tuple, rounds[::2]))) > 2
    levels = [first[start : start + 3] for start in range(0, len(first), 3)]
    assert all(len({level for _, level in one}) == 1 for one in levels)
    assert {name for (name, _), *_ in levels} == set("abc")
    assert {level for (_, level), *_ in levels[::2]} == {1, 8}


def test_every_server_is_measured_for_the_time_asked_for_and_not_much_longer() -> None:
    """A server that is ten times slower gets a tenth of the requests, not ten times the time."""
    simulated = Simulation({"fast": 0.001, "slow": 0.01})
    visits = simulated.run(20.0)
    for name in ("fast", "slow"):
        measured = sum(visit.seconds for level in (1, 8) for visit in visits[name, level])
        assert 20 <= measured < 2.5 * 20
    requests = {name: count for name, level, count, _ in simulated.log[4:] if level == 1}
    assert requests["fast"] == pytest.approx(10 * requests["slow"], rel=0.3)
    assert len(visits["fast", 1]) <= 1.2 * WANTED_ROUNDS


def test_a_slow_server_gets_the_fewest_rounds_that_give_an_interval() -> None:
    visits = Simulation({"a": 60.0}).run(1.0)
    assert [len(made) for made in visits.values()] == [LEAST_ROUNDS, LEAST_ROUNDS]
    assert {len(visit.load) for visit in visits["a", 8]} == {8}


def test_a_run_ends_also_where_requests_take_no_time() -> None:
    """The machine was a million times slower while the first visits showed how long they take."""

    class Spring(Simulation):
        def moods(self) -> float:
            return 1e6 if len(self.log) <= 2 else 1.0

    visits = Spring({"a": 1e-7}).run(1000.0)
    assert len(visits["a", 1]) == MOST_ROUNDS


@pytest.mark.parametrize(("factor", "different"), [(1.0, False), (1.25, True)])
def test_a_machine_that_grows_slower_hides_no_difference_and_makes_none(
    factor: float, different: bool
) -> None:
    simulated = Simulation({"a": 0.001, "b": 0.001 / factor})
    visits = simulated.run(25.0, levels=(1,))
    one, other = speeds(visits["a", 1]), speeds(visits["b", 1])
    alone = over_rounds(one)
    assert max(one) > 2 * min(one)
    ratio = paired_ratio(other, one)
    assert differs(ratio) is different
    assert ratio.low <= factor <= ratio.high
    assert ratio.high / ratio.low < 0.8 * alone.high / alone.low


class Watched:
    """A fake server that keeps account of how many requests all servers have at a time."""

    running: ClassVar[Counter[str]] = Counter()
    together: ClassVar[set[frozenset[str]]] = set()
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str, token_s: float) -> None:
        self.name, self.token_s = name, token_s

    def __call__(self, asked: Any, _context: Any) -> Iterator[Any]:
        with self.lock:
            self.running[self.name] += 1
            self.together.add(frozenset(+self.running))
        tokens = asked.one("max_tokens")
        for number in range(tokens):
            time.sleep(self.token_s)
            last = number == tokens - 1
            words = len(asked.prompt.split())
            # Its client knows that a stream has ended before its generator does.
            if last:
                with self.lock:
                    self.running[self.name] -= 1
            yield piece("x", final=last, num_input_tokens=words, num_output_tokens=1)


@pytest.fixture
def watched() -> Iterator[dict[str, str]]:
    """Two equal servers, and one that is three times slower."""
    Watched.running.clear()
    Watched.together.clear()
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(FakeTriton(Watched(name, token_s))).url
            for name, token_s in (("one", 0.006), ("same", 0.006), ("slow", 0.018))
        }


def test_servers_are_compared_and_those_not_visited_are_idle(watched: dict[str, str]) -> None:
    told: list[tuple[int, float]] = []
    found = measure_interleaved(
        watched,
        baseline="one",
        concurrency=(1, 3),
        seconds=1.5,
        output_tokens=6,
        input_tokens=40,
        on_round=lambda number, share: told.append((number, share)),
    )
    assert json.loads(json.dumps(found)) == found
    assert Watched.together == {frozenset({name}) for name in watched}
    assert (found["baseline"], found["seconds"], found["seed"]) == ("one", 1.5, 0)
    assert [number for number, _ in told] == list(range(1, found["rounds"] + 1))
    assert told[-1][1] == 1.0
    assert list(found["servers"]) == list(watched)
    for name, server in found["servers"].items():
        assert server["seconds"] >= 1.5
        assert [row["concurrency"] for row in server["measurements"]] == [1, 3]
        assert [row["concurrency"] for row in server["samples"]] == [1, 3]
        assert server["prefill_tokens_per_second"]["value"] > 0
        for row in server["measurements"]:
            assert len(row["by_round"]) == found["rounds"] >= LEAST_ROUNDS
            assert row["prefill_tokens_per_second"]["low"] > 0
            if name == "one":
                assert (row["ratio"], row["difference"], row["prefill_ratio"]) == (
                    None,
                    False,
                    None,
                )
    for row in found["servers"]["slow"]["measurements"]:
        assert row["difference"] is True
        # A third where this machine does nothing else; what it does slows both of them.
        assert 0.2 < row["ratio"]["low"] < row["ratio"]["high"] < 1
        # Of few requests, whose interval is as wide as this machine is busy.
        assert row["prefill_ratio"]["low"] < row["prefill_ratio"]["value"] < 1


def test_a_ratio_is_scipys_paired_test_of_the_rounds(watched: dict[str, str]) -> None:
    """Equal servers differ in one of twenty honest runs, so what is compared is the verdict."""
    stats = pytest.importorskip("scipy.stats")
    numpy = pytest.importorskip("numpy")
    found = measure_interleaved(
        watched, baseline="one", concurrency=(2,), seconds=0.5, output_tokens=4
    )
    rows = {name: server["measurements"][0] for name, server in found["servers"].items()}
    for name in ("same", "slow"):
        logs = [numpy.log(rows[of]["by_round"]) for of in (name, "one")]
        paired = stats.ttest_rel(*logs)
        interval = numpy.exp(paired.confidence_interval(0.95))
        ratio = rows[name]["ratio"]
        assert (ratio["low"], ratio["high"]) == pytest.approx(tuple(interval), rel=1e-3)
        if abs(paired.pvalue - 0.05) > 1e-3:
            assert rows[name]["difference"] is bool(paired.pvalue < 0.05)
    assert rows["slow"]["difference"]


@pytest.mark.parametrize("breaks_after", [0, 30])
def test_a_server_that_fails_is_named(breaks_after: int) -> None:
    served = Counter[str]()

    def breaks(asked: Any, context: Any) -> Any:
        served["b"] += 1
        if served["b"] > breaks_after:
            return [refusal("the engine stopped working")]
        return Watched("b", 0.001)(asked, context)

    with (
        FakeTriton(Watched("a", 0.001)) as good,
        FakeTriton(breaks) as bad,
        pytest.raises(ServerError, match="the server of int4 could not be measured") as caught,
    ):
        measure_interleaved(
            {"float16": good.url, "int4": bad.url},
            baseline="float16",
            concurrency=(2,),
            seconds=5,
            output_tokens=2,
        )
    assert "the engine stopped working" in str(caught.value)
    assert caught.value.as_dict()["error"] == "ServerFailed"


def test_nobody_there_is_named_too() -> None:
    with pytest.raises(ServerError, match="the server of gone could not be measured: no Triton"):
        measure_interleaved({"gone": "127.0.0.1:1"}, baseline="gone", seconds=1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"baseline": "x"}, "the baseline x is none of the servers"),
        ({"servers": {}}, "the number of servers must be at least 1, not 0"),
        ({"seconds": 0}, "seconds must be above 0, not 0"),
        ({"seconds": float("nan")}, "seconds must be above 0, not nan"),
        ({"concurrency": (4, 0)}, "concurrency must be at least 1, not 0"),
        ({"concurrency": ()}, "concurrency must be at least 1, not 0"),
        ({"prompts": ()}, "the number of prompts must be at least 1, not 0"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_asked(
    wrong: dict[str, Any], told: str
) -> None:
    given: dict[str, Any] = {"servers": {"a": "127.0.0.1:1"}, "baseline": "a", **wrong}
    with pytest.raises(UsageError, match=told):
        measure_interleaved(given.pop("servers"), **given)
