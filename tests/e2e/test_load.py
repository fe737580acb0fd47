"""Load, and what breaks under it, on the demo repository."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.serving import serving
from pipeline.triton.server import TritonServer
from pipeline.triton.stubs import live_stubs
from trtllm_client import AsyncClient, Client, ServerFailed

from ..raising_engine import raising_at

ROUNDS = 8
STREAMS = 33
TOKENS = 220
PROMPT = "Once upon a time"


async def _count(client: AsyncClient) -> int:
    tokens = 0
    async for chunk in client.stream(PROMPT, max_tokens=TOKENS, end_id=-1):
        tokens += chunk.num_output_tokens or 0
    return tokens


@pytest.mark.slow
def test_many_long_streams_leave_every_process_alive(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python stub that lets go of a call's responses too early is killed by loads like this."""
    # glibc overwrites what is freed, so that using it afterwards does not go well by luck.
    monkeypatch.setenv("MALLOC_PERTURB_", "165")

    async def load(url: str) -> list[Counter[int]]:
        async with AsyncClient(url) as client:
            return [
                Counter(await asyncio.gather(*[_count(client) for _ in range(STREAMS)]))
                for _ in range(ROUNDS)
            ]

    with serving(repository, tmp_path / "triton.log", watchdog=False) as server:
        before = server.health().stubs
        assert asyncio.run(load(server.grpc_url)) == [Counter({TOKENS: STREAMS})] * ROUNDS
        with Client(server.grpc_url) as client:
            assert client.generate(PROMPT, max_tokens=8, end_id=-1).num_output_tokens == 8
        assert live_stubs(server.health().pid or 0) == before


BROKEN = "the engine stopped working"


def test_a_broken_engine_is_replaced(repository: Path, tmp_path: Path) -> None:
    """Every request gets the reason, and the supervisor brings the model back."""
    broken = tmp_path / "repository"
    shutil.copytree(repository, broken)
    engine = broken / "tensorrt_llm" / "1" / "engine.py"
    text = engine.read_text()
    engine.unlink()  # it may be a hard link into the store
    engine.write_text(text + raising_at(60))

    async def failures(url: str, model: str) -> list[BaseException | None]:
        async with AsyncClient(url, model=model, stall_timeout=20) as client:
            return await asyncio.gather(*[_count(client) for _ in range(8)], return_exceptions=True)

    log = tmp_path / "triton.log"
    with TritonServer(broken, log_file=log) as server:
        for model in ("tensorrt_llm_bls", "ensemble"):
            before = server.health().restarts
            found = asyncio.run(failures(server.grpc_url, model))
            assert all(isinstance(error, ServerFailed) for error in found), found
            # Of one whose process has ended before it could say more, this is all that is known.
            told = [re.search(f"{BROKEN}|failed while it was serving", str(e)) for e in found]
            assert all(told), found
            assert any(BROKEN in str(error) for error in found), found
            _wait(60, lambda: server.health().restarts > before)  # noqa: B023 - used at once
            assert "model tensorrt_llm died" in str(server.health().error)
            with Client(server.grpc_url) as client:
                assert client.generate(PROMPT, max_tokens=8, end_id=-1).num_output_tokens == 8
    assert "the engine is broken, this process ends: RuntimeError('out of order')" in (
        log.read_text()
    )


def _wait(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
