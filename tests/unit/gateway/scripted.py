"""A small engine that says what a test has written down, and a gateway in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx2
import openai

from pipeline.gateway.app import make_app
from pipeline.gateway.desk import Desk, Options
from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.model import Limits, Model
from trtllm_client import ChatTemplate

from ...conftest import DEMO_MODEL

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
END = 1
"""The demo model's end id."""

Step = Tokens | Exception | asyncio.Event


class ScriptedEngine:
    """Answers each request with the same steps; an event is waited for.

    Attributes:
        asked: What it was asked for.
        left: How many of its answers were left before they were over.
    """

    def __init__(self, *steps: Step, script: Callable[[Generation], Sequence[Step]] | None = None):
        self._script = script or (lambda _asked: steps)
        self.asked: list[Generation] = []
        self.left = 0
        self.is_ready = True
        self.closed = False

    async def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        self.asked.append(asked)
        over = False
        try:
            for step in self._script(asked):
                if isinstance(step, Exception):
                    over = True
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
            over = True
        finally:
            self.left += not over

    async def ready(self) -> bool:
        return self.is_ready

    async def close(self) -> None:
        self.closed = True


def demo(template: str | None = TEMPLATE, **more: Any) -> Model:
    """The demo model, with a plain template."""
    made = None if template is None else ChatTemplate(template, {"bos_token": "<s>"})
    return Model("demo", DEMO_MODEL, Limits(64, 48, 4), template=made, vocab_size=1024, **more)


def spoken(model: Model, text: str, *, score: float | None = None) -> list[Tokens]:
    """The tokens of a text, one in a response, and the end id behind them."""
    ids = [*model.encode(text, "text", add_special_tokens=False), END]
    return [Tokens((id_,), None if score is None else (score,)) for id_ in ids]


class Gateway:
    """A gateway in this process, without a socket, for the block that it is entered for.

    Attributes:
        openai: The official client.
        http: A plain one.
        lines: What was logged.
    """

    def __init__(self, engine: Any, model: Model, options: Options | None = None) -> None:
        self.lines: list[str] = []
        self.desk = Desk(engine, model, options, say=self.lines.append)
        self.app = make_app(self.desk)

    async def __aenter__(self) -> Gateway:
        def http() -> httpx2.AsyncClient:
            transport = httpx2.ASGITransport(app=self.app)
            return httpx2.AsyncClient(transport=transport, base_url="http://gateway")

        self.http = http()
        self.openai = openai.AsyncOpenAI(
            base_url="http://gateway/v1", api_key="nobody-asks", http_client=http(), max_retries=0
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.openai.close()
