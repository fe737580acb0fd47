"""Clients that behave badly, and many of them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from trtllm_client import AsyncClient

from .asking import PROMPTS, Streams, answers, ask_alone, prompts
from .record import Fault
from .service import Service, until


def place(url: str) -> tuple[str, int]:
    """Host and port of an address."""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    return host, int(port)


def inputs(prompt: str, tokens: int) -> list[Any]:
    """Tensors of a streamed request, for tritonclient."""
    made = []
    for name, kind, value in (
        ("text_input", "BYTES", prompt.encode()),
        ("max_tokens", "INT32", tokens),
        ("stream", "BOOL", True),
        ("end_id", "INT32", -1),
    ):
        types = {"BYTES": object, "INT32": np.int32, "BOOL": bool}
        tensor = grpcclient.InferInput(name, [1, 1], kind)
        tensor.set_data_from_numpy(np.array([[value]], types[kind]))
        made.append(tensor)
    return made


@contextlib.contextmanager
def never_reading(service: Service, count: int) -> Iterator[None]:
    """So many streams over HTTP, and as many over gRPC, of which nobody reads more than a piece."""
    body = json.dumps(
        {"text_input": PROMPTS[0], "max_tokens": 480, "stream": True, "end_id": -1}
    ).encode()
    release = threading.Event()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            reader.connect(place(service.http))
            head = (
                "POST /v2/models/tensorrt_llm_bls/generate_stream HTTP/1.1\r\nHost: here\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            reader.sendall(head.encode() + body)
            client = grpcclient.InferenceServerClient(service.grpc)
            stack.callback(client.close)
            stack.callback(client.stop_stream, cancel_requests=True)
            client.start_stream(lambda **_: release.wait())
            client.async_stream_infer("tensorrt_llm_bls", inputs(PROMPTS[1], 480))
        stack.callback(release.set)
        yield


def test_clients_that_never_read_hold_nobody_up(
    service: Service, fault: Callable[..., Fault]
) -> None:
    row = fault(
        "clients that never read",
        "8 streams of 480 tokens over HTTP, 8 over gRPC, of which one piece is read at most",
        "others are answered meanwhile, the same; no request is left when they are gone",
    )
    before = ask_alone(service.grpc, PROMPTS[:3], 30)
    with never_reading(service, 8):
        until(lambda: (service.active() or 0) > 0, 30, "they have begun")
        started = time.monotonic()
        assert ask_alone(service.grpc, PROMPTS[:3], 30) == before
        row.measured("three others answered in", time.monotonic() - started)
    row.measured("no request left after", service.wait_idle(), at_most=10)
    assert answers(service.grpc)


async def _take(url: str, count: int, tokens: int, pause_s: float) -> list[float]:
    """Seconds of each of ``count`` streams of clients that pause after each piece."""

    async def one(client: AsyncClient, prompt: str) -> float:
        started, had = time.monotonic(), 0
        async for chunk in client.stream(prompt, max_tokens=tokens, end_id=-1):
            had += chunk.num_output_tokens or 0
            if pause_s:
                await asyncio.sleep(pause_s)
        assert had == tokens
        return time.monotonic() - started

    async with AsyncClient(url) as client:
        return list(await asyncio.gather(*(one(client, prompt) for prompt in prompts(count))))


@pytest.mark.faults
def test_slow_clients_do_not_slow_the_fast_ones(
    service: Service, fault: Callable[..., Fault]
) -> None:
    row = fault(
        "slow clients among fast ones",
        "4 fast streams beside 4 others, which are fast or pause 100 ms after each piece, in turns",
        "the fast ones take no longer beside slow ones",
    )
    taken: dict[float, list[float]] = {0.0: [], 0.1: []}
    for _ in range(4):
        for pause_s, seconds in taken.items():
            others = threading.Thread(
                target=lambda pause_s=pause_s: asyncio.run(_take(service.grpc, 4, 100, pause_s))
            )
            others.start()
            seconds.extend(asyncio.run(_take(service.grpc, 4, 100, 0)))
            others.join(120)
            assert not others.is_alive()
    ratio = statistics.median(taken[0.1]) / statistics.median(taken[0.0])
    row.measured("median beside slow over beside fast", ratio, "", at_most=1.2)
    assert ratio < 3


def test_a_thousand_connections_leave_nothing(
    service: Service, fault: Callable[..., Fault]
) -> None:
    row = fault(
        "1000 rapid connects",
        "500 to each port: closed at once, after half a request, or after rubbish",
        "answers afterwards; no file handle of tritonserver is left open",
    )
    assert answers(service.grpc)
    server = psutil.Process(service.server)
    handles = server.num_fds()
    said = (
        b"",
        b"POST /v2/models/tensorrt_llm_bls/generate HTTP/1.1\r\nContent-",
        bytes(range(99)),
    )
    started = time.monotonic()
    for number in range(500):
        for url in (service.grpc, service.http):
            with socket.create_connection(place(url), timeout=10) as connection:
                connection.sendall(said[number % 3])
    row.measured("took", time.monotonic() - started)
    row.measured("answered after", until(lambda: answers(service.grpc), 60, "an answer"), at_most=2)
    until(lambda: server.num_fds() <= handles + 20, 60, "file handles are closed")
    row.measured("file handles more", server.num_fds() - handles, "", at_most=20)
    assert service.server == server.pid


@pytest.mark.faults
def test_256_streams_at_once(service: Service, fault: Callable[..., Fault]) -> None:
    row = fault(
        "256 streams at once",
        "24 tokens each, for an engine of 32 sequences",
        "no error, and the slowest takes at most twice the median",
    )
    started = time.monotonic()
    with Streams(service.grpc, prompts(256), 24) as streams:
        outcomes = streams.join()
    assert {(outcome.tokens, outcome.error) for outcome in outcomes} == {(24, None)}
    seconds = [outcome.ended - started for outcome in outcomes]
    row.measured("the slowest", max(seconds))
    ratio = max(seconds) / statistics.median(seconds)
    row.measured("slowest over median", ratio, "", at_most=2)
    service.wait_idle()


async def _abandon(url: str, model: str, count: int) -> int:
    """Streams that are given up at any moment; how many were, before their end."""
    rng = random.Random(12)

    async def take(client: AsyncClient, prompt: str) -> None:
        async with client.stream(prompt, max_tokens=400, end_id=-1, model=model) as stream:
            async for _ in stream:
                pass

    async def one(client: AsyncClient, prompt: str, patience_s: float) -> bool:
        try:
            await asyncio.wait_for(take(client, prompt), patience_s)
        except asyncio.TimeoutError:
            return True
        return False

    async with AsyncClient(url) as client:
        given_up = await asyncio.gather(
            *(one(client, prompt, rng.uniform(0.0, 1.5)) for prompt in prompts(count))
        )
    return sum(given_up)


@pytest.mark.parametrize(
    "model", ["tensorrt_llm_bls", pytest.param("ensemble", marks=pytest.mark.faults)]
)
def test_a_storm_of_aborts_changes_no_text(
    service: Service, fault: Callable[..., Fault], model: str
) -> None:
    row = fault(
        f"abort storm, {model}",
        "200 streams, each given up within 1.5 s",
        "no request is left, and the texts are those of before",
    )
    before = ask_alone(service.grpc, PROMPTS[:4], 60)
    server = service.server
    given_up = asyncio.run(_abandon(service.grpc, model, 200))
    row.measured("given up", given_up, "of 200")
    assert given_up > 100
    row.measured("no request left after", service.wait_idle(60), at_most=5)
    assert ask_alone(service.grpc, PROMPTS[:4], 60) == before
    with Streams(service.grpc, PROMPTS[:4], 60) as streams:
        together = streams.join()
    assert [outcome.text for outcome in together] == [before[prompt] for prompt in PROMPTS[:4]]
    assert service.server == server


def post(service: Service, body: bytes) -> tuple[int, str]:
    """Status and text of an answer to a body; 0 where the connection broke."""
    url = f"{service.http}/v2/models/tensorrt_llm_bls/generate"
    try:
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""


@pytest.mark.faults
def test_oversized_bodies_are_refused(service: Service, fault: Callable[..., Fault]) -> None:
    row = fault(
        "oversized bodies",
        "over HTTP: 20 MB of text, 8 MB of blanks and no JSON, a million numbers, a long name",
        "each is refused as the client's fault, and the server goes on",
    )
    server = service.server
    bodies = (
        json.dumps({"text_input": "One day " * 2_500_000, "max_tokens": 4}).encode(),
        b" " * 8_000_000,
        json.dumps({"text_input": "a", "max_tokens": list(range(1_000_000))}).encode(),
        json.dumps({"text_input": "a", "max_tokens": 4, "n" * 1_000_000: 1}).encode(),
    )
    started = time.monotonic()
    statuses = [post(service, body)[0] for body in bodies]
    row.measured("all refused in", time.monotonic() - started)
    assert all(400 <= status < 600 for status in statuses), statuses
    row.measured("answered as the server's fault", sum(s >= 500 for s in statuses), "", at_most=0)
    assert answers(service.grpc)
    assert service.server == server


@pytest.mark.faults
def test_nested_bodies_are_survived(
    repository: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    row = fault(
        "nested bodies",
        "over HTTP: 300 and 600 kB of [, then 8 MB three times, each when it is served again",
        "up to 600 kB is refused; 8 MB end the server, since Triton reads it by recursion: it is "
        "back each time, on the same ports, and says so",
    )
    service = own(repository)
    before = ask_alone(service.grpc, PROMPTS[:2], 30)
    server = service.server
    statuses = [post(service, b"[" * size)[0] for size in (300_000, 600_000)]
    row.measured("refused", sum(map(bool, statuses)), "of 2")
    assert all(400 <= status < 600 for status in statuses), statuses
    assert service.server == server
    longest = 0.0
    for number in range(1, 4):
        struck = time.monotonic()
        assert post(service, b"[" * 8_000_000) == (0, "")
        until(lambda: f"restarts so far: {number}" in service.voice, 90, "restarted")  # noqa: B023
        until(service.is_ready, 90, "ready again")
        longest = max(longest, time.monotonic() - struck)
    row.measured("back after at most, with pauses of up to 2 s", longest, at_most=12)
    assert ask_alone(service.grpc, PROMPTS[:2], 30) == before
