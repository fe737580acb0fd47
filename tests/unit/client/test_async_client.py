"""The asyncio client: what differs from the synchronous one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from tests.conftest import PROJECT
from tests.unit.client.fake_triton import FakeTriton, empty_final, piece, refusal
from tests.unit.client.test_client import endless, silent, story
from trtllm_client import (
    AsyncClient,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    ServerBusy,
    ServerFailed,
)
from trtllm_client._async_stream import AsyncStream
from trtllm_client._settings import Prepared
from trtllm_client._wire import new_message


def in_loop(answer, use, **settings):
    """Runs ``use(client, server)`` against a server that answers with ``answer``."""

    async def main():
        with FakeTriton(answer) as server:
            async with AsyncClient(server.url, **settings) as client:
                return await use(client, server)

    return asyncio.run(main())


def test_generate_and_stream():
    async def use(client, server):
        whole = await client.generate("Hi", max_tokens=4)
        async with client.stream("Hi") as stream:
            texts = [chunk.text async for chunk in stream]
        return whole, texts

    whole, texts = in_loop(story, use)
    assert whole.text == "".join(texts) == "Once upon a time"
    assert whole.finish_reason == "length"
    assert len(texts) == 3


def test_an_empty_final_response_is_seen():
    async def use(client, server):
        return [chunk.text async for chunk in client.stream("Hi")]

    assert in_loop(lambda *_: [piece("Once"), empty_final()], use) == ["Once"]


@pytest.mark.parametrize("leave", ["block", "break", "task", "cancel"])
def test_leaving_a_stream_early_reaches_the_server(leave):
    async def use(client, server):
        stream = client.stream("Hi")
        await anext(stream)
        if leave == "block":
            async with stream:
                pass
        elif leave == "break":
            async for _ in stream:
                break
            await stream.close()
        elif leave == "task":
            task = asyncio.create_task(stream.completion())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            stream.cancel()
        return await asyncio.to_thread(server.cancelled.wait, 5)

    assert in_loop(endless, use)


def test_cancel_wakes_the_task_that_waits():
    async def use(client, server):
        stream = client.stream("Hi")
        await anext(stream)
        asyncio.get_running_loop().call_later(0.1, stream.cancel)
        with pytest.raises(Cancelled, match="the request was cancelled"):
            await anext(stream)
        return [chunk async for chunk in stream]

    assert in_loop(silent, use) == []


def test_closing_the_client_ends_what_runs():
    async def use(client, server):
        waiting, idle = client.stream("Hi"), client.stream("Ho")
        for stream in (waiting, idle):
            await anext(stream)
        reading = asyncio.create_task(anext(waiting))
        await asyncio.sleep(0.05)
        await client.close()
        for ended in (reading, anext(idle)):
            with pytest.raises(Cancelled, match="the request was cancelled"):
                await ended
        await asyncio.to_thread(server.cancelled.wait, 5)
        return server.cancelled.is_set()

    assert in_loop(silent, use)


def test_a_closed_client_says_so():
    async def use(client, server):
        await client.close()
        await client.close()
        for call in (client.generate("Hi"), client.metadata(), client.cancel("1")):
            with pytest.raises(InvalidRequest, match="this client was closed"):
                await call
        with pytest.raises(InvalidRequest, match="this client was closed"):
            client.stream("Hi")
        return await client.is_ready()

    assert in_loop(story, use) is False


def test_silence_and_deadline():
    async def use(client, server):
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"silent for 0\.3 s"):
            await client.stream("Hi").completion()
        assert time.monotonic() - started < 30
        with pytest.raises(DeadlineExceeded, match="not finished in time"):
            await client.generate("Hi", timeout=0.3)

    in_loop(silent, use, stall_timeout=0.3)


def test_a_server_that_holds_the_stream_open_after_the_end_does_not_hold_the_client():
    def answer(asked, context):
        yield piece("Once", final=True)
        while context.is_active():
            time.sleep(0.01)

    async def use(client, server):
        return (await client.generate("Hi")).text

    assert in_loop(answer, use) == "Once"


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ServerBusy, "queue is full"), (ServerFailed, "boom"), (InvalidRequest, "prompt is empty")],
)
def test_refusals(kind, message):
    async def use(client, server):
        with pytest.raises(kind, match=message):
            await client.generate("Hi")

    in_loop(lambda *_: [refusal(message)], use)


def test_a_cut_off_stream_is_not_taken_for_complete():
    async def use(client, server):
        with pytest.raises(ServerFailed, match="before its final response"):
            await client.generate("Hi")

    in_loop(lambda *_: [piece("Once")], use)


def test_nobody_there():
    async def main():
        async with AsyncClient("127.0.0.1:1") as client:
            assert not await client.is_ready()
            with pytest.raises(ConnectionFailed, match="Connection refused"):
                await client.metadata()

    asyncio.run(main())


def test_what_the_server_says_about_itself():
    async def use(client, server):
        assert await client.is_ready()
        assert (await client.metadata()).name == "triton"
        assert (await client.model_metadata("tensorrt_llm")).max_batch_size == 4
        await client.cancel("abc")
        return server.asked[0].one("stop")

    assert in_loop(lambda *_: [empty_final()], use)


def test_streams_interleave():
    def echo(asked, context):
        for _ in range(10):
            yield piece(asked.prompt)
            time.sleep(0.01)
        yield empty_final()

    async def use(client, server):
        order = []

        async def one(name):
            async for chunk in client.stream(name):
                order.append(chunk.text)  # noqa: PERF401 -- the moment of arrival counts

        await asyncio.gather(*(one(name) for name in "abcdef"))
        return order

    order = in_loop(echo, use)
    assert sorted(order) == sorted("abcdef" * 10)
    assert sum(a != b for a, b in pairwise(order)) > 20


class CancelledByItself:
    """A call that gRPC cancels by itself, which looks like a cancelled task."""

    async def read(self):
        raise asyncio.CancelledError

    def cancel(self):
        pass


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot tell the two apart")
def test_a_call_that_is_cancelled_at_its_deadline_did_not_cancel_the_task():
    async def read(timeout):
        prepared = Prepared(new_message("m"), timeout, None)
        stream = AsyncStream(lambda _: CancelledByItself(), prepared, "here")
        await asyncio.sleep(0.01)
        await anext(stream)

    with pytest.raises(DeadlineExceeded, match="no answer in time"):
        asyncio.run(read(0.001))
    # Before the deadline it can only have been the task.
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(read(60.0))


def test_a_task_that_is_cancelled_after_the_deadline_stays_cancelled():
    class Slow(CancelledByItself):
        async def read(self):
            await asyncio.sleep(60)

    async def main():
        prepared = Prepared(new_message("m"), 0.001, None)
        task = asyncio.create_task(AsyncStream(lambda _: Slow(), prepared, "here").__anext__())
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


HELD_UP = """
import asyncio, time
from tests.unit.client.fake_triton import FakeTriton
from tests.unit.client.test_client import story
from trtllm_client import AsyncClient

