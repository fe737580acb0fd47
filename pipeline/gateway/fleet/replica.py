"""One server of a fleet: whether it answers, how busy it is, and the streams that it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pipeline.gateway.engine import Engine, Generation, Tokens
from pipeline.gateway.fleet.load import Load, ask_load
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.fleet.prefixes import Remembered
from trtllm_client import ClientError

_PROBE_TIMEOUT_S = 5.0


class SilentError(Exception):
    """The stream was taken off a server that says nothing any more."""


class Replica:
    """A server.

    Args:
        name: Its name in metrics and errors; no two of a fleet have the same.
        engine: What reaches it.
        policy: How often it is looked at.
        changed: Called when it begins or ceases to answer.
        metrics: URL of its metrics page; None where there is none.

    Attributes:
        ready: Whether it answers; None while that is not known.
        draining: Whether it gets no new streams, because somebody said so.
        down_since: When it was last seen to answer, or first asked, in the loop's seconds; None
            while it is ready.
        load: What it said of itself last; None where that cannot be read.
        remembered: The beginnings of prompts that it was given.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        policy: Policy,
        changed: Callable[[], None],
        *,
        metrics: str | None = None,
    ) -> None:
        self.name, self.engine, self._policy, self._metrics = name, engine, policy, metrics
        self._changed = changed
        self.ready: bool | None = None
        self.draining = False
        self.down_since: float | None = None
        self.load: Load | None = None
        self.remembered = Remembered(policy.most_remembered)
        self._flows: set[Flow] = set()
        self._flows_then = 0
        self._failed_at = float("-inf")
        self._look_now = asyncio.Event()
        self._is_closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def build(self) -> str | None:
        """What tells its model from others, where the engine says it."""
        found = getattr(self.engine, "build", None)
        return found if isinstance(found, str) else None

    @property
    def streams(self) -> int:
        """Streams that this fleet has there."""
        return len(self._flows)

    @property
    def is_usable(self) -> bool:
        """Whether it may get a stream."""
        return bool(self.ready) and not self.draining

    @property
    def requests(self) -> float | None:
        """What it works on: its own number, and what was begun and ended here since it was told.

        None where it does not say. What waits there counts twice: it is in front of a new one.
        """
        if self.load is None:
            return None
        since = self.streams - self._flows_then
        return max(self.load.active + since, float(self.streams)) + self.load.waiting

    def start(self) -> None:
        """Begins to look after it."""
        self.down_since = asyncio.get_running_loop().time()
        chores = [self._probe()]
        if self._metrics is not None:
            chores.append(self._poll(self._metrics))
        self._tasks = [asyncio.get_running_loop().create_task(chore) for chore in chores]

    async def close(self) -> None:
        """Stops looking, and closes the connection."""
        # Before Python 3.12 ``wait_for`` may keep a cancellation to itself.
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()

    def begin(self, asked: Generation) -> Flow:
        """Starts a stream there."""
        flow = Flow(self, asked)
        self._flows.add(flow)
        return flow

    def ended(self, flow: Flow) -> None:
        """Says that a stream is over."""
        self._flows.discard(flow)

    def failed(self, flow: Flow) -> None:
        """Says that a stream's connection broke: it is down until it says that it is not."""
        if flow.began >= self._failed_at:
            self._failed_at = asyncio.get_running_loop().time()
            self._is(ready=False)
            self._look_now.set()

    async def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_closed:
            asked_at = loop.time()
            try:
                ready = await asyncio.wait_for(self.engine.ready(), _PROBE_TIMEOUT_S)
            except (ClientError, OSError, asyncio.TimeoutError):
                ready = False
            # A yes from before a connection broke says nothing about afterwards.
            if asked_at >= self._failed_at:
                self._is(ready=ready)
            if not self.ready:
                self._move_silent(loop.time())
            pause = self._policy.probe_s if self.ready else self._policy.lost_probe_s
            alarm = loop.call_later(pause, self._look_now.set)
            await self._look_now.wait()
            alarm.cancel()
            self._look_now.clear()

    def _is(self, *, ready: bool) -> None:
        before, self.ready = self.ready, ready
        if ready:
            self.down_since = None
        elif before is not False:
            self.down_since = self.down_since or asyncio.get_running_loop().time()
            self.load = None
            self.remembered.forget()
        if before != ready:
            self._changed()

    def _move_silent(self, now: float) -> None:
        for flow in tuple(self._flows):
            since = flow.waits_since
            if since is not None and now - since >= self._policy.silent_s:
                flow.move()

    async def _poll(self, url: str) -> None:
        while True:
            streams = self.streams
            load = await asyncio.to_thread(ask_load, url)
            self.load, self._flows_then = load, streams
            await asyncio.sleep(self._policy.metrics_s)


class Flow:
    """One stream on one server.

    Args:
        replica: The server.
        asked: What is asked of it.

    Attributes:
        began: When, in the loop's seconds.
        build: The server's, as it was when the stream began.
        waits_since: Since when it waits for tokens; None while it does not.
    """

    def __init__(self, replica: Replica, asked: Generation) -> None:
        self._replica = replica
        self._source: AsyncIterator[Tokens] = replica.engine.generate(asked)
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._is_moved = False
        self.began = self._loop.time()
        self.build = replica.build
        self.waits_since: float | None = None

    async def next(self) -> Tokens | None:
        """Returns what comes next; None at the end.

        Raises:
            SilentError: The server is not ready any more and says nothing.
            ClientError: The request failed.
        """
        self._task, self.waits_since = asyncio.current_task(), self._loop.time()
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            self._take_back()
            return None
        except (asyncio.CancelledError, ClientError) as error:
            if not self._take_back():
                raise
            raise SilentError from error
        finally:
            self.waits_since = None

    def move(self) -> None:
        """Takes it off the server, if it waits for it."""
        if self._task is not None and self.waits_since is not None and not self._is_moved:
            # As a timeout does: its reader waits in ``next``, which makes an error of it.
            self._is_moved = True
            self._task.cancel()

    def _take_back(self) -> bool:
        """Whether the task was cancelled by ``move`` alone; then it no longer counts as such."""
        if not self._is_moved or self._task is None:
            return False
        uncancel = getattr(self._task, "uncancel", None)  # from Python 3.11 on
        return uncancel is None or uncancel() == 0

    @property
    def server(self) -> str:
        """The server's name."""
        return self._replica.name

    def failed(self) -> None:
        """Says that its connection broke."""
        self._replica.failed(self)

    async def close(self) -> None:
        """Ends it at the server, if it still runs there."""
        self._replica.ended(self)
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()
