"""Processes that die or stand still under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
import pytest

from ..raising_engine import raising_at
from .asking import Outcome, Streams, answers, ask_alone, prompts
from .edited import appended, edited
from .record import Fault
from .service import Service, until

STREAMS = 8
TOKENS = 400
BACK_S = 120.0
"""Seconds after which a test gives the service up, on a machine that does a lot else."""


@dataclass
class Said:
    """What readiness said, as a load balancer hears it.

    Attributes:
        no: Seconds until the first no.
        yes: Seconds until the first yes after that.
        served: Whether a request right then was answered.
    """

    no: float | None = None
    yes: float | None = None
    served: bool | None = None


class Readiness:
    """Asks whether the server is ready, all the time."""

    def __init__(self, service: Service) -> None:
        self.said = Said()
        self._service, self._stop = service, threading.Event()
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            ready, now = self._service.is_ready(), time.monotonic() - self._since
            if not ready:
                self.said.no = self.said.no or now
            elif self.said.no:
                self.said.yes = now
                self.said.served = answers(self._service.grpc)
                return

    def wait(self) -> Said:
        """Waits until it is ready again."""
        self._thread.join(BACK_S)
        self._stop.set()
        self._thread.join()
        return self.said

    def __enter__(self) -> Readiness:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


def strike(service: Service, number: int, victim: int) -> tuple[list[Outcome], Said]:
    """Sends a signal to a process with streams open; times are those since the signal."""
    with Streams(service.grpc, prompts(STREAMS), TOKENS) as streams:
        streams.wait_flowing()
        struck = time.monotonic()
        with Readiness(service) as readiness:
            os.kill(victim, number)
            outcomes = streams.join()
            said = readiness.wait()
    for outcome in outcomes:
        outcome.ended -= struck
    return outcomes, said


def judge(
    row: Fault, outcomes: list[Outcome], said: Said, *, error_s: float, back_s: float
) -> None:
    """Notes and asserts what holds for each of them."""
    failed = [outcome for outcome in outcomes if outcome.error]
    assert failed, "nothing was in flight any more"
    row.measured("streams that ended with an error", len(failed), "")
    last = max(outcome.ended for outcome in failed)
    row.measured("the last error after", last, at_most=error_s)
    assert last < error_s + 40
    assert said.no is not None
    assert said.yes is not None
    row.measured("ready said no after", said.no, at_most=error_s)
    row.measured("back after", said.yes, at_most=back_s)
    assert said.yes < BACK_S
    # The rest was whole: an end without an error is an answer.
    assert all(outcome.tokens == TOKENS for outcome in outcomes if not outcome.error)
    assert said.served, "ready said yes and a request failed"


HOLDS = (
    "what is in flight ends with an error, within {error:g} s; ready says no, and yes only when a "
    "request is answered; back within {back:g} s with the same texts"
)
# The supervisor looks twice a second at who lives, and takes 3 s of standing still for a fault.
KILLED = (2.0, 10.0)
STOPPED = (5.0, 15.0)


def strike_and_judge(
    service: Service, fault: Callable[..., Fault], whom: str, number: signal.Signals
) -> None:
    error_s, back_s = KILLED if number == signal.SIGKILL else STOPPED
    name = whom if whom == "tritonserver" else f"stub of {whom}"
    row = fault(
        f"{name} {'killed' if number == signal.SIGKILL else 'stopped'}",
        f"{number.name} with {STREAMS} streams open",
        HOLDS.format(error=error_s, back=back_s),
    )
    before = ask_alone(service.grpc, prompts(3), 40)
    old = service.server
    victim = old if whom == "tritonserver" else service.stub(whom)
    outcomes, said = strike(service, number, victim)
    judge(row, outcomes, said, error_s=error_s, back_s=back_s)
    assert ask_alone(service.grpc, prompts(3), 40) == before
    assert service.server != old
    until(lambda: not psutil.pid_exists(old), 30, "the old server has gone")


def test_a_killed_engine_is_replaced(service: Service, fault: Callable[..., Fault]) -> None:
    strike_and_judge(service, fault, "tensorrt_llm", signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("whom", "number"),
    [
        ("tensorrt_llm_bls", signal.SIGKILL),
        ("preprocessing", signal.SIGKILL),
        ("tensorrt_llm", signal.SIGSTOP),
        ("tensorrt_llm_bls", signal.SIGSTOP),
        ("tritonserver", signal.SIGKILL),
        ("tritonserver", signal.SIGSTOP),
    ],
)
def test_a_process_that_is_struck_is_replaced(
    repository: Path,
    own: Callable[..., Service],
    fault: Callable[..., Fault],
    whom: str,
    number: signal.Signals,
) -> None:
    """Each on a server of its own, since a restart soon after another one waits a while."""
    strike_and_judge(own(repository), fault, whom, number)


@pytest.mark.faults
@pytest.mark.parametrize("step", [0, 1, 50])
def test_an_engine_that_raises_tells_everybody(
    repository: Path,
    tmp_path: Path,
    own: Callable[..., Service],
    fault: Callable[..., Fault],
    step: int,
) -> None:
    row = fault(
        f"the engine raises at step {step}",
        f"its step() does, with {STREAMS} streams open, in a copy of the repository",
        HOLDS.format(error=2, back=10),
    )
    code = raising_at(step)
    damaged = edited(repository, tmp_path / "damaged", {"tensorrt_llm/1/engine.py": appended(code)})
    service = own(damaged)
    with (
        Readiness(service) as readiness,
        Streams(service.grpc, prompts(STREAMS), TOKENS) as streams,
    ):
        outcomes = streams.join()
        ended = time.monotonic()
        until(lambda: "starting Triton again" in service.voice, BACK_S, "it is noticed")
        until(service.is_ready, BACK_S, "ready again")
        back = time.monotonic() - ended
        said = readiness.said
    assert all(outcome.error for outcome in outcomes)
    texts = {str(outcome.error) for outcome in outcomes}
    # Who had something before is told by the text model, the others by the engine's.
    told = ("the engine stopped working", "tensorrt_llm failed while it was serving the request")
    assert all(any(words in text for words in told) for text in texts), texts
    row.measured("streams that ended with an error", len(outcomes), "")
    first = min(outcome.ended for outcome in outcomes)
    row.measured("from the first error to the last", ended - first, at_most=2)
    row.measured("back after", back, at_most=10)
    assert said.no is not None
    assert "out of order" in service.log.read_text()
