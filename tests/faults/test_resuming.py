"""A stream over the gateway's fleet outlives the processes that serve it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.load import ask_load
from pipeline.gateway.fleet.policy import Policy
from pipeline.gateway.served import ServedEngine

from .record import Fault
from .resuming import MOST_S, Load, fleet_at, judge, resumes_of, undisturbed, wanted_texts
from .service import Service

STREAMS = 8
TOKENS = 250


def test_a_server_says_how_busy_it_is(repository: Path, service: Service) -> None:
    """With its own page, read by the helper of these tests, too."""
    service.wait_idle()
    load = ask_load(service.metrics)
    assert load is not None
    assert load.active == load.waiting == load.kv == 0
    assert load.capacity == service.gauge("nv_trt_llm_request_metrics", request_type="max") == 32
    texts = wanted_texts(repository, 1, TOKENS)

    async def look(loaded: Load) -> None:
        (state,) = loaded.engine.replicas()  # type: ignore[attr-defined]
        until_busy = time.monotonic() + MOST_S
        while not (state.requests == 2 and state.kv):
            assert time.monotonic() < until_busy, state
            await asyncio.sleep(0.02)
            (state,) = loaded.engine.replicas()  # type: ignore[attr-defined]

    async def work() -> None:
        fleet = Fleet(Policy(metrics_s=0.05))
        fleet.add("one", ServedEngine(service.grpc), metrics=service.metrics)
        try:
            got = await Load(fleet, texts, 2).run(look)
        finally:
            await fleet.close()
        assert [each.error for each in got] == [None] * len(got)

    asyncio.run(work())


def test_streams_go_on_when_their_server_is_killed(
    repository: Path, service: Service, fault: Callable[..., Fault]
) -> None:
    row = fault(
        "streams of token ids over a fleet of one server",
        f"the engine's stub, then tritonserver killed, with {STREAMS} streams open",
        "no stream ends with an error, and each text is that of an undisturbed run",
    )
    texts = wanted_texts(repository, STREAMS, TOKENS)

    async def kill(load: Load) -> None:
        # Which texts are open at a kill is chance: once more, where only one kind was hit.
        for _ in range(3):
            for victim in (lambda: service.stub("tensorrt_llm"), lambda: service.server):
                await load.flowing()
                os.kill(victim(), signal.SIGKILL)
            await load.flowing()
            resumes = load.engine.counts.resumes  # type: ignore[attr-defined]
            if resumes["resumed", "continued"] and resumes["resumed", "replayed"]:
                return

    async def work() -> None:
        calm = await undisturbed(service.grpc, texts, STREAMS)
        assert [len(each.ids) for each in calm] == [TOKENS] * STREAMS
        fleet = fleet_at([service.grpc], Policy(wait_s=MOST_S))
        try:
            got = await Load(fleet, texts, STREAMS).run(kill)
        finally:
            await fleet.close()
        verdict = judge(got, calm, resumes_of(fleet))
        row.measured("texts", verdict.texts, "")
        row.measured("streams resumed", fleet.counts.stalls, "")
        row.measured("longest stall", verdict.longest_stall_s, at_most=5)
        assert verdict.causes == []
        assert verdict.different == 0
        # Both kinds were hit.
        assert fleet.counts.resumes["resumed", "continued"] > 0
        assert fleet.counts.resumes["resumed", "replayed"] > 0
        assert fleet.counts.stalls >= 2

    asyncio.run(work())