async def main(url):
    async with AsyncClient(url) as client:
        calls = [asyncio.ensure_future(client.generate("Hi")) for _ in range(400)]
        await asyncio.sleep(0.02)
        time.sleep(2)
        for call in calls:
            call.cancel()

with FakeTriton(story) as server:
    asyncio.run(main(server.url))
print("ended")
"""


def test_a_loop_that_was_held_up_ends():
    """gRPC's thread may be waiting for the loop to read when the loop waits for the thread."""
    done = subprocess.run(
        [sys.executable, "-c", HELD_UP],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "ended\n", done.stderr


def test_raw_responses_have_their_shapes_and_leaving_early_cancels():
    async def use(client, server):
        responses = client.responses(new_message("tensorrt_llm_bls"))
        first = await anext(responses)
        await responses.aclose()
        return first, await asyncio.to_thread(server.cancelled.wait, 10)

    first, cancelled = in_loop(endless, use)
    assert first["text_output"].shape == (1,)
    assert first["text_output"].values == (b"more ",)
    assert cancelled

    async def whole(client, _server):
        return [tensors async for tensors in client.responses(new_message("tensorrt_llm_bls"))]

    found = in_loop(lambda *_: [piece("Once"), empty_final()], whole)
    assert [tensors["text_output"].values for tensors in found] == [(b"Once",)]
    with pytest.raises(ServerFailed, match="oops"):
        in_loop(lambda *_: [refusal("oops")], whole)
