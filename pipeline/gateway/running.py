"""A gateway that listens, in a thread with an event loop of its own, until it is stopped."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from typing_extensions import Self

from pipeline.errors import ServerError
from pipeline.gateway.desk import Desk
from pipeline.triton.ports import local_address

LOOK_S = 0.05
QUEUE = 1024
"""Connections that wait in the kernel to be taken."""
LAST_WORDS_S = 2.0
"""Seconds that connections get for an error event at the end of a drain."""
KEEP_ALIVE_S = 75
"""Longer than clients keep a connection they do not use, so that they never send into a closed
one."""

Checks = Callable[[Desk], Awaitable[None]]


def listen(host: str, port: int, option: str) -> socket.socket:
    """Opens the port; nothing is answered yet.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        option: Names the port in an error.

    Raises:
        ServerError: The port is in use or not allowed, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(QUEUE)
    except (OSError, OverflowError) as error:
        opened.close()
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        raise ServerError(
            f"the gateway's port {port} is in use"
            if in_use
            else f"the gateway's port {port} cannot be opened",
            where=f"{host}:{port}",
            why=str(error),
            fix=f"Stop the program that listens there, or choose another port with {option}"
            if in_use
            else f"Give an address of this machine, and {option} with a number from 0 to 65535",
        ) from error
    return opened


class RunningGateway:
    """Answers while a ``with`` block lasts; leaving it waits for requests in flight.

    Args:
        opened: What it listens on; closed in the end.
        make: Makes the desk, inside the event loop.
        check: Looks, inside the event loop, whether the server is the right one; until it has
            returned, requests are refused for ``trouble`` of the desk. What it raises ends the
            gateway.
        drain_s: Seconds that a stop waits for requests in flight.
        patience_s: Seconds that a start waits for ``check``; it answers meanwhile, and goes on
            where it takes longer.

    Attributes:
        url: Where clients find it.
    """

    def __init__(
        self,
        opened: socket.socket,
        make: Callable[[], Desk],
        check: Checks | None = None,
        *,
        drain_s: float,
        patience_s: float = 0.0,
    ) -> None:
        self._opened, self._make, self._check = opened, make, check
        self._drain_s, self._patience_s = drain_s, patience_s
        host, port = opened.getsockname()[:2]
        shown = local_address(host)
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._stopping = self._hurried = False
        self._desk: Desk | None = None

    @property
    def addresses(self) -> dict[str, str]:
        """Where clients find it, by ``openai``."""
        return {"openai": f"{self.url}/v1"}

    @property
    def inflight(self) -> int:
        """Requests that are being answered."""
        return self._desk.inflight if self._desk else 0

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def start(self) -> Self:
        """Starts it, and waits until it answers, and for the server behind it as long as it may.

        Raises:
            PipelineError: It cannot.
        """
        self._thread.start()
        self._ready.wait()
        self.raise_for_error()
        return self

    def stop(self) -> None:
        """Refuses new requests, waits for those in flight, and ends."""
        self._stopping = True
        if self._thread.ident is not None:
            self._thread.join()
        self._opened.close()

    def ask_to_stop(self) -> None:
        """Begins to stop, and does not wait; a second time the wait for requests ends.

        A signal handler may call it.
        """
        self._hurried = self._stopping
        self._stopping = True

    def wait(self, timeout_s: float) -> bool:
        """Waits until it has ended, or the time is up; returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def raise_for_error(self) -> None:
        """Raises what ended it, if that was an error.

        Raises:
            PipelineError: That one.
        """
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        # Raised by whoever waits for the thread.
        except BaseException as error:  # noqa: BLE001
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        import uvicorn

        from pipeline.gateway.app import make_app
        from pipeline.gateway.connections import MOST_AT_ONCE, bounded

        self._desk = desk = self._make()
        config = uvicorn.Config(
            make_app(desk),
            http=bounded(),
            backlog=MOST_AT_ONCE,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(LAST_WORDS_S),
        )
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[self._opened]))
        checking = asyncio.ensure_future(self._check(desk)) if self._check else None
        queues = False
        patient_until = time.monotonic() + self._patience_s
        try:
            while not (self._stopping or serving.done()):
                if checking and checking.done():
                    checking.result()
                    checking = None
                if server.started and not queues:
                    # uvicorn has made it as short as what it takes at a time.
                    queues = True
                    self._opened.listen(QUEUE)
                if server.started and (not checking or time.monotonic() > patient_until):
                    self._ready.set()
                await asyncio.sleep(LOOK_S)
            await self._drain(desk)
        finally:
            if checking:
                checking.cancel()
            server.should_exit = True
            await serving

    async def _drain(self, desk: Desk) -> None:
        desk.drain()
        end = time.monotonic() + self._drain_s
        while desk.inflight and not self._hurried and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        if desk.inflight:
            desk.give_up()
            last = time.monotonic() + LAST_WORDS_S
            while desk.inflight and time.monotonic() < last:
                await asyncio.sleep(LOOK_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
