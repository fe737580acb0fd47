"""A replica as Ray runs it, on the real server, without Ray: what it hands on, and its health."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RepositoryError, ServerError
from pipeline.gateway.engine import Generation
from pipeline.rayserve.replica import Replica
from pipeline.rayserve.wire import pack_request, unpack
from pipeline.triton.parameters import TOKENIZER_DIR
from trtllm_client import Client, ConnectionFailed, InvalidRequest, ServerFailed

ACTIVE = re.compile(r'nv_trt_llm_request_metrics\{[^}]*request_type="active"[^}]*\} (\d+)')
PROMPT = "Once there was a gentle boy named Jack"
WAIT_S = 120.0


class Running:
    """A replica and the event loop that uses it."""

    def __init__(self, repository: Path) -> None:
        self.replica = Replica(str(repository), patience_s=WAIT_S)
        self.loop = asyncio.new_event_loop()

    def ask(self, asked: Generation) -> list[int]:
        """All tokens of an answer."""
        return self.loop.run_until_complete(self._ask(asked))

    async def _ask(self, asked: Generation) -> list[int]:
        responses = self.replica.generate(pack_request(asked))
        return [id_ async for item in responses for id_ in unpack(item).ids]

    def health(self) -> None:
        """Asks as Ray does."""
        self.loop.run_until_complete(self.replica.check_health())

    def close(self) -> None:
        """Ends it as Ray does when its requests are done."""
        self.replica.__del__()
        self.loop.close()


@pytest.fixture(scope="module")
def running(repository: Path) -> Iterator[Running]:
    one = Running(repository)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def tokenizer(repository: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(repository / TOKENIZER_DIR / "tokenizer.json"))


def eventually(wanted: Callable[[], bool], what: str) -> None:
    """Waits for a condition."""
    until = time.monotonic() + WAIT_S
    while not wanted():
        assert time.monotonic() < until, f"it did not come about that {what}"
        time.sleep(0.05)


def active_requests(running: Running) -> int:
    """How many requests the engine has, as its metrics say."""
    with urllib.request.urlopen(running.replica._server.metrics_url) as page:
        found = ACTIVE.search(page.read().decode())
    assert found
    return int(found[1])


def generation(tokenizer: Any, tokens: int, request_id: str = "") -> Generation:
    prompt = tuple(tokenizer.encode(PROMPT).ids)
    return Generation(prompt, tokens, {"end_id": 1}, request_id)


def test_it_hands_on_the_tokens_of_the_text_that_the_server_writes(
    running: Running, tokenizer: Any
) -> None:
    ids = running.ask(generation(tokenizer, 40))
    with Client(running.replica.address()) as client:
        text = client.generate(PROMPT, max_tokens=40).text
    whole = tokenizer.decode(tokenizer.encode(PROMPT).ids + ids)
    assert whole == tokenizer.decode(tokenizer.encode(PROMPT).ids) + text
    assert len(ids) == 40


def test_what_the_server_refuses_arrives_as_its_error(running: Running) -> None:
    with pytest.raises(InvalidRequest, match="512"):
        running.ask(Generation((5, 6, 7), 4000, {"end_id": 1}, "long"))


def test_a_reader_that_leaves_frees_the_slot(running: Running, tokenizer: Any) -> None:
    async def leave() -> None:
        stream = running.replica.generate(pack_request(generation(tokenizer, 400, "left")))
        assert unpack(await anext(stream)).ids
        await stream.aclose()

    running.loop.run_until_complete(leave())
    eventually(lambda: active_requests(running) == 0, "no request is active")


def test_a_repository_that_was_changed_is_not_served(repository: Path, tmp_path: Path) -> None:
    copied = tmp_path / "repository"
    shutil.copytree(repository, copied)
    config = copied / "tensorrt_llm" / "config.pbtxt"
    config.chmod(0o644)
    config.write_text(config.read_text() + "# changed\n")
    with pytest.raises(RepositoryError, match="not what was built"):
        Replica(str(copied))


def test_it_is_healthy_while_its_server_starts_again_and_not_when_it_is_gone(
    running: Running, tokenizer: Any
) -> None:
    running.health()
    before = running.ask(generation(tokenizer, 30))
    server = running.replica._server
    stub = next(pid for pid, model in server.health().stubs.items() if model == "tensorrt_llm")

    async def lose(number: int, *, kills: bool) -> None:
        asked = pack_request(generation(tokenizer, 400, f"lost-{number}"))
        async for item in running.replica.generate(asked):
            unpack(item)
            if kills:
                kills = False
                os.kill(stub, signal.SIGKILL)

    async def lose_some() -> list[BaseException | None]:
        # One text may be whole before its first piece is read; so many are not.
        streams = [lose(number, kills=number == 0) for number in range(16)]
        return await asyncio.gather(*streams, return_exceptions=True)

    errors = [error for error in running.loop.run_until_complete(lose_some()) if error is not None]
    assert errors
    assert all(isinstance(error, ConnectionFailed | ServerFailed) for error in errors), errors
    eventually(lambda: server.trouble is not None or server.health().restarts > 0, "it is noticed")
    running.health()
    assert running.ask(generation(tokenizer, 30)) == before
    assert server.health().restarts == 1
    running.health()
    # One that is gone for good is replaced. It is the last thing that this server is for.
    server.stop()
    with pytest.raises(ServerError, match="does not answer that it is ready"):
        running.health()
