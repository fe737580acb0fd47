"""Which server a request goes to."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.load import Load
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.fleet.prefixes import Remembered, chain_of
from pipeline.gateway.fleet.routing import Candidate, choose

from .scripted import QUICK, Scripted, ended, greedy_text, read, until

BLOCK = QUICK.block


def prompt(number: int, length: int = 2 * BLOCK, *, beginning: int = 0) -> tuple[int, ...]:
    """Prompts with one beginning of a block, and what follows of their own."""
    head = [beginning + 1] * BLOCK
    return (*head, *[number + 1000] * (length - BLOCK))


@asynccontextmanager
async def fleet_of(count: int, policy: Policy = QUICK) -> AsyncIterator[tuple[Fleet, list[Any]]]:
    fleet, engines = Fleet(policy), [Scripted() for _ in range(count)]
    for number, engine in enumerate(engines):
        fleet.add(f"server-{number}", engine)
    try:
        assert await fleet.ready()
        yield fleet, engines
    finally:
        await fleet.close()


async def opened(fleet: Fleet, asked: Generation) -> AsyncIterator[Tokens]:
    """A stream that has begun."""
    source = fleet.generate(asked)
    await anext(source)
    return source


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def asks(engines: list[Any]) -> list[int]:
    return [len(engine.asked) for engine in engines]


def test_prompts_with_one_beginning_go_to_one_server() -> None:
    async def work() -> None:
        async with fleet_of(4) as (fleet, engines):
            for number in range(10):
                await read(fleet.generate(Generation(prompt(number), 4)))
            assert sorted(asks(engines)) == [0, 0, 0, 10]
            assert {by for _, by in fleet.counts.routed} == {"load", "prefix"}

    run(work())


def test_different_beginnings_are_spread_and_each_stays_where_it_was() -> None:
    async def work() -> None:
        async with fleet_of(3) as (fleet, engines):
            for _ in range(3):
                for beginning in range(30):
                    await read(fleet.generate(Generation(prompt(0, beginning=beginning), 1)))
            homes = [Counter(asked.prompt[0] for asked in engine.asked) for engine in engines]
            assert all(set(home.values()) == {3} for home in homes)
            assert sum(map(len, homes)) == 30
            assert all(homes)

    run(work())


def test_the_longest_beginning_decides() -> None:
    async def work() -> None:
        async with fleet_of(2) as (fleet, engines):
            # Both begin alike; each server gets one of them.
            for number, other in ((1, "server-1"), (2, "server-0")):
                fleet.drain(other)
                await read(fleet.generate(Generation(prompt(number, 4 * BLOCK), 4)))
                fleet.drain(other, draining=False)
            assert asks(engines) == [1, 1]
            home = {engine.asked[0].prompt[-1]: engine for engine in engines}
            for number in (2, 1, 1, 2):
                asked = Generation((*prompt(number, 4 * BLOCK), 5, 6), 1)
                await read(fleet.generate(asked))
                assert home[number + 1000].asked[-1] == asked

    run(work())


@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
def test_no_server_has_more_than_its_share_for_the_sake_of_a_beginning(factor: float) -> None:
    """Every load stays within the bound of consistent hashing with bounded loads."""

    async def work() -> None:
        async with fleet_of(4, replace(QUICK, load_factor=factor)) as (fleet, _):
            open_ = []
            for number in range(40):
                open_.append(await opened(fleet, Generation(prompt(number), 4)))
                loads = [state.streams for state in fleet.replicas()]
                assert max(loads) <= math.ceil(factor * sum(loads) / len(loads))
            for source in open_:
                await source.aclose()

    run(work())


def test_the_bound_lets_a_beginning_stay_where_it_is_known() -> None:
    """With a wide one nothing spills over; the bound, and nothing else, spreads them."""
    known = Candidate("known", 3.0, matched=2)
    others = [Candidate(name, 0.0) for name in ("a", "b", "c")]
    assert choose([known, *others], b"", 4.0) == ("known", "prefix")
    assert choose([known, *others], b"", 3.9)[1] == "prefix"
    assert choose([known, *others], b"", 2.0)[1] == "load"


def test_a_waiting_queue_is_not_joined_for_a_cache() -> None:
    known = Candidate("known", 4.0, 8.0, waiting=1.0, matched=9)
    other = Candidate("other", 4.0, 8.0)
    assert choose([known, other], b"", 2.0) == ("other", "load")
    assert choose([known], b"", 2.0) == ("known", "prefix")


def test_the_least_loaded_is_that_with_the_most_left() -> None:
    small, large = Candidate("small", 6.0, 8.0), Candidate("large", 20.0, 64.0)
    assert choose([small, large], b"", 2.0) == ("large", "load")
    # One that does not say what it takes cannot be compared so.
    assert choose([small, replace(large, capacity=None)], b"", 2.0) == ("small", "load")
    full = Candidate("full", 3.0, 8.0, kv=0.9)
    assert choose([full, Candidate("free", 4.0, 8.0, kv=0.1)], b"", 2.0) == ("free", "load")


def test_gateways_agree_without_talking() -> None:
    """Equals are told apart by a hash of beginning and name: one lost moves its own alone."""
    servers = [Candidate(f"server-{number}", 0.0) for number in range(5)]
    keys = [bytes([number, 1]) for number in range(200)]
    first = {key: choose(servers, key, 1.25)[0] for key in keys}
    again = {key: choose(servers[::-1], key, 1.25)[0] for key in keys}
    assert first == again
    counted = Counter(first.values())
    assert len(counted) == 5
    assert max(counted.values()) < 80
    without = {key: choose(servers[1:], key, 1.25)[0] for key in keys}
    moved = {key for key in keys if without[key] != first[key]}
    assert moved == {key for key in keys if first[key] == "server-0"}


def test_beginnings_are_named_by_all_that_is_in_them() -> None:
    one = chain_of([*range(96)], 32, 64)
    assert len(one) == 3
    other = chain_of([*range(32), 7, *range(33, 96)], 32, 64)
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, False]
    assert chain_of([*range(95)], 32, 64) == one[:2]
    assert chain_of([*range(31)], 32, 64) == ()
    assert len(chain_of([0] * 10_000, 32, 64)) == 64
    # The same block at another place is another beginning.
    assert len(set(chain_of([0] * 320, 32, 64))) == 10


def test_what_is_remembered_is_bounded_and_the_beginning_last_forgotten() -> None:
    memory = Remembered(4)
    chain = chain_of([*range(96)], 32, 64)
    memory.note(chain)
    assert memory.matched(chain) == 3
    memory.note(chain_of([*range(500, 564)], 32, 64))
    assert memory.matched(chain) == 2
    memory.forget()
    assert memory.matched(chain) == 0


def test_a_server_that_drains_gets_nothing_and_finishes_what_it_has() -> None:
    async def work() -> None:
        async with fleet_of(2) as (fleet, engines):
            asked = Generation(prompt(1), 10)
            source = await opened(fleet, asked)
            home = next(state.name for state in fleet.replicas() if state.streams)
            fleet.drain(home)
            for number in range(5):
                await read(fleet.generate(Generation(prompt(number), 2)))
            assert sorted(asks(engines)) == [1, 5]
            assert len(await read(source)) == 9
            assert not fleet.counts.resumes
            fleet.drain(home, draining=False)
            idle = next(state.name for state in fleet.replicas() if state.name != home)
            fleet.drain(idle)
            assert await fleet.ready()
            await read(fleet.generate(asked))
            assert sorted(asks(engines)) == [2, 5]
            fleet.drain(home)
            assert not await fleet.ready()

    run(work())


def test_a_server_that_is_retired_leaves_when_it_is_idle() -> None:
    async def work() -> None:
        async with fleet_of(2) as (fleet, engines):
            source = await opened(fleet, Generation(prompt(1), 10))
            home = next(state.name for state in fleet.replicas() if state.streams)
            engine = engines[int(home[-1])]
            fleet.retire(home)
            await asyncio.sleep(0.01)
            assert len(fleet.replicas()) == 2
            assert not engine.closed
            assert len(await read(source)) == 9
            await until(lambda: len(fleet.replicas()) == 1)
            await until(lambda: engine.closed)
            assert not fleet.counts.resumes

    run(work())


def test_streams_of_a_lost_server_go_on_elsewhere_at_once_and_it_is_used_again() -> None:
    async def work() -> None:
        async with fleet_of(2) as (fleet, engines):
            asked = [Generation(prompt(0, beginning=number), 30) for number in range(8)]
            sources = [await opened(fleet, each) for each in asked]
            assert [state.streams for state in fleet.replicas()] == [4, 4]
            lost_one, other = engines
            lost_one.is_ready = False
            lost_one.breaks()
            rest = await asyncio.gather(*map(read, sources))
            for each, text in zip(asked, rest, strict=True):
                assert text == greedy_text(each.prompt, 30)[1:]
            assert fleet.counts.resumes.total() == 4
            assert asks(engines) == [4, 8]
            assert [state.ready for state in fleet.replicas()] == [False, True]
            # While it is away nobody waits for it.
            await read(fleet.generate(asked[0]))
            assert asks(engines) == [4, 9]
            lost_one.is_ready = True
            await until(lambda: fleet.replicas()[0].ready)
            # Its cache is gone, so that it knows no beginning; it is used because it is idle.
            source = await opened(fleet, Generation(prompt(0, beginning=90), 30))
            again = await opened(fleet, Generation(prompt(0, beginning=91), 30))
            assert asks(engines) == [5, 10]
            assert other.open == lost_one.open == 1
            for left in (source, again):
                await left.aclose()  # type: ignore[attr-defined]

    run(work())


def test_the_first_streams_wait_until_each_server_has_been_asked() -> None:
    async def work() -> None:
        class Slow(Scripted):
            async def ready(self) -> bool:
                await answers.wait()
                return True

        answers = asyncio.Event()
        fleet, engines = Fleet(QUICK), [Scripted(), Slow()]
        for number, engine in enumerate(engines):
            fleet.add(f"server-{number}", engine)
        tasks = [
            asyncio.create_task(read(fleet.generate(Generation((number,), 5))))
            for number in range(6)
        ]
        await asyncio.sleep(0.01)
        assert asks(engines) == [0, 0]
        answers.set()
        await asyncio.gather(*tasks)
        assert asks(engines) == [3, 3]
        # One that is added later holds nobody up.
        answers.clear()
        fleet.add("server-2", Slow())
        await read(fleet.generate(Generation((1,), 5)))
        answers.set()
        await fleet.close()

    run(work())


def test_a_server_says_how_busy_it_is() -> None:
    async def work() -> None:
        async with fleet_of(2) as (fleet, engines):
            one, other = fleet._roster._replicas.values()
            one.load, other.load = Load(6.0, 2.0, 8.0, 0.5), Load(3.0, 0.0, 8.0, 0.1)
            sources = [await opened(fleet, Generation((number,), 9)) for number in range(4)]
            # Other gateways' streams count: 8 against 3, and each of ours that has begun since.
            assert asks(engines) == [0, 4]
            assert [state.requests for state in fleet.replicas()] == [8.0, 7.0]
            # One that says nothing makes all of them count as this fleet sees them.
            other.load = None
            await read(fleet.generate(Generation((9,), 1)))
            assert asks(engines) == [1, 4]
            for source in sources:
                await source.aclose()  # type: ignore[attr-defined]

    run(work())


def test_a_stream_breaks_at_once_when_its_server_is_taken_out() -> None:
    async def work() -> None:
        async with fleet_of(2) as (fleet, engines):
            asked = Generation(prompt(1), 30)
            source = await opened(fleet, asked)
            home = next(state.name for state in fleet.replicas() if state.streams)
            engine = engines[int(home[-1])]
            engine.hold.clear()
            task = asyncio.create_task(read(source))
            await asyncio.sleep(0)
            await fleet.remove(home)
            engine.breaks()
            engine.hold.set()
            assert await task == greedy_text(asked.prompt, 30)[1:]
            await ended(task)

    run(work())
