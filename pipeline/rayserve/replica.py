"""One replica: it supervises one server and hands on the token ids that it makes.

Nothing of Ray is imported here. Ray calls :meth:`Replica.check_health` every few seconds, takes the
replica out of the traffic and starts another one when it has failed three times, and calls
``__del__`` when it stops one whose requests are done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.errors import ServerError
from pipeline.rayserve.wire import Item, Request, pack_error, pack_tokens, unpack_request
from pipeline.service.relay import Relay
from pipeline.service.sink import Sink
from pipeline.serving import check_custody, open_server
from pipeline.store.deployed import find_repository
from trtllm_client import ClientError, ConnectionFailed

if TYPE_CHECKING:
    from pipeline.gateway.engine import Engine, Tokens
    from pipeline.triton.running import RunningServer

STDERR = 2
PATIENCE_S = 20.0
"""Seconds that a server may take to come back before this replica is no longer a healthy one, and
before its requests go on at another. Small engines are back by then."""
POLL_S = 0.2
EXIT_S = 5
"""Seconds that the server waits for requests in flight. Ray has waited for them before it stops a
replica, so there are none but those whose time was up."""


class Replica:
    """Serves a repository and generates on it.

    Args:
        repository: The repository, or the folder of its build, on this node.
        verify: Whether to check every file of it first.
        patience_s: Seconds that requests wait for a server that is being started again.

    Raises:
        RepositoryError: The repository is not what was built.
        ServerError: The server did not start.
        UnsupportedError: This node cannot serve it.
    """

    def __init__(
        self, repository: str, *, verify: bool = True, patience_s: float = PATIENCE_S
    ) -> None:
        self._held = ExitStack()
        self._patience_s, self._down_since, self._broke = patience_s, 0.0, False
        self._engine: Engine | None = None
        path = find_repository(Path(repository))
        if verify:
            check_custody(path)
        with ExitStack() as held:
            # Ray keeps what its workers write, rotates it, and shows it in its dashboard.
            stream = Sink(STDERR)
            self._relay = held.enter_context(Relay(stream, stream))
            self._server: RunningServer = held.enter_context(
                open_server(path, self._relay.log, http=False, exit_timeout_s=EXIT_S)
            )
            self._held = held.pop_all()

    async def generate(self, request: Request) -> AsyncGenerator[Item, None]:
        """Generates, and yields each response as :mod:`pipeline.rayserve.wire` has it.

        A server that is being started again is waited for: failing at once would make this replica
        look like the one with the least to do.

        Args:
            request: From :func:`pipeline.rayserve.wire.pack_request`.
        """
        asked = unpack_request(request)
        try:
            await self._wait_until_up()
            responses = cast("AsyncGenerator[Tokens, None]", self._served().generate(asked))
            async with aclosing(responses):
                async for tokens in responses:
                    yield pack_tokens(tokens)
        except ClientError as error:
            self._broke = self._broke or isinstance(error, ConnectionFailed)
            yield pack_error(error)

    async def check_health(self) -> None:
        """Asks the server whether every model is ready.

        One that its watchdog is starting again counts as healthy for as long as requests wait for
        it.

        Raises:
            ServerError: It is not ready, or beyond recovery.
        """
        for news in self._server.news():
            self._relay.say(news)
        # Says so by an error where the watchdog has given up.
        await asyncio.to_thread(self._server.wait, 0)
        if await asyncio.to_thread(self._server.answers):
            self._down_since = 0.0
            return
        trouble = self._server.trouble
        now = time.monotonic()
        self._down_since = self._down_since or now
        if trouble is None or now - self._down_since > self._patience_s:
            raise ServerError(
                "the server does not answer that it is ready",
                why=trouble,
                fix="Ray replaces this replica; the lines above have the server's own",
            )

    def address(self) -> str:
        """Returns ``host:port`` of the server's gRPC endpoint, on this node alone."""
        return self._server.grpc_url

    def __del__(self) -> None:
        self._held.close()

    def _served(self) -> Engine:
        # Its connection belongs to the event loop that uses it, which there is only now.
        if self._engine is None:
            from pipeline.gateway.served import ServedEngine

            self._engine = ServedEngine(f"grpc://{self._server.grpc_url}")
        return self._engine

    async def _wait_until_up(self) -> None:
        until = time.monotonic() + self._patience_s
        while not await self._is_up():
            if time.monotonic() > until:
                raise ConnectionFailed(
                    "the server did not come back",
                    where=self._server.grpc_url,
                    why=self._server.trouble,
                    fix="The replica's log has the server's",
                )
            await asyncio.sleep(POLL_S)

    async def _is_up(self) -> bool:
        if self._server.trouble is not None:
            self._broke = True
            return False
        if self._broke:
            # A connection that found nobody tries again when it likes, and fails until then.
            self._broke = not await self._served().ready()
        return not self._broke
