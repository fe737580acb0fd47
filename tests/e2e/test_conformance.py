"""The thorough checks of ``verify`` on real servers: the CPU target's and the stand-in's."""

from __future__ import annotations

import queue
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from pipeline.verify import CHECKS, run_conformance

LONG = 400
ACTIVE = 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} '
INPUTS = [name for name in CHECKS if name.startswith(("input_", "engine_"))]
# `make conformance` runs all of them.
QUICK = [
    "max_tokens_zero",
    "prompt_limit",
    "large_prompt",
    "odd_prompts",
    "seeds",
    "log_probs_alone",
    "kv_reuse",
    "http_generate",
    "metrics_move",
]
ATTEMPTS = 20


def active(server: Any) -> float:
    """Requests that the engine works on, by its metrics."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
        text = answer.read().decode()
    return float(text.partition(ACTIVE)[2].partition("\n")[0])


def verified(server: Any, names: list[str]) -> dict[str, Any]:
    report = run_conformance(
        server.grpc_url, only=names, http=server.http_url, metrics=server.metrics_url
    )
    return {result.name: result for result in report.results}


def test_a_server_of_the_cpu_target_fails_none(server: Any) -> None:
    results = verified(server, QUICK)
    assert {name: result.reason for name, result in results.items()} == dict.fromkeys(QUICK)


@pytest.mark.strict
def test_a_server_of_the_cpp_backend_fails_none(strict: Any) -> None:
    results = verified(strict, INPUTS)
    assert {r.name: r.reason for r in results.values() if r.status == "failed"} == {}
    assert sum(result.status == "passed" for result in results.values()) > 25


def test_the_engine_lets_go_of_a_request_of_the_ensemble_whose_client_has_gone(
    server: Any,
) -> None:
    """By an official client, and by how many pieces the server decodes until it is idle.

    A busy machine may generate all before it sees that the client has gone, so that one of many
    attempts is enough; a request that runs on is decoded to its end each time.
    """
    whole = pieces_of(server, leave=False)
    assert whole > LONG / 8
    attempts: list[float] = []
    while not attempts or (attempts[-1] >= whole / 2 and len(attempts) < ATTEMPTS):
        attempts.append(pieces_of(server, leave=True))
    assert attempts[-1] < whole / 2, (whole, attempts)


def pieces_of(server: Any, *, leave: bool) -> float:
    """How many pieces of a long stream of the ensemble are decoded."""
    before = decoded(server)
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("ensemble", inputs("Once upon a time", LONG))
        first = answers.get(timeout=60)
        assert not isinstance(first, Exception), first
        client.stop_stream(cancel_requests=leave)
    deadline = time.monotonic() + 60
    while active(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return decoded(server) - before


def decoded(server: Any) -> float:
    """Calls of ``postprocessing`` so far."""
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        (stats,) = client.get_inference_statistics("postprocessing").model_stats
    return float(stats.inference_count)


def inputs(prompt: str, tokens: int) -> list[Any]:
    made = []
    for name, kind, value in (
        ("text_input", "BYTES", np.array([[prompt.encode()]], object)),
        ("max_tokens", "INT32", np.array([[tokens]], np.int32)),
        ("end_id", "INT32", np.array([[-1]], np.int32)),
        ("stream", "BOOL", np.array([[True]])),
    ):
        made.append(grpcclient.InferInput(name, [1, 1], kind))
        made[-1].set_data_from_numpy(value)
    return made
