"""A gateway that listens: clients that go, a stop that waits, room for so many, its counters."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import ServerError, UsageError
from pipeline.gateway.desk import Desk, Options
from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.running import RunningGateway, listen

from .scripted import ScriptedEngine, Step, demo, spoken

BODY = {"prompt": "Once", "stream": True}
PATIENCE_S = 20


def until(true: Callable[[], bool]) -> None:
    """Waits for what has to become true, by far longer than it takes."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.005)


class Held:
    """An engine whose answers wait, after a few tokens, until they are let go on."""

    def __init__(self) -> None:
        self.model = demo()
        self._let_go: list[asyncio.Event] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.engine = ScriptedEngine(script=self._script)

    def _script(self, _asked: Generation) -> Sequence[Step]:
        self._loop = asyncio.get_running_loop()
        held = asyncio.Event()
        self._let_go.append(held)
        first, *rest = spoken(self.model, " a girl.")
        return [first, held, *rest]

    def let_go(self) -> None:
        assert self._loop
        for held in self._let_go:
            self._loop.call_soon_threadsafe(held.set)


@contextmanager
def listening(
    engine: Any,
    options: Options | None = None,
    *,
    drain_s: float = PATIENCE_S,
    check: Any = None,
    patience_s: float = 0,
) -> Iterator[tuple[RunningGateway, Desk]]:
    desks: list[Desk] = []

    def make() -> Desk:
        desks.append(Desk(engine, demo(), options))
        return desks[0]

    opened = listen("127.0.0.1", 0, "--port")
    with RunningGateway(opened, make, check, drain_s=drain_s, patience_s=patience_s) as running:
        yield running, desks[0]


