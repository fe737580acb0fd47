"""A gateway on an engine that says what it was told to: for answers that no small model gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.gateway.desk import Desk, Options
from pipeline.gateway.engine import Generation, Tokens
from pipeline.gateway.model import Limits, Model
from pipeline.gateway.running import RunningGateway, listen
from trtllm_client import ChatTemplate, ClientError

from ..conftest import DEMO_MODEL, PROJECT

TEMPLATES = PROJECT / "tests" / "data" / "chat-templates"
FORMS = {"llama3": "llama3_1", "hermes": "qwen2_5", "mistral": "mistral_v2v3"}
CONTEXT = 100_000


@dataclass
class Script:
    """An engine that writes one text after every prompt, a token at a time.

    Attributes:
        text: What it writes.
        error: What it raises behind that.
        holds: Whether it waits at the end until it is let go.
        asked: What it was asked to generate.
        ended: How many answers were left before their end.
    """

    text: str = ""
    error: ClientError | None = None
    holds: bool = False
    asked: list[Generation] = field(default_factory=list)
    ended: int = 0
    _tokenizer: Tokenizer = field(
        default_factory=lambda: Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    )

    async def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        self.asked.append(asked)
        whole = False
        try:
            ids = self._tokenizer.encode(self.text, add_special_tokens=False).ids
            for token in ids[: asked.max_tokens]:
                yield Tokens((token,))
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
            while self.holds:
                await asyncio.sleep(0.01)
            whole = True
        finally:
            self.ended += not whole

    async def ready(self) -> bool:
        return True

    async def close(self) -> None:
        pass

    def prompt(self) -> str:
        """The text of the latest prompt."""
        return str(self._tokenizer.decode(self.asked[-1].prompt, skip_special_tokens=False))


@dataclass(frozen=True)
class Scripted:
    """A running gateway on a script.

    Attributes:
        url: Its API.
        script: The engine; it may be changed between requests.
        desk: The gateway's.
    """

    url: str
    script: Script
    desk: Desk


@contextmanager
def scripted(form: str, **options: Any) -> Iterator[Scripted]:
    """Serves a script under the chat template of a published model.

    Args:
        form: Of calls: one of :data:`FORMS`.
        options: Of the gateway.
    """
    template = (TEMPLATES / f"{FORMS[form]}.jinja").read_text(encoding="utf-8")
    tokens: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>"}
    model = Model(
        "scripted",
        Path(DEMO_MODEL),
        Limits(CONTEXT, CONTEXT - 1),
        template=ChatTemplate(template, tokens),
    )
    script = Script()
    desk = Desk(script, model, Options(**options))
    opened = listen("127.0.0.1", 0, "--port")
    with RunningGateway(opened, lambda: desk, drain_s=0) as running:
        yield Scripted(f"{running.url}/v1", script, desk)
