"""The servers of a fleet: which there are, which may be used, and which is best for a prompt."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from pipeline.gateway.engine import Engine
from pipeline.gateway.fleet.counts import Counts, ReplicaState
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.fleet.prefixes import Chain
from pipeline.gateway.fleet.replica import Replica
from pipeline.gateway.fleet.routing import Candidate, choose


class Roster:
    """Servers by name.

    Args:
        policy: How they are looked after, and chosen.
        counts: Notes which was chosen and why.

    Attributes:
        is_closed: Whether nothing goes on any more.
        expects_more: Whether servers are still being looked for, for the first time.
    """

    def __init__(self, policy: Policy, counts: Counts) -> None:
        self.is_closed = self.expects_more = False
        self._is_settled = False
        self._policy, self._counts = policy, counts
        self._replicas: dict[str, Replica] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    def add(self, name: str, engine: Engine, metrics: str | None) -> None:
        """Adds a server and begins to look after it.

        Raises:
            ValueError: There is one of this name.
        """
        if name in self._replicas:
            msg = f"there is a server {name} already"
            raise ValueError(msg)
        replica = Replica(name, engine, self._policy, self.tell_change, metrics=metrics)
        self._replicas[name] = replica
        replica.start()

    async def remove(self, name: str) -> None:
        """Takes a server out, whatever runs there.

        Raises:
            KeyError: There is none of this name.
        """
        replica = self._replicas.pop(name)
        self.tell_change()
        await replica.close()

    def drain(self, name: str, *, draining: bool) -> None:
        """Gives a server no new streams, or gives it some again.

        Raises:
            KeyError: There is none of this name.
        """
        self._replicas[name].draining = draining
        self.tell_change()

    def retire(self, name: str) -> None:
        """Drains a server, and takes it out when it has no stream any more.

        Raises:
            KeyError: There is none of this name.
        """
        self.drain(name, draining=True)
        task = asyncio.get_running_loop().create_task(self._remove_when_idle(name))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Closes all connections, once and for all."""
        self.is_closed = True
        for task in self._leaving:
            task.cancel()
        replicas, self._replicas = list(self._replicas.values()), {}
        self.tell_change()
        await asyncio.gather(*(replica.close() for replica in replicas))

    def usable(self) -> list[Replica]:
        """Returns those that may get a stream."""
        return [replica for replica in self._replicas.values() if replica.is_usable]

    def is_known(self) -> bool:
        """Tells whether all are there, and each of them has been asked once."""
        return not self.expects_more and all(
            replica.ready is not None for replica in self._replicas.values()
        )

    def is_whole(self) -> bool:
        """Tells whether none is missing that could still come: all are there, and ready."""
        return not self.expects_more and all(replica.ready for replica in self._replicas.values())

    def is_settled(self) -> bool:
        """Tells whether it is known which can be used, or has been once.

        Else all streams of the first moment would go to the one that answered first.
        """
        self._is_settled = self._is_settled or self.is_known()
        return self._is_settled

    def down_since(self) -> float | None:
        """Returns when the last one that answered was lost, in the loop's seconds.

        None where one answers, or there is none.
        """
        since = [replica.down_since for replica in self._replicas.values()]
        lost = [moment for moment in since if moment is not None]
        return max(lost) if lost and len(lost) == len(since) else None

    def states(self) -> list[ReplicaState]:
        """Returns all of them as they are now."""
        return [
            ReplicaState(
                name,
                bool(replica.ready),
                replica.draining,
                replica.streams,
                replica.requests,
                None if replica.load is None else replica.load.kv,
            )
            for name, replica in self._replicas.items()
        ]

    def choose(self, chain: Chain, among: Sequence[Replica]) -> Replica:
        """Chooses the server of a prompt, and notes that it gets it.

        Args:
            chain: The prompt's beginnings.
            among: At least one.
        """
        say = all(replica.requests is not None for replica in among)
        candidates = [_candidate(replica, chain, say=say) for replica in among]
        name, why = choose(candidates, chain[-1] if chain else b"", self._policy.load_factor)
        self._counts.routed[name, why] += 1
        replica = self._replicas[name]
        replica.remembered.note(chain)
        return replica

    def tell_change(self) -> None:
        """Wakes whoever waits for a change."""
        for future in self._waiting:
            _wake(future)

    async def changed(self, within_s: float = math.inf) -> None:
        """Waits until another set of servers can be used, or so long."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        alarm = None if within_s == math.inf else loop.call_later(within_s, _wake, future)
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if alarm is not None:
                alarm.cancel()

    async def _remove_when_idle(self, name: str) -> None:
        while (replica := self._replicas.get(name)) is not None and replica.draining:
            if not replica.streams:
                await self.remove(name)
                return
            await self.changed(self._policy.lost_probe_s)


def _candidate(replica: Replica, chain: Chain, *, say: bool) -> Candidate:
    matched = replica.remembered.matched(chain)
    load, requests = replica.load, replica.requests
    if not say or load is None or requests is None:
        return Candidate(replica.name, float(replica.streams), matched=matched)
    return Candidate(replica.name, requests, load.capacity, load.kv, load.waiting, matched)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
