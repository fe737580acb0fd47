"""The gateway of a command: what is given on its command line, put together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.gateway.checked import CheckedEngine
from pipeline.gateway.desk import Desk, Options
from pipeline.gateway.fleet.addresses import Address, read_address
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.running import RunningGateway
from pipeline.triton.access import key_of

if TYPE_CHECKING:
    from pipeline.gateway.model import Model
    from trtllm_client import Tls

LOOK_S = 0.05
TELL_S = 1.0
"""Seconds that a server may take to answer before somebody is told that it is waited for."""


@dataclass(frozen=True)
class Servers:
    """The servers behind a gateway, and how to talk to them.

    Attributes:
        addresses: Where they are.
        tls: Certificates.
        headers: gRPC metadata of every call.
        timeout: Seconds for a whole request, however often it goes on.
        policy: Which of them answers, and what becomes of the answers of one that is lost.
    """

    addresses: tuple[Address, ...]
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    policy: Policy = field(default_factory=Policy)

    @classmethod
    def at(cls, urls: Sequence[str], **more: object) -> Servers:
        """Reads addresses as they are typed.

        Args:
            urls: ``grpc://HOST:PORT``, where ``?metrics=PORT`` may follow.
            more: The other fields.

        Raises:
            UsageError: One is no address.
        """
        return cls(tuple(map(read_address, urls)), **more)  # type: ignore[arg-type]


def open_gateway(
    servers: Servers,
    model: Model,
    options: Options,
    opened: socket.socket,
    *,
    drain_s: float,
    patience_s: float = 0.0,
    say: Callable[[str], object],
) -> RunningGateway:
    """Makes a gateway, to be started with ``with``.

    Until one of the servers has answered, and made the same tokens of texts, requests are refused.
    One that makes others gets none; where all of them do, that ends the gateway.

    Args:
        servers: Behind it.
        model: What they serve.
        options: How it is asked to run.
        opened: What it listens on.
        drain_s: Seconds that a stop waits for requests in flight.
        patience_s: Seconds that a start waits for a server.
        say: Takes a line for the log.
    """
    engines: list[CheckedEngine] = []

    def make() -> Desk:
        from pipeline.gateway.fleet.metrics import FleetCollector
        from pipeline.gateway.fleet.opening import engine_at, open_fleet

        def open_engine(address: Address) -> CheckedEngine:
            engine = engine_at(
                address, tls=servers.tls, headers=servers.headers, timeout=servers.timeout
            )
            engines.append(CheckedEngine(engine, model, say))
            return engines[-1]

        policy = replace(servers.policy, timeout_s=servers.timeout)
        fleet = open_fleet(servers.addresses, open_engine, policy)
        desk = Desk(fleet, model, options, say=say)
        desk.metrics.registry.register(FleetCollector(fleet))
        desk.trouble = "No server behind the gateway has answered yet. Ask again."
        return desk

    async def check(desk: Desk) -> None:
        loop = asyncio.get_running_loop()
        tell_at = loop.time() + TELL_S
        while not any(engine.checked for engine in engines):
            if engines and all(engine.wrong for engine in engines):
                assert engines[0].wrong
                raise engines[0].wrong
            if loop.time() > tell_at:
                tell_at = float("inf")
                say(f"waiting for {', '.join(address.url for address in servers.addresses)}")
            await asyncio.sleep(LOOK_S)
        desk.trouble = None

    return RunningGateway(opened, make, check, drain_s=drain_s, patience_s=patience_s)


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
