"""Several servers as one engine, and streams that outlive theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from pipeline.gateway.engine import Engine, Generation, Tokens
from pipeline.gateway.fleet.counts import Counts, ReplicaState
from pipeline.gateway.fleet.going_on import OtherTokensError
from pipeline.gateway.fleet.journey import Journey
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.fleet.replica import SilentError
from pipeline.gateway.fleet.roster import Roster
from trtllm_client import ClientError


class Fleet:
    """An engine made of several; one that is lost is waited for, or another one takes its place.

    Make it, and add servers, inside the running event loop that uses it.

    Args:
        policy: How streams are placed and resumed.

    Attributes:
        counts: What it has done.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.counts = Counts()
        self._roster = Roster(self.policy, self.counts)
        self._chores: list[Callable[[], Awaitable[None]]] = []

    def add(self, name: str, engine: Engine, *, metrics: str | None = None) -> None:
        """Adds a server, which gets streams as soon as it says that it is ready.

        Args:
            name: Its name in metrics and errors.
            engine: What reaches it; closed by the fleet.
            metrics: URL of its metrics page, to tell how busy it is. Where that of one cannot be
                read, all are compared by the streams that this fleet has there.

        Raises:
            ValueError: There is one of this name.
        """
        self._roster.add(name, engine, metrics)

    def expect_more(self, *, more: bool) -> None:
        """Says whether servers are still being looked for, so that nobody takes it for empty."""
        self._roster.expects_more = more
        self._roster.tell_change()

    async def remove(self, name: str) -> None:
        """Takes a server out at once; its streams go on elsewhere.

        Raises:
            KeyError: There is none of this name.
        """
        await self._roster.remove(name)

    def drain(self, name: str, *, draining: bool = True) -> None:
        """Gives a server no new streams, or gives it some again; those it has run on.

        Raises:
            KeyError: There is none of this name.
        """
        self._roster.drain(name, draining=draining)

    def retire(self, name: str) -> None:
        """Drains a server, and takes it out when it has no stream any more.

        Raises:
            KeyError: There is none of this name.
        """
        self._roster.retire(name)

    def replicas(self) -> list[ReplicaState]:
        """Returns the servers as they are now."""
        return self._roster.states()

    async def ready(self) -> bool:
        """Tells whether one of the servers takes requests."""
        while not self._roster.is_known() and not self._roster.is_closed:
            await self._roster.changed()
        return bool(self._roster.usable())

    def before_close(self, chore: Callable[[], Awaitable[None]]) -> None:
        """Keeps something to be called when the fleet is closed, once."""
        self._chores.append(chore)

    async def close(self) -> None:
        """Closes all connections; running requests end as cancelled."""
        for chore in self._chores:
            await chore()
        self._chores.clear()
        await self._roster.close()

    async def generate(self, asked: Generation) -> AsyncIterator[Tokens]:
        """Generates on one of the servers, and goes on elsewhere or later when that one is lost.

        Args:
            asked: What to generate.

        Raises:
            ServerFailed: The server failed and could not be waited for any more, or what was made
                again of the text is not what had been given.
            ConnectionFailed: No server answers.
            ClientError: The request's own errors, which no other server could mend.
        """
        journey = Journey(self._roster, self.policy, self.counts, asked)
        flow = None
        try:
            while True:
                flow = await journey.begin()
                try:
                    while (tokens := await flow.next()) is not None:
                        if (new := journey.take(tokens)) is not None:
                            yield new
                    journey.take(None)
                    return
                except (ClientError, SilentError, OtherTokensError) as error:
                    await flow.close()
                    if not journey.goes_on(flow, error):
                        return
        finally:
            if flow is not None:
                await flow.close()
