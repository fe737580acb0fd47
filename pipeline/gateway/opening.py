"""The gateway of a command: what is given on its command line, put together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.gateway.desk import Desk, Options
from pipeline.gateway.running import RunningGateway
from pipeline.triton.access import key_of

if TYPE_CHECKING:
    from pipeline.gateway.model import Model
    from pipeline.gateway.served import ServedEngine
    from trtllm_client import Tls

AGAIN_S = 1.0
"""Seconds between two looks for a server that does not answer yet."""


@dataclass(frozen=True)
class Servers:
    """The servers behind a gateway, and how to talk to them.

    Attributes:
        urls: Their gRPC addresses.
        tls: Certificates.
        headers: gRPC metadata of every call.
        timeout: Seconds for a whole request.
    """

    urls: tuple[str, ...]
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None

    def open(self) -> list[ServedEngine]:
        """Opens a connection to each, inside the event loop.

        Raises:
            InvalidRequest: An address is none, or a certificate cannot be used.
        """
        from pipeline.gateway.served import ServedEngine

        return [
            ServedEngine(url, tls=self.tls, headers=self.headers, timeout=self.timeout)
            for url in self.urls
        ]


def open_gateway(
    servers: Servers,
    model: Model,
    options: Options,
    opened: socket.socket,
    *,
    drain_s: float,
    say: Callable[[str], object],
) -> RunningGateway:
    """Makes a gateway, to be started with ``with``.

    Args:
        servers: Behind it.
        model: What they serve.
        options: How it is asked to run.
        opened: What it listens on.
        drain_s: Seconds that a stop waits for requests in flight.
        say: Takes a line for the log.

    Raises:
        UsageError: There are several servers.
    """
    if len(servers.urls) != 1:
        raise UsageError(
            "a gateway is for one server",
            where=" ".join(f"--url {url}" for url in servers.urls),
            fix="Give one --url",
        )
    engines: list[ServedEngine] = []

    def make() -> Desk:
        engines.extend(servers.open())
        desk = Desk(engines[0], model, options, say=say)
        desk.trouble = "The server behind the gateway has not answered yet. Ask again."
        return desk

    async def check(desk: Desk) -> None:
        await asyncio.gather(*(_checked(engine, model, say) for engine in engines))
        desk.trouble = None

    return RunningGateway(opened, make, check, drain_s=drain_s)


async def _checked(engine: ServedEngine, model: Model, say: Callable[[str], object]) -> None:
    """Compares the tokenizers, as soon as the server answers."""
    from pipeline.gateway.check import check_tokenizer
    from trtllm_client import ClientError, InvalidRequest

    waits = False
    while True:
        try:
            note = await check_tokenizer(engine.client, model)
        except InvalidRequest as error:  # noqa: PERF203 -- it ends the loop
            raise UsageError(error.what, where=error.where, why=error.why, fix=error.fix) from error
        except ClientError as error:
            if not waits:
                say(f"waiting for {engine.url}: {error.what}")
            waits = True
            await asyncio.sleep(AGAIN_S)
        else:
            if note:
                say(f"note: {engine.url}: {note}")
            elif waits:
                say(f"{engine.url} answers")
            return


def keys_of(environment: Mapping[str, str], name: str | None) -> tuple[str, ...]:
    """Reads the keys that open the gateway from the environment.

    Args:
        environment: The environment.
        name: The variable that holds them, with spaces or line ends between them, so that a new key
            can be given out before an old one goes; None for no key.

    Raises:
        UsageError: The variable is not set, or holds something that is no key.
    """
    if name is None:
        return ()
    words = environment[name].split() if name in environment else []
    if len(words) < 2:
        return tuple(filter(None, [key_of(environment, name)]))
    return tuple(key_of({name: word}, name) or "" for word in words)
