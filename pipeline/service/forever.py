"""Serves a repository until it is told to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.service import notify
from pipeline.service.activity import Counters, activity, ask
from pipeline.service.relay import Relay
from pipeline.serving import serving
from pipeline.triton.running import RunningServer

if TYPE_CHECKING:
    from types import FrameType

POLL_S = 0.2


class Beside(Protocol):
    """What runs beside a server that is ready, such as a gateway."""

    @property
    def addresses(self) -> dict[str, str]:
        """Where it is, by what it is."""
        ...

    def ask_to_stop(self) -> None:
        """Ends its wait for requests in flight where it is stopping."""
        ...

    def raise_for_error(self) -> None:
        """Raises what ended it."""
        ...


def serve_forever(
    repository: Path,
    relay: Relay,
    on_ready: Callable[[dict[str, str], float], None],
    *,
    report_every: float,
    beside: Callable[[RunningServer], AbstractContextManager[Beside]] | None = None,
    **options: Any,
) -> None:
    """Serves until SIGINT or SIGTERM, or until the server is beyond recovery.

    A second signal ends the wait for requests in flight.

    Args:
        repository: A deployed Triton repository.
        relay: Takes the server's log, and what is said meanwhile.
        on_ready: Called with the addresses by protocol and the seconds it took.
        report_every: Seconds between two lines about what was done; 0 for none.
        beside: Makes what runs beside the server while it is ready, and stops before it.
        options: Passed to :func:`pipeline.serving.serving`.

    Raises:
        RepositoryError: See :func:`pipeline.serving.check_custody`.
        UnsupportedError: See :func:`pipeline.serving.open_server`.
        ServerError: The server did not start, or died.
    """
    started, manager = time.monotonic(), notify.take_socket()
    with (
        _kept_handlers(signal.SIGINT, signal.SIGTERM) as numbers,
        serving(repository, relay.log, **options) as server,
        ExitStack() as stack,
    ):
        # A stop from here on is a clean exit; during start-up it is an interruption.
        stop = _Stop(server, relay)
        for number in numbers:
            signal.signal(number, stop.ask)
        addresses = server.addresses
        also = stack.enter_context(beside(server)) if beside else None
        if also:
            addresses |= also.addresses
            stop.also = also
        on_ready({**addresses, "metrics": server.metrics_url}, time.monotonic() - started)
        notify.tell(manager, "READY=1")
        report = _Report(server, report_every)
        while not stop.is_asked:
            server.wait(POLL_S)
            if also:
                also.raise_for_error()
            for text in server.news():
                relay.say(f"{timestamp()} {text}")
            if line := report.line():
                relay.say(line)
        notify.tell(manager, "STOPPING=1")
        relay.say(farewell(ask(server.metrics_url, server.metrics_headers), server.patience_s))


def farewell(counters: Counters | None, patience_s: float) -> str:
    """Says that the server stops, and what it waits for.

    Args:
        counters: What it does; None where that is not known.
        patience_s: Seconds that requests in flight get.
    """
    active = None if counters is None else counters.active
    if active == 0:
        return "stopping; no request is in flight"
    which = "requests"
    if active is not None:
        which = "1 request" if active == 1 else f"{active:,.0f} requests"
    return (
        f"stopping; waits up to {patience_s:.0f} s for {which} in flight, and not at all after "
        "another Ctrl-C or SIGTERM"
    )


class _Stop:
    """Handles SIGINT and SIGTERM of a server that is ready."""

    def __init__(self, server: RunningServer, relay: Relay) -> None:
        self.is_asked = False
        self.also: Beside | None = None
        self._server, self._relay = server, relay

    def ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_asked:
            self._relay.say("stopping at once")
            self._server.hurry()
        if self.also:
            # The first time it begins to stop, the second time it waits no longer.
            self.also.ask_to_stop()
        self.is_asked = True


class _Report:
    """Makes a line every so often, unless nothing happened."""

    def __init__(self, server: RunningServer, every: float) -> None:
        self._server, self._every = server, every
        self._before = (self._ask() if every else None) or Counters()
        self._since = self._next = time.monotonic()
        self._next += every

    def line(self) -> str | None:
        now = time.monotonic()
        if not self._every or now < self._next:
            return None
        self._next = now + self._every
        if trouble := self._server.trouble:
            return f"{timestamp()} not serving: {trouble}"
        counters = self._ask()
        if counters is None:
            return None
        said = activity(self._before, counters, now - self._since)
        self._before, self._since = counters, now
        return f"{timestamp()} {said}" if said else None

    def _ask(self) -> Counters | None:
        return ask(self._server.metrics_url, self._server.metrics_headers)


def timestamp() -> str:
    """Returns the time as lines of a service have it in front: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def _kept_handlers(*numbers: signal.Signals) -> Iterator[tuple[signal.Signals, ...]]:
    """Restores the current signal handlers on exit."""
    previous = [signal.getsignal(number) for number in numbers]
    try:
        yield numbers
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
