"""Clients that send too much before a request is complete, or too slowly, or that do not read."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from pipeline.gateway import app, connections
from pipeline.gateway.desk import Options
from pipeline.gateway.engine import Tokens

from .scripted import ScriptedEngine, demo, spoken
from .test_gateway_running import PATIENCE_S, listening, until

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", httpx2.URL(url).port or 0)) as made:
        made.settimeout(PATIENCE_S)
        yield made


def all_of(given: socket.socket) -> bytes:
    """What comes until the other side closes; that may break off what is on its way."""
    parts = []
    try:
        while part := given.recv(65_536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def answer(given: socket.socket) -> bytes:
    """One answer, all of it."""
    head, body = b"", b""
    while b"\r\n\r\n" not in head:
        part = given.recv(65_536)
        assert part, head
        head += part
    head, _, body = head.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        part = given.recv(65_536)
        assert part, head
        body += part
    return head + body


def test_a_head_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    # One key is as good as none: nobody is asked for it before the headers are there.
    engine = ScriptedEngine()
    with listening(engine, Options(keys=("secret",))) as (running, _):
        for begin in (b"GET /v1/models HTTP/1.1\r\nX: ", b"GET /"):
            with connected(running.url) as made:
                made.sendall(begin)
                # Far more than buffers between the two take.
                with pytest.raises(ConnectionError, match=r"reset|pipe"):
                    made.sendall(b"a" * (64 << 20))
        with connected(running.url) as made:
            made.sendall(b"GET /v1/models HTTP/1.1\r\nX: " + b"a" * 60_000)
            made.sendall(b"a" * 6_000)
            said = all_of(made)
        assert said.startswith(b"HTTP/1.1 431 ")
        assert b"at most 65536 bytes" in said


def test_long_headers_that_end_and_several_requests_on_a_connection_are_answered() -> None:
    with listening(ScriptedEngine()) as (running, _), connected(running.url) as made:
        for _ in range(3):
            made.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n")
            assert answer(made).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET /v1/mod", b"GET /v1/models HTTP/1.1\r\nX: y\r\n"])
def test_a_request_that_does_not_come_is_not_waited_for_for_ever(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.Connection, "head_s", 0.1)
    with listening(ScriptedEngine()) as (running, _), connected(running.url) as made:
        made.sendall(sent)
        assert all_of(made) == b""
        # Also behind one that was answered.
        with connected(running.url) as other:
            other.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer(other).startswith(b"HTTP/1.1 200 ")
            other.sendall(b"GET /v1/mod")
            assert all_of(other) == b""


def test_a_body_that_does_not_come_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_S", 0.1)
    monkeypatch.setattr(app, "SLOWEST", 1 << 40)
    engine = ScriptedEngine(*spoken(demo(), " a girl."))
    with (
        listening(engine, Options(most_requests=1)) as (running, desk),
        connected(running.url) as made,
    ):
        made.sendall(HEAD + b'Content-Length: 30\r\n\r\n{"prompt":')
        said = all_of(made)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        until(lambda: desk.inflight == 0)
        answer = httpx2.post(f"{running.url}/v1/completions", json={"prompt": "Once"})
        assert answer.status_code == 200


def test_a_client_that_goes_within_its_body_is_no_error_of_the_gateway(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listening(ScriptedEngine()) as (running, desk):
        with connected(running.url) as made:
            made.sendall(HEAD + b'Content-Length: 30\r\n\r\n{"prompt":')
            until(lambda: desk.inflight == 1)
        until(lambda: desk.inflight == 0)
        counted = httpx2.get(f"{running.url}/metrics").text
    assert 'llm_requests_total{code="499",endpoint="/v1/completions"} 1.0' in counted
    assert not caplog.records


def test_a_client_that_does_not_read_its_stream_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.Connection, "stall_s", 0.1)
    many = [Tokens((index % 900 + 50,)) for index in range(60)]
    engine = ScriptedEngine(*many)
    body = json.dumps({"prompt": [[5]] * 256, "stream": True, "ignore_eos": True}).encode()
    with listening(engine) as (running, desk), socket.socket() as made:
        # Small buffers between the two are full soon.
        running._opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", httpx2.URL(running.url).port or 0))
        made.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: len(engine.asked) > 0)
        until(lambda: desk.inflight == 0)
        counted = httpx2.get(f"{running.url}/metrics").text
    assert 'llm_requests_total{code="499",endpoint="/v1/completions"} 1.0' in counted


def test_more_connections_than_files_leave_room_for_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    with listening(ScriptedEngine()) as (running, _):
        with connected(running.url) as one, connected(running.url) as two:
            for made in (one, two):
                made.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer(made).startswith(b"HTTP/1.1 200 ")
            with connected(running.url) as third:
                assert all_of(third) == b""

        def answers() -> bool:
            try:
                return httpx2.get(f"{running.url}/v1/models").status_code == 200
            except httpx2.TransportError:
                return False

        until(answers)


def test_a_path_with_a_slash_behind_it_leads_nowhere_else() -> None:
    with listening(ScriptedEngine()) as (running, _):
        found = httpx2.get(f"{running.url}/v1/models/", headers={"Host": "elsewhere.example"})
        assert (found.status_code, found.json()["error"]["code"]) == (404, "model_not_found")
        found = httpx2.post(f"{running.url}/v1/completions/", headers={"Host": "elsewhere.example"})
        assert (found.status_code, found.json()["error"]["code"]) == (404, "unknown_url")
