"""Load, and what breaks under it, on the demo repository."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from pipeline.client import AsyncClient, Client
from pipeline.serving import serving
from pipeline.triton.stubs import live_stubs

ROUNDS = 8
STREAMS = 33
TOKENS = 220
PROMPT = "Once upon a time"


async def _round(client: AsyncClient) -> Counter[int]:
    async def one() -> int:
        tokens = 0
        async for chunk in client.stream(PROMPT, max_tokens=TOKENS, end_id=-1):
            tokens += chunk.num_output_tokens or 0
        return tokens

    return Counter(await asyncio.gather(*[one() for _ in range(STREAMS)]))


@pytest.mark.slow
def test_many_long_streams_leave_every_process_alive(repository: Path, tmp_path: Path) -> None:
    """A Python stub that frees a call's responses at the wrong moment dies within these rounds."""

    async def load(url: str) -> list[Counter[int]]:
        async with AsyncClient(url) as client:
            return [await _round(client) for _ in range(ROUNDS)]

    with serving(repository, tmp_path / "triton.log", watchdog=False) as server:
        before = server.health().stubs
        assert asyncio.run(load(server.grpc_url)) == [Counter({TOKENS: STREAMS})] * ROUNDS
        with Client(server.grpc_url) as client:
            assert client.generate(PROMPT, max_tokens=8, end_id=-1).num_output_tokens == 8
        assert live_stubs(server.health().pid or 0) == before
