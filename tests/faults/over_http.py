"""A gateway's answers, as OpenAI's own client reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.fleet.policy import Policy
from pipeline.service.activity import page, samples

from .resuming import MOST_S
from .service import until


class OverHttp:
    """An engine that is a gateway: it has the characters of an answer in the place of tokens.

    Args:
        url: The gateway's.
    """

    def __init__(self, url: str) -> None:
        from openai import AsyncOpenAI

        # What the client tried again by itself would not be seen.
        self._client = AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=MOST_S
        )

    async def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        """Reads a streamed completion."""
        stream = await self._client.completions.create(
            model="demo",
            prompt=list(asked.prompt),
            max_tokens=asked.max_tokens,
            temperature=asked.inputs.get("temperature", 0),
            top_p=asked.inputs.get("runtime_top_p", 1),
            seed=asked.inputs.get("seed"),
            stream=True,
            extra_body={"ignore_eos": True, "top_k": asked.inputs.get("runtime_top_k", 0)},
        )
        try:
            async for chunk in stream:
                for choice in chunk.choices:
                    yield Tokens(tuple(map(ord, choice.text)))
        finally:
            await stream.close()

    async def ready(self) -> bool:
        """Says that it is."""
        return True

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


@contextmanager
def gateway_of(repository: Path, servers: list[str], policy: Policy) -> Iterator[str]:
    """Runs a gateway in front of servers; yields its URL.

    Args:
        repository: What they serve.
        servers: Their gRPC addresses.
        policy: How answers are resumed.
    """
    from pipeline.gateway.desk import Options
    from pipeline.gateway.model import open_model
    from pipeline.gateway.opening import Servers, open_gateway
    from pipeline.gateway.running import listen

    model = open_model(repository, names=("demo",))
    with open_gateway(
        Servers.at(servers, policy=policy),
        model,
        Options(),
        listen("127.0.0.1", 0, "--port"),
        drain_s=0,
        say=lambda _: None,
    ) as running:
        until(lambda: page(f"{running.url}/health/ready") is not None, MOST_S, "it is ready")
        yield running.url


def resumes_over_http(url: str) -> dict[str, int]:
    """Returns a gateway's attempts to go on by outcome and way, from its metrics."""
    return {
        f"{labels['outcome']}, {labels['how']}": int(value)
        for name, labels, value in samples(page(f"{url}/metrics") or "")
        if name == "llm_resumes_total"
    }
