"""A stream that is read beside the main thread, and the signals that come meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from pipeline.cli.reading import Reading


class Silent:
    """A stream that has one chunk, and then nothing until it is cancelled."""

    request_id = "1"

    def __init__(self) -> None:
        self.over = threading.Event()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_error: object) -> None:
        self.over.set()

    def __iter__(self) -> Iterator[str]:
        yield "Once"
        self.over.wait(60)

    def cancel(self) -> None:
        self.over.set()


@pytest.fixture
def interrupting() -> Iterator[signal.Signals]:
    """A signal that interrupts as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.timeout(30)
def test_a_signal_that_does_not_wake_the_main_thread_still_interrupts(
    interrupting: signal.Signals,
) -> None:
    stream: Any = Silent()
    # The kernel gives it to a thread that does not run Python's handlers, so no wait is broken off.
    # A signal between the main thread's last look and its wait ends likewise.
    elsewhere = threading.Timer(
        0.3, lambda: signal.pthread_kill(threading.get_ident(), interrupting)
    )
    with Reading(lambda: stream, lambda _id: None) as pieces:
        chunks = iter(pieces)
        assert next(chunks) == "Once"
        elsewhere.start()
        with pytest.raises(KeyboardInterrupt):
            next(chunks)
    assert stream.over.is_set()
