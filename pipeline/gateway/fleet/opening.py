"""A fleet of the servers at a list of addresses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.gateway.engine import Engine
from pipeline.gateway.fleet.addresses import Address, Resolve, look_up
from pipeline.gateway.fleet.discovery import Discovery
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.served import ServedEngine

if TYPE_CHECKING:
    from trtllm_client import Tls


def open_fleet(
    addresses: Sequence[Address],
    open_engine: Callable[[Address], Engine],
    policy: Policy | None = None,
    resolve: Resolve = look_up,
) -> Fleet:
    """Makes a fleet that keeps to what its addresses stand for until it is closed.

    Call it inside the running event loop that uses the fleet.

    Args:
        addresses: From :func:`pipeline.gateway.fleet.addresses.read_address`.
        open_engine: Makes what reaches a server, such as :func:`engine_at`.
        policy: How streams are placed and resumed.
        resolve: Looks names up.
    """
    fleet = Fleet(policy)
    discovery = Discovery(fleet, addresses, open_engine, resolve)
    fleet.before_close(discovery.close)
    discovery.start()
    return fleet


def engine_at(
    address: Address,
    *,
    tls: Tls | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> ServedEngine:
    """Opens the connection to one server.

    Args:
        address: The server's. Where a name stood for it, its certificate is for that name.
        tls: Certificates; a name in there comes first.
        headers: gRPC metadata of every call.
        timeout: Seconds for a request that says none itself; None is no limit.

    Raises:
        InvalidRequest: A certificate cannot be used.
    """
    if address.name and address.scheme == "grpcs":
        from trtllm_client import Tls

        tls = tls or Tls()
        if tls.server_name is None:
            tls = dataclasses.replace(tls, server_name=address.name)
    return ServedEngine(address.url, tls=tls, headers=headers, timeout=timeout)
