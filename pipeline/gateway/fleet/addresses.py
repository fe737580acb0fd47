"""Where servers are: addresses as a user writes them, and what their names stand for."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

from pipeline.errors import UsageError
from trtllm_client import ClientError

_EXAMPLE = "grpc://HOST:8001?metrics=8002"

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Looks a name up: its addresses; an ``OSError`` where it cannot be."""


@dataclass(frozen=True)
class Address:
    """A server's address.

    Attributes:
        scheme: ``grpc`` or ``grpcs``.
        host: A name or an address, in brackets where it has colons.
        port: Of gRPC.
        metrics: Port of the metrics page; None where there is none.
        name: What the certificate is for, where ``host`` is an address that a name stood for.
    """

    scheme: str
    host: str
    port: int
    metrics: int | None = None
    name: str | None = None

    @property
    def url(self) -> str:
        """Returns what a client takes."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def metrics_url(self) -> str | None:
        """Returns the URL of the metrics page."""
        return None if self.metrics is None else f"http://{self.host}:{self.metrics}/metrics"

    @property
    def is_fixed(self) -> bool:
        """Whether it stands for one server: an address, or a name of this machine."""
        try:
            ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            return self.host.lower() == "localhost"
        return True


def read_address(text: str) -> Address:
    """Reads ``HOST:PORT``, ``grpc://HOST:PORT`` or ``grpcs://HOST:PORT``.

    ``?metrics=PORT`` may follow, the port of the server's metrics page on the same host.

    Raises:
        UsageError: It is something else.
    """
    from trtllm_client._config import parse_url

    base, _, query = text.strip().partition("?")
    try:
        endpoint = parse_url(base)
    except ClientError as error:
        raise UsageError(
            f"--url {text}: {error.what}", why=error.why, fix=f"Write {_EXAMPLE}"
        ) from error
    host, _, port = endpoint.target.rpartition(":")
    scheme = "grpcs" if endpoint.secure else "grpc"
    return Address(scheme, host, int(port), _metrics(text, query))


def _metrics(text: str, query: str) -> int | None:
    if not query:
        return None
    try:
        options = parse_qs(query, keep_blank_values=True, strict_parsing=True)
        (port,) = options.pop("metrics")
        number = int(port)
    except (ValueError, KeyError):
        options, number = {"": []}, 0
    if options or not 0 < number < 65536:
        raise UsageError(
            f"--url {text}: behind the question mark only metrics=PORT can stand",
            fix=f"Write {_EXAMPLE}",
        )
    return number


async def look_up(host: str, port: int) -> list[str]:
    """Asks the system for the addresses of a name.

    A host with both kinds of addresses would else count twice: those of version 4 are taken, where
    there are any.

    Raises:
        OSError: It has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family: dict[int, list[str]] = {}
    for family, _, _, _, place in found:
        by_family.setdefault(family, []).append(str(place[0]))
    return by_family.get(socket.AF_INET) or [
        f"[{address}]" for address in by_family.get(socket.AF_INET6, [])
    ]


async def servers_of(address: Address, resolve: Resolve = look_up) -> list[Address]:
    """Returns the address of each server that one stands for, sorted.

    Raises:
        OSError: The name cannot be resolved.
    """
    if address.is_fixed:
        return [address]
    hosts = sorted(set(await resolve(address.host, address.port)))
    return [replace(address, host=host, name=address.host) for host in hosts]
