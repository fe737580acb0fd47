"""A fleet of the servers at a list of addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.gateway.engine import Engine
from pipeline.gateway.fleet.addresses import Address, Resolve, look_up
from pipeline.gateway.fleet.discovery import Discovery
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.policy import Policy


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
        open_engine: Makes what reaches a server. Where ``name`` is set, the server's certificate is
            for that and not for the host.
        policy: How streams are placed and resumed.
        resolve: Looks names up.
    """
    fleet = Fleet(policy)
    discovery = Discovery(fleet, addresses, open_engine, resolve)
    fleet.before_close(discovery.close)
    discovery.start()
    return fleet
