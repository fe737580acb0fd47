"""Streams two completions at a time with asyncio.  usage: client_async.py [HOST:PORT]"""

from __future__ import annotations

import asyncio
import sys

from trtllm_client import AsyncClient

URL = sys.argv[1] if len(sys.argv) > 1 else "localhost:8001"
PROMPTS = ("Once upon a time", "One day, a small dog")


async def tell(client: AsyncClient, prompt: str) -> str:
    """Collects a stream; other streams go on meanwhile."""
    async with client.stream(prompt, max_tokens=40) as stream:
        return "".join([chunk.text async for chunk in stream])


async def main() -> None:
    """Asks for both and prints the answers in the order of the prompts."""
    async with AsyncClient(URL) as client:
        answers = await asyncio.gather(*(tell(client, prompt) for prompt in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        print(f"{prompt}{answer}")


asyncio.run(main())
