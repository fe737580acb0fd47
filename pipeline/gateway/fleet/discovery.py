"""Keeps a fleet at the servers that its addresses stand for, as a headless Service's change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from pipeline.gateway.engine import Engine
from pipeline.gateway.fleet.addresses import Address, Resolve, look_up, servers_of
from pipeline.gateway.fleet.fleet import Fleet

logger = logging.getLogger(__name__)

AGAIN_S = 10.0
"""Seconds between two questions what a name stands for."""

UNKNOWN_AGAIN_S = 1.0
"""The same while it stands for nothing."""


class Discovery:
    """Adds the servers of a list of addresses to a fleet, and retires those that have gone.

    Args:
        fleet: Which.
        addresses: As given; a name may stand for several servers.
        open_engine: Makes what reaches a server.
        resolve: Looks names up.
        again_s: Seconds between two questions what a name stands for.
    """

    def __init__(
        self,
        fleet: Fleet,
        addresses: Sequence[Address],
        open_engine: Callable[[Address], Engine],
        resolve: Resolve = look_up,
        again_s: float = AGAIN_S,
    ) -> None:
        self._again_s = again_s
        self._fleet, self._addresses = fleet, list(addresses)
        self._open, self._resolve = open_engine, resolve
        self._last: dict[Address, list[Address]] = {}
        self._gone: set[str] = set()
        self._unresolved: set[Address] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins; what stands for one server is there at once."""
        for address in filter(lambda address: address.is_fixed, self._addresses):
            self._last[address] = [address]
        if len(self._last) < len(self._addresses):
            self._fleet.expect_more(more=True)
            self._tasks.append(asyncio.get_running_loop().create_task(self._look()))
        self._follow()

    async def close(self) -> None:
        """Asks no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _follow(self) -> None:
        wanted = {server.url: server for servers in self._last.values() for server in servers}
        there = {state.name: state for state in self._fleet.replicas()}
        for url, server in wanted.items():
            if url not in there:
                self._fleet.add(url, self._open(server), metrics=server.metrics_url)
            elif url in self._gone:
                self._fleet.drain(url, draining=False)
        gone = {name for name in there if name not in wanted}
        for name in gone - self._gone:
            self._fleet.retire(name)
        self._gone = gone

    async def _look_up(self, address: Address) -> None:
        try:
            self._last[address] = await servers_of(address, self._resolve)
        except OSError as error:
            # A name server that is away does not take the servers with it.
            if address not in self._unresolved:
                logger.warning("%s cannot be resolved: %s", address.host, error)
            self._unresolved.add(address)
        else:
            self._unresolved.discard(address)

    async def _look(self) -> None:
        while True:
            for address in self._addresses:
                await self._look_up(address)
            self._follow()
            self._fleet.expect_more(more=False)
            await asyncio.sleep(self._again_s if self._fleet.replicas() else UNKNOWN_AGAIN_S)