def events(response: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_client_that_goes_ends_the_work_of_the_engine() -> None:
    held = Held()
    with listening(held.engine) as (running, desk), httpx2.Client(base_url=running.url) as client:
        with client.stream("POST", "/v1/completions", json=BODY) as response:
            # An iterator that nobody holds closes the connection.
            lines = response.iter_lines()
            first = next(lines)
            assert (response.status_code, desk.inflight) == (200, 1), first
        until(lambda: held.engine.left == 1)
        until(lambda: desk.inflight == 0)
        # One that waits for its whole answer, too.
        with socket.create_connection(("127.0.0.1", httpx2.URL(running.url).port)) as raw:
            body = json.dumps({"prompt": "Once"}).encode()
            head = (
                "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            until(lambda: len(held.engine.asked) == 2)
        until(lambda: held.engine.left == 2)
        until(lambda: desk.inflight == 0)
        text = client.get("/metrics").text
        assert 'llm_requests_total{code="499",endpoint="/v1/completions"} 2.0' in text
        assert "llm_inflight 0.0" in text
        assert "llm_requests_waiting 0.0" in text


def test_a_stop_lets_streams_finish_and_takes_no_new_request() -> None:
    held = Held()
    with listening(held.engine) as (running, desk), httpx2.Client(base_url=running.url) as client:
        with client.stream("POST", "/v1/completions", json=BODY) as response:
            lines = response.iter_lines()
            next(lines)
            running.ask_to_stop()
            until(lambda: desk.draining)
            refused = client.post("/v1/completions", json=BODY)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/health/ready").status_code == 503
            assert client.get("/health/live").status_code == 200
            assert "llm_draining 1.0" in client.get("/metrics").text
            held.let_go()
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        until(lambda: running.wait(0.01))
    assert held.engine.closed


def test_a_stop_that_has_waited_long_enough_tells_the_streams_that_are_left() -> None:
    held = Held()
    with listening(held.engine, drain_s=0.05) as (running, _):
        with httpx2.stream("POST", f"{running.url}/v1/completions", json=BODY) as response:
            lines = response.iter_lines()
            next(lines)
            running.ask_to_stop()
            rest = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert rest[-1]["error"]["code"] == "draining"
        assert held.engine.left == 1
        until(lambda: running.wait(0.01))


def test_a_second_stop_waits_for_nobody() -> None:
    held = Held()
    with (
        listening(held.engine, drain_s=3600) as (running, _),
        httpx2.stream("POST", f"{running.url}/v1/completions", json=BODY) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        running.ask_to_stop()
        running.ask_to_stop()
        until(lambda: running.wait(0.01))


def test_more_requests_than_there_is_room_for_are_told_to_come_again() -> None:
    held = Held()
    options = Options(most_requests=2)
    with (
        listening(held.engine, options) as (running, desk),
        httpx2.Client(base_url=running.url) as client,
    ):
        answers: list[int] = []

        def ask() -> None:
            answers.append(httpx2.post(f"{running.url}/v1/completions", json=BODY).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: desk.inflight == 2)
        full = client.post("/v1/completions", json=BODY)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        # It still says that it is alive, and what there is.
        assert client.get("/health/ready").status_code == 200
        assert client.get("/v1/models").status_code == 200
        held.let_go()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert answers == [200, 200]
        until(lambda: desk.inflight == 0)


def test_the_counters_are_those_of_the_requests_that_were_made() -> None:
    model = demo()
    engine = ScriptedEngine(*spoken(model, " a girl named Zoë."))
    with listening(engine) as (running, _), httpx2.Client(base_url=running.url) as client:
        counted = {"prompt": 0, "completion": 0}
        for _ in range(3):
            used = client.post("/v1/completions", json={"prompt": "Once"}).json()["usage"]
            for name in counted:
                counted[name] += used[f"{name}_tokens"]
        text = client.get("/metrics").text
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["llm_requests_total", "/v1/completions", "200"] == 3
    assert found["llm_prompt_tokens_total",] == counted["prompt"]
    # The engine's work counts the end id, which is no part of an answer.
    assert found["llm_generated_tokens_total",] == counted["completion"] + 3
    assert found["llm_ttft_seconds_count",] == 3
    assert found["llm_itl_seconds_count",] == counted["completion"]
    assert found["llm_request_seconds_count", "/v1/completions"] == 3


def test_requests_wait_for_the_server_to_be_looked_at_and_a_wrong_one_ends_the_gateway() -> None:
    looked = threading.Event()

    async def check(desk: Desk) -> None:
        desk.trouble = "The server was not looked at yet."
        while not looked.is_set():
            await asyncio.sleep(0.005)
        raise UsageError("the gateway's tokenizer is not the server's")

    engine = ScriptedEngine(Tokens((5,)))
    with listening(engine, check=check) as (running, desk):
        until(lambda: desk.trouble is not None)
        assert httpx2.post(f"{running.url}/v1/completions", json=BODY).status_code == 503
        looked.set()
        until(lambda: running.wait(0.01))
        with pytest.raises(UsageError, match="tokenizer is not the server's"):
            running.raise_for_error()


def test_a_start_waits_for_the_server_to_be_looked_at_as_long_as_it_may() -> None:
    seen: list[str | None] = []

    async def check(desk: Desk) -> None:
        desk.trouble = "The server was not looked at yet."
        await asyncio.sleep(0.2)
        desk.trouble = None
        seen.append(desk.trouble)

    with listening(ScriptedEngine(), check=check, patience_s=PATIENCE_S):
        assert seen == [None]

    # And a server that is the wrong one is told at the start.
    async def refuse(_desk: Desk) -> None:
        await asyncio.sleep(0)
        raise UsageError("the gateway's tokenizer is not the server's")

    with (
        pytest.raises(UsageError, match="tokenizer is not the server's"),
        listening(ScriptedEngine(), check=refuse, patience_s=PATIENCE_S),
    ):
        pass


def test_a_port_that_is_taken_is_named_with_the_option_to_choose_another() -> None:
    with listen("127.0.0.1", 0, "--port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use") as caught:
            listen("127.0.0.1", port, "--openai")
        assert "--openai" in str(caught.value)
    with pytest.raises(ServerError, match="cannot be opened"):
        listen("192.0.2.1", 0, "--port")
