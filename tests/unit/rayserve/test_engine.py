"""What the gateway sees of a replica, whatever happens to it; Ray's handle is a stand-in.

Where Ray is installed the errors are of its own classes, so that a name that it dropped is found.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.util import find_spec
from typing import Any

import pytest

from pipeline.gateway.engine import Generation, Tokens
from pipeline.rayserve.engine import RayEngine
from pipeline.rayserve.failures import FULL, LOST
from pipeline.rayserve.wire import pack_error, pack_tokens, unpack_request
from trtllm_client import (
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)

ASKED = Generation((1, 2), 3, {"temperature": 0.5, "end_id": 2}, "a7")


class Answer:
    """What a streaming handle returns: items, and then an error where there is one."""

    def __init__(self, items: list[Any], error: BaseException | None = None) -> None:
        self.items, self.error = list(items), error
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        if self.items:
            return self.items.pop(0)
        raise self.error or StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Ray's handle of a deployment, of which one call is made."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.chosen: dict[str, Any] = {}
        self.request: Any = None

    def options(self, **chosen: Any) -> Handle:
        self.chosen = chosen
        return self

    def remote(self, request: Any) -> Answer:
        self.request = request
        return self.answer


def engine_on(answer: Answer, running: Callable[[], int] = lambda: 1) -> RayEngine:
    return RayEngine(Handle(answer), running, "replicas")


async def collect(engine: RayEngine) -> list[Tokens]:
    return [tokens async for tokens in engine.generate(ASKED)]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def rays_error(name: str) -> type[Exception]:
    """Ray's class of this name, or one that looks like it where Ray is not installed."""
    module = "grpc.aio" if name == "AioRpcError" else "ray.exceptions"
    if find_spec("ray"):
        import grpc.aio

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what Ray itself still uses
            import ray.exceptions
            import ray.serve.exceptions

        for place in (ray.exceptions, ray.serve.exceptions, grpc.aio):
            if found := getattr(place, name, None):
                return type(name, (found,), {"__init__": lambda _: None, "__module__": module})
        pytest.fail(f"Ray has no {name}")
    return type(name, (Exception,), {"__module__": module})


def test_tokens_come_as_the_replica_sent_them() -> None:
    sent = [Tokens((5, 6), (-0.5, -1.0), (-2.0,)), Tokens((7,)), Tokens(())]
    handle = Handle(Answer([pack_tokens(tokens) for tokens in sent]))
    assert run(collect(RayEngine(handle, lambda: 1, "replicas"))) == sent
    assert handle.chosen == {"method_name": "generate", "stream": True}
    assert unpack_request(handle.request) == ASKED
    assert not handle.answer.cancelled


@pytest.mark.parametrize("name", sorted(LOST))
def test_a_replica_that_is_lost_is_a_connection_that_broke(name: str) -> None:
    answer = Answer([pack_tokens(Tokens((5,)))], rays_error(name)())
    got = []

    async def read() -> None:
        async for tokens in engine_on(answer).generate(ASKED):
            got.append(tokens)  # noqa: PERF401 -- what came before the error is what is looked at

    with pytest.raises(ConnectionFailed, match=rf"the replica was lost. Ray says {name}"):
        run(read())
    assert got == [Tokens((5,))]


@pytest.mark.parametrize("name", sorted(FULL))
def test_a_full_queue_is_a_busy_server(name: str) -> None:
    with pytest.raises(ServerBusy, match="all replicas are busy"):
        run(collect(engine_on(Answer([], rays_error(name)()))))


def test_what_a_replica_raised_is_named_and_not_repeated() -> None:
    with pytest.raises(ServerFailed, match="Ray says ValueError") as caught:
        run(collect(engine_on(Answer([], ValueError("my secret prompt")))))
    assert "secret" not in str(caught.value)


def test_an_error_of_ones_own_with_the_name_of_rays_is_no_lost_replica() -> None:
    own = type("RayActorError", (Exception,), {"__module__": "mine"})
    with pytest.raises(ServerFailed, match="the call of a replica failed"):
        run(collect(engine_on(Answer([], own()))))


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("the prompt is too long", where="127.0.0.1:1", why="a", fix="b"),
        ServerBusy("full"),
        DeadlineExceeded("late", why="slow"),
        ConnectionFailed("gone"),
    ],
)
def test_errors_of_the_server_arrive_as_they_are(error: ClientError) -> None:
    answer = Answer([pack_tokens(Tokens((5,))), pack_error(error)])
    with pytest.raises(type(error), match=error.what) as caught:
        run(collect(engine_on(answer)))
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("name", ["NewError", "Client", "annotations"])
def test_an_error_that_this_version_does_not_know_is_one_of_the_server(name: str) -> None:
    with pytest.raises(ServerFailed, match="something new"):
        run(collect(engine_on(Answer([(name, "something new", None, None, None)]))))


def test_a_reader_that_stops_early_cancels_at_the_replica() -> None:
    answer = Answer([pack_tokens(Tokens((n,))) for n in range(5)])

    async def read_one() -> None:
        stream = engine_on(answer).generate(ASKED)
        assert (await anext(stream)).ids == (0,)
        await stream.aclose()

    run(read_one())
    assert answer.cancelled
    assert len(answer.items) == 4


def test_a_task_that_is_cancelled_cancels_at_the_replica() -> None:
    class Silent(Answer):
        async def __anext__(self) -> Any:
            await asyncio.Event().wait()

    answer = Silent([])

    async def cancel() -> None:
        task = asyncio.create_task(collect(engine_on(answer)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await task

    run(cancel())
    assert answer.cancelled


def test_it_is_ready_while_a_replica_runs() -> None:
    assert run(engine_on(Answer([]), lambda: 2).ready()) is True
    assert run(engine_on(Answer([]), lambda: 0).ready()) is False


@pytest.mark.parametrize("name", ["RayActorError", "GetTimeoutError", "RayServeException"])
def test_what_ray_said_last_stands_while_it_says_nothing(name: str) -> None:
    answers: list[int | type[Exception]] = [rays_error(name), 0, rays_error(name), 2]

    def next_answer() -> int:
        answer = answers.pop(0)
        if isinstance(answer, int):
            return answer
        raise answer

    async def ask() -> list[bool]:
        engine = engine_on(Answer([]), next_answer)
        return [await engine.ready() for _ in range(4)]

    assert run(ask()) == [True, False, False, True]


def test_a_controller_that_is_slow_holds_nothing_up() -> None:
    release = threading.Event()

    def slow() -> int:
        release.wait(60)
        return 0

    async def ask() -> bool:
        engine = engine_on(Answer([]), slow)
        before = await engine.ready()
        release.set()
        while await engine.ready():
            await asyncio.sleep(0)
        return before

    assert run(ask()) is True


def test_a_mistake_of_ours_is_told_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> int:
        raise KeyError("nobody")

    assert run(engine_on(Answer([]), wrong).ready()) is True
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[0] is KeyError
