"""SIGTERM while there is something to do."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as grpcclient

from trtllm_client import Client, ClientError

from .asking import Streams, ask_alone, prompts
from .record import Fault
from .service import Service, until

STREAMS = 12
TOKENS = 250
DRAIN = 60
"""Seconds that what is in flight gets, more than a loaded machine needs for it."""

CLEAR_UP_S = 4
"""Seconds that a stop takes beyond them, as docs/serve.md says."""


@pytest.mark.faults
def test_what_is_in_flight_finishes(
    repository: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    row = fault(
        "SIGTERM under load",
        f"with {STREAMS} streams open",
        "each of them ends whole, a request after the signal is refused, exit code 0, and no "
        "process is left",
    )
    service = own(repository, "--drain", str(DRAIN))
    wanted = prompts(STREAMS)
    alone = ask_alone(service.grpc, wanted, TOKENS)
    processes = service.processes()
    with Streams(service.grpc, wanted, TOKENS) as streams:
        streams.wait_flowing()
        service.signal(signal.SIGTERM)
        signalled = time.monotonic()
        until(lambda: "stopping" in service.voice, 30, "it says that it stops")
        open_then = sum(not outcome.ended for outcome in streams.outcomes)
        with Client(service.grpc, timeout=20) as client:
            until(lambda: _refuses(client), 30, "a new request is refused")
        outcomes = streams.join()
    code = service.ended(DRAIN + 30)
    row.measured("streams open at the signal", open_then, f"of {STREAMS}")
    row.measured("the last one ended after", max(o.ended for o in outcomes) - signalled)
    row.measured("exit after", time.monotonic() - signalled)
    assert code == 0
    assert open_then > 0, "everything had ended before the signal"
    assert [outcome.error for outcome in outcomes] == [None] * STREAMS
    assert [outcome.text for outcome in outcomes] == [alone[prompt] for prompt in wanted]
    until(lambda: not any(map(_lives, processes)), 10, "no process is left")


def _refuses(client: Client) -> bool:
    try:
        client.generate("One day", max_tokens=1)
    except ClientError:
        return True
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@pytest.mark.faults
def test_a_stream_that_is_held_open_holds_nobody_up(
    repository: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    drain = 3
    row = fault(
        "SIGTERM with a held stream",
        "a client has its answer and keeps its gRPC stream open for ever",
        f"exit code 0 within --drain ({drain} s) and {CLEAR_UP_S} s",
    )
    service = own(repository, "--drain", str(drain))
    answers: queue.Queue[Any] = queue.Queue()
    client = grpcclient.InferenceServerClient(service.grpc)
    try:
        client.start_stream(lambda result, error: answers.put(error or result))
        inputs = []
        for name, kind, value in (("text_input", "BYTES", b"One day"), ("max_tokens", "INT32", 4)):
            tensor = grpcclient.InferInput(name, [1, 1], kind)
            tensor.set_data_from_numpy(_array(kind, value))
            inputs.append(tensor)
        client.async_stream_infer("tensorrt_llm_bls", inputs)
        assert not isinstance(answers.get(timeout=60), Exception)
        service.wait_idle()
        service.signal(signal.SIGTERM)
        signalled = time.monotonic()
        assert service.ended(60) == 0
        row.measured("exit after", time.monotonic() - signalled, at_most=drain + CLEAR_UP_S)
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def _array(kind: str, value: object) -> Any:
    import numpy as np

    return np.array([[value]], object if kind == "BYTES" else np.int32)
