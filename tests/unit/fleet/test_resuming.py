"""A stream whose server is lost goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.policy import Policy
from trtllm_client import (
    Cancelled,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)

from .scripted import QUICK, SAMPLED, Scripted, greedy_text, lost, read, sampled_text, until

PROMPT = (3, 1, 4, 1, 5)
ASKED = Generation(PROMPT, 40, {}, "story")
TEXT = greedy_text(PROMPT, 40)


def with_fleet(
    work: Callable[[Fleet], Coroutine[Any, Any, None]],
    engines: Callable[[], list[Scripted]],
    policy: Policy = QUICK,
) -> list[Scripted]:
    """Runs something with a fleet; returns its engines."""
    made: list[Scripted] = []

    async def run() -> None:
        fleet = Fleet(policy)
        made.extend(engines())
        for number, engine in enumerate(made):
            fleet.add(f"server-{number}", engine)
        try:
            await work(fleet)
        finally:
            await fleet.close()
        assert all(engine.closed and engine.open == 0 for engine in made)

    asyncio.run(run())
    return made


def failing(*fails: tuple[int, Exception] | None, **more: Any) -> Callable[[], list[Scripted]]:
    """One engine that fails so."""

    def make() -> list[Scripted]:
        engine = Scripted()
        engine.fails = list(fails)
        for name, value in more.items():
            setattr(engine, name, value)
        return [engine]

    return make


def expect(asked: Generation, text: list[int]) -> Callable[[Fleet], Awaitable[None]]:
    async def work(fleet: Fleet) -> None:
        assert await read(fleet.generate(asked)) == text

    return work


@pytest.mark.parametrize(
    "error",
    [lost(), ServerFailed("the engine stopped working"), Cancelled("the request was cancelled")],
    ids=lambda error: type(error).__name__,
)
def test_a_greedy_text_is_continued(error: ClientError) -> None:
    async def work(fleet: Fleet) -> None:
        got = [tokens async for tokens in fleet.generate(ASKED)]
        assert [token for tokens in got for token in tokens.ids] == TEXT
        # Each token has the log probability that came with it, once.
        scores = [score for tokens in got for score in tokens.log_probs or ()]
        assert scores == [-float(token) for token in TEXT]
        assert dict(fleet.counts.resumes) == {("resumed", "continued"): 1}
        assert fleet.counts.stalls == 1
        assert fleet.counts.longest_stall_s > 0

    (engine,) = with_fleet(work, failing((25, error)))
    first, second = engine.asked
    assert first == ASKED
    kept = 25 - QUICK.overlap
    assert second.prompt == PROMPT + tuple(TEXT[:kept])
    assert second.max_tokens == 40 - kept
    # The server may still be busy with the first one.
    assert second.request_id != first.request_id


def test_a_sampled_text_is_made_again_with_its_seed() -> None:
    asked = replace(ASKED, inputs=SAMPLED)

    async def work(fleet: Fleet) -> None:
        assert await read(fleet.generate(asked)) == sampled_text(PROMPT, 40, 5)
        assert dict(fleet.counts.resumes) == {("resumed", "replayed"): 1}

    (engine,) = with_fleet(work, failing((25, lost())))
    assert [(a.prompt, a.max_tokens, a.inputs) for a in engine.asked] == 2 * [(PROMPT, 40, SAMPLED)]


@pytest.mark.parametrize("inputs", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_it_may_break_anywhere_and_often(inputs: dict[str, Any]) -> None:
    """Whatever is lost when, and however tokens come together, the text is the same."""
    draw = random.Random(7)
    asked = Generation(PROMPT, 60, inputs)
    text = sampled_text(PROMPT, 60, 5) if inputs else greedy_text(PROMPT, 60)
    policy = replace(QUICK, resumes=20)
    for _ in range(30):
        breaks = [(draw.randrange(61), lost()) for _ in range(draw.randrange(1, 12))]
        chunk = draw.randrange(1, 9)
        with_fleet(expect(asked, text), failing(*breaks, chunk=chunk), policy)


def test_a_text_that_was_whole_but_for_its_end_asks_nobody_again() -> None:
    (engine,) = with_fleet(expect(ASKED, TEXT), failing((40, lost())))
    assert len(engine.asked) == 1


def test_a_text_that_comes_out_otherwise_at_once_is_made_again_in_steps() -> None:
    """A tie that is decided otherwise when all tokens are computed at once."""

    async def work(fleet: Fleet) -> None:
        assert await read(fleet.generate(ASKED)) == TEXT
        assert dict(fleet.counts.resumes) == {
            ("differed", "continued"): 1,
            ("resumed", "replayed"): 1,
        }

    with_fleet(work, failing((25, lost()), prefill_differs=1))


@pytest.mark.parametrize("inputs", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_another_model_never_ends_a_text_that_it_did_not_begin(inputs: dict[str, Any]) -> None:
    asked = replace(ASKED, inputs=inputs)
    text = sampled_text(PROMPT, 40, 5) if inputs else TEXT

    async def work(fleet: Fleet) -> None:
        got: list[int] = []

        async def read_all() -> None:
            async for tokens in fleet.generate(asked):
                got.extend(tokens.ids)

        with pytest.raises(ServerFailed, match=r"cannot go on as it began"):
            await read_all()
        assert got == text[:25]
        assert fleet.counts.resumes["differed", "replayed"] == 1

    def engines() -> list[Scripted]:
        one, other = Scripted(), Scripted(weights=1)
        one.fails, one.dies_at_failure = [(25, lost())], True
        other.is_ready = False
        return [one, other]

    async def first_then_other(fleet: Fleet) -> None:
        task = asyncio.create_task(work(fleet))
        await until(lambda: fleet.replicas()[0].ready is False and made[0].asked)
        made[1].is_ready = True
        await task

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.extend(engines())
        return made

    with_fleet(first_then_other, lambda: list(make()))


def test_a_shorter_text_is_another_text() -> None:
    class Shorter(Scripted):
        def text(self, asked: Generation) -> list[int]:
            whole = super().text(asked)
            return whole[:10] if self.asked[1:] else whole

    def make() -> list[Scripted]:
        engine = Shorter()
        engine.fails = [(25, lost())]
        return [engine]

    async def work(fleet: Fleet) -> None:
        with pytest.raises(ServerFailed, match="differs from token 10 on"):
            await read(fleet.generate(replace(ASKED, inputs=SAMPLED)))

    with_fleet(work, make)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("guided_decoding_guide: no token can follow"),
        DeadlineExceeded("no answer in time"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_the_requests_own_fault_is_not_tried_again(error: ClientError) -> None:
    async def work(fleet: Fleet) -> None:
        with pytest.raises(type(error), match=error.what):
            await read(fleet.generate(ASKED))
        assert not fleet.counts.resumes

    engine, other = with_fleet(work, lambda: [*failing((10, error))(), *failing((10, error))()])
    assert len(engine.asked) + len(other.asked) == 1


def test_a_full_server_passes_a_request_on_and_all_full_refuse_it() -> None:
    busy = ServerBusy("the server's queue is full")

    async def work(fleet: Fleet) -> None:
        assert await read(fleet.generate(ASKED)) == TEXT
        with pytest.raises(ServerBusy, match="queue is full"):
            await read(fleet.generate(ASKED))
        assert not fleet.counts.resumes

    def make() -> list[Scripted]:
        one, other = Scripted(), Scripted()
        one.fails = [(0, busy), (0, busy)]
        other.fails = [(0, busy), (0, busy)]
        return [one, other]

    async def once(fleet: Fleet) -> None:
        with pytest.raises(ServerBusy, match="queue is full"):
            await read(fleet.generate(ASKED))

    engines = with_fleet(once, make)
    assert [len(engine.asked) for engine in engines] == [1, 1]

    def one_busy() -> list[Scripted]:
        engines = make()
        engines[0].fails = [(0, busy)] * 9
        engines[1].fails = [None, (0, busy)]
        return engines

    with_fleet(work, one_busy)


def test_a_text_that_has_begun_waits_for_a_place() -> None:
    """When a server is back, all its streams are, and more than its queue takes at once."""
    busy = ServerBusy("the server's queue is full")
    (engine,) = with_fleet(
        expect(ASKED, TEXT), failing((25, lost()), (0, busy), (0, busy)), replace(QUICK, resumes=1)
    )
    assert len(engine.asked) == 4


def test_so_many_times_and_not_once_more() -> None:
    async def work(fleet: Fleet) -> None:
        with pytest.raises(ConnectionFailed, match="the connection broke"):
            await read(fleet.generate(ASKED))
        assert fleet.counts.resumes["given_up", "none"] == 1

    (engine,) = with_fleet(work, failing(*[(9, lost())] * 9), replace(QUICK, resumes=3))
    assert len(engine.asked) == 4


def test_it_can_be_switched_off() -> None:
    async def work(fleet: Fleet) -> None:
        with pytest.raises(ConnectionFailed, match="the connection broke"):
            await read(fleet.generate(ASKED))
        assert not fleet.counts.resumes

        # Nor is a server waited for that is away.
        await until(lambda: fleet.replicas()[0].ready)
        made[0].is_ready = False
        await until(lambda: not fleet.replicas()[0].ready)
        with pytest.raises(ConnectionFailed, match="no server is ready"):
            await read(fleet.generate(ASKED))

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.extend(failing((20, lost()))())
        return made

    with_fleet(work, lambda: list(make()), replace(QUICK, resumes=0))
    assert len(made[0].asked) == 1


def test_a_server_that_comes_back_is_waited_for() -> None:
    async def work(fleet: Fleet) -> None:
        task = asyncio.create_task(read(fleet.generate(ASKED)))
        await until(lambda: not made[0].is_ready)
        # Nothing is asked of a server that says that it is not ready.
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(made[0].asked) == 1
        made[0].is_ready = True
        assert await task == TEXT

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.extend(failing((25, lost()), dies_at_failure=True)())
        return made

    with_fleet(work, lambda: list(make()))


def test_waiting_has_an_end() -> None:
    policy = replace(QUICK, wait_s=0.05)

    async def work(fleet: Fleet) -> None:
        with pytest.raises(ConnectionFailed, match="the connection broke"):
            await read(fleet.generate(ASKED))
        assert fleet.counts.resumes["given_up", "none"] == 1
        # Who comes when it has been so for long does not wait again.
        began = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionFailed, match="no server is ready"):
            await read(fleet.generate(ASKED))
        assert asyncio.get_running_loop().time() - began < policy.wait_s

    with_fleet(work, failing((25, lost()), dies_at_failure=True), policy)


def test_a_frozen_server_is_left() -> None:
    """Its connection does not break, and nothing comes: as of a machine that was cut off."""
    policy = replace(QUICK, silent_s=0.01)

    async def work(fleet: Fleet) -> None:
        got: list[int] = []
        async for tokens in fleet.generate(ASKED):
            got += tokens.ids
            if len(got) == 10:
                asked = next(engine for engine in made if engine.asked)
                asked.hold.clear()
                asked.is_ready = False
        assert got == TEXT
        assert fleet.counts.resumes["resumed", "continued"] == 1
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelled()

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.extend([Scripted(), Scripted()])
        return made

    with_fleet(work, lambda: list(make()), policy)
    assert [engine.open for engine in made] == [0, 0]


def test_a_server_that_stops_in_good_order_keeps_its_streams() -> None:
    async def work(fleet: Fleet) -> None:
        got: list[int] = []
        async for tokens in fleet.generate(ASKED):
            got += tokens.ids
            made[0].is_ready = made[1].is_ready = False
            await asyncio.sleep(0.001)
        assert got == TEXT
        assert not fleet.counts.resumes

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.extend([Scripted(), Scripted()])
        return made

    with_fleet(work, lambda: list(make()))


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_who_leaves_ends_the_request_at_the_server(how: str) -> None:
    async def work(fleet: Fleet) -> None:
        source = fleet.generate(ASKED)
        first = await anext(source)
        assert list(first.ids) == TEXT[:1]
        (engine,) = made
        assert engine.open == 1
        if how == "closed":
            await source.aclose()  # type: ignore[attr-defined]
        else:
            engine.hold.clear()
            task = asyncio.ensure_future(anext(source))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert engine.open == 0
        assert fleet.replicas()[0].streams == 0

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.append(Scripted())
        return made

    with_fleet(work, lambda: list(make()))


def test_scores_of_the_prompt_come_once() -> None:
    class Scoring(Scripted):
        async def generate(self, asked: Generation) -> Any:
            first = asked.inputs.get("return_prompt_log_probs")
            async for tokens in super().generate(asked):
                yield Tokens(tokens.ids, tokens.log_probs, (-1.0,) if first else None)
                first = False

    def make() -> list[Scripted]:
        engine = Scoring()
        engine.fails = [(25, lost())]
        return [engine]

    async def work(fleet: Fleet) -> None:
        asked = replace(ASKED, inputs={"return_prompt_log_probs": True})
        got = [tokens async for tokens in fleet.generate(asked)]
        assert [tokens.prompt_log_probs for tokens in got][:2] == [(-1.0,), None]
        assert sum(tokens.prompt_log_probs is not None for tokens in got) == 1
        assert [token for tokens in got for token in tokens.ids] == TEXT

    (engine,) = with_fleet(work, make)
    assert "return_prompt_log_probs" not in engine.asked[1].inputs


def test_a_text_with_a_drawn_seed_goes_on_with_another_one() -> None:
    asked = replace(ASKED, inputs=SAMPLED, seed_is_free=True)

    async def work(fleet: Fleet) -> None:
        got = await read(fleet.generate(asked))
        second = made[0].asked[1]
        assert second.prompt == PROMPT + tuple(got[:25])
        seed = second.inputs["seed"]
        assert isinstance(seed, int)
        assert got[:25] == sampled_text(PROMPT, 40, 5)[:25]
        assert got[25:] == sampled_text(second.prompt, 15, seed)
        assert dict(fleet.counts.resumes) == {("resumed", "continued"): 1}

    made: list[Scripted] = []

    def make() -> list[Scripted]:
        made.extend(failing((25, lost()))())
        return made

    with_fleet(work, lambda: list(make()))


def test_a_text_that_is_too_long_for_a_prompt_is_made_again() -> None:
    class Short(Scripted):
        async def generate(self, asked: Generation) -> Any:
            if len(asked.prompt) > 10:
                self.asked.append(asked)
                raise InvalidRequest("the prompt has more tokens than the engine takes")
            async for tokens in super().generate(asked):
                yield tokens

    def make() -> list[Scripted]:
        engine = Short()
        engine.fails = [(25, lost())]
        return [engine]

    (engine,) = with_fleet(expect(ASKED, TEXT), make)
    assert [len(asked.prompt) for asked in engine.asked] == [5, 22, 5]


def test_a_server_that_is_not_itself_yet_is_asked_again() -> None:
    """What was served before is no wrong request, such as that for a model which is not loaded."""
    unknown = InvalidRequest("Request for unknown model")
    (engine,) = with_fleet(
        expect(replace(ASKED, inputs=SAMPLED), sampled_text(PROMPT, 40, 5)),
        failing((25, lost()), (0, unknown), (0, unknown)),
    )
    assert len(engine.asked) == 4


DRAWN = {**ASKED.__dict__, "inputs": SAMPLED, "seed_is_free": True}


@pytest.mark.parametrize(
    "asked", [ASKED, Generation(**DRAWN)], ids=["greedy", "drawn with another seed"]
)
def test_a_text_goes_on_with_the_build_that_began_it_and_no_other(asked: Generation) -> None:
    """The texts of both builds are the same here, so that nothing else could tell them apart."""
    one, other, same = Scripted(), Scripted(ready=False), Scripted(ready=False)
    one.build, other.build, same.build = "a", "b", "a"
    one.fails, one.dies_at_failure = [(25, lost())], True

    async def work(fleet: Fleet) -> None:
        task = asyncio.create_task(read(fleet.generate(asked)))
        await until(lambda: fleet.replicas()[0].ready is False and one.asked)
        other.is_ready = True
        await until(lambda: fleet.replicas()[1].ready)
        # A new text may have that one, and this one waits.
        await read(fleet.generate(replace(ASKED, request_id="new")))
        assert [request.request_id for request in other.asked] == ["new"]
        assert not task.done()
        same.is_ready = True
        assert len(await task) == 40
        assert len(same.asked) == 1

    with_fleet(work, lambda: [one, other, same])


def test_a_text_whose_server_comes_back_with_another_build_ends_at_once() -> None:
    class Other(Scripted):
        """Another build is there once its server was lost."""

        async def ready(self) -> bool:
            self.build = f"build {self.fails == []}"
            return True

    engine = Other()
    engine.fails = [(25, lost())]

    async def work(fleet: Fleet) -> None:
        with pytest.raises(ServerFailed, match="cannot go on as it began") as told:
            await read(fleet.generate(Generation(**DRAWN)))
        assert told.value.why is not None
        assert "lost after 25 tokens, and all servers have another build" in told.value.why
        assert dict(fleet.counts.resumes) == {("given_up", "none"): 1}
        assert await read(fleet.generate(ASKED)) == TEXT

    with_fleet(work, lambda: [engine])


def test_the_time_of_a_request_goes_on_over_all_its_servers() -> None:
    engine = Scripted()
    engine.fails = [(5, lost()), (5, lost())]

    async def work(fleet: Fleet) -> None:
        assert await read(fleet.generate(ASKED)) == TEXT

    with_fleet(work, lambda: [engine], replace(QUICK, timeout_s=100.0))
    given = [asked.timeout_s for asked in engine.asked]
    assert len(given) == 3
    assert 100.0 >= given[0] > given[1] > given[2] > 0  # type: ignore[operator]


def test_a_request_waits_for_no_server_beyond_its_own_time() -> None:
    async def work(fleet: Fleet) -> None:
        with pytest.raises(DeadlineExceeded, match=r"not answered within 0\.05 s"):
            await read(fleet.generate(ASKED))

    engine = failing((25, lost()), dies_at_failure=True)
    with_fleet(work, engine, replace(QUICK, timeout_s=0.05))
