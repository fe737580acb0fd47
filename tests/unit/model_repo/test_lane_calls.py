"""``tensorrt_llm_bls`` asks an engine that answers over a lane, as its own responder does.

What must come out is written down; Triton is played by functions, the sockets are real.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest

from model_repo.tensorrt_llm.lanes import LaneCall, Lanes
from model_repo.tensorrt_llm_bls.calls import CallError, Models
from tests.unit.model_repo.fake_triton import (
    HANDLERS,
    InferenceRequest,
    InferenceResponse,
    TritonError,
)
from tests.unit.model_repo.test_bls import answer

TOKENS = {"input_ids": np.array([[1]], np.int32)}
FAILED = "failed while it was serving the request; the reason is in the server's log"


class Engine:
    """Says on the lane, and then to Triton, what a test wants."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lanes = Lanes(name)
        self.asked: list[InferenceRequest] = []
        self.answer: Callable[[InferenceRequest, LaneCall], Iterator[InferenceResponse]]

    def __call__(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        self.asked.append(request)
        call = self.lanes.find(request.parameters.get("triton_lane"))
        assert call is not None
        # As Triton, which waits for the first response.
        responses = self.answer(request, call)
        return chain((next(responses),), responses)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = Engine(f"engine-{os.getpid()}-{id(request)}")
    HANDLERS[made.name] = made
    yield made
    made.lanes.close()
    del HANDLERS[made.name]


@pytest.fixture
def models(engine: Engine) -> Iterator[Models]:
    made = Models(engine.name)
    yield made
    made.close()


def outputs(*ids: int) -> dict[str, np.ndarray]:
    return {"output_ids": np.array([[ids]], np.int32).reshape(1, 1, -1)}


def say(call: LaneCall, *ids: int, last: bool = False) -> None:
    call.put(outputs(*ids), last=last)
    call.lane.flush()


def asked(models: Models, *, streaming: bool = True) -> Iterator[dict[str, Any]]:
    return models.generate({}, TOKENS, ["output_ids"], request_id="a", streaming=streaming)


def heard(models: Models) -> list[list[int]]:
    return [one["output_ids"].reshape(-1).tolist() for one in asked(models)]


def test_tokens_are_heard_while_triton_still_has_the_call(engine: Engine, models: Models) -> None:
    go_on = threading.Event()

    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        say(call, 1)
        assert go_on.wait(60)
        say(call, 2, 3, last=True)
        yield InferenceResponse([])

    engine.answer = said
    found = asked(models)
    assert next(found)["output_ids"].tolist() == [[[1]]]
    go_on.set()
    assert [one["output_ids"].tolist() for one in found] == [[[[2, 3]]]]


def test_tritons_answer_may_overtake_what_is_on_the_lane(engine: Engine, models: Models) -> None:
    late: list[threading.Timer] = []

    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        say(call, 1)
        late.append(threading.Timer(0.2, lambda: say(call, 2, last=True)))
        late[0].start()
        yield InferenceResponse([])

    engine.answer = said
    assert heard(models) == [[1], [2]]
    late[0].join()


def test_an_error_follows_the_tokens_before_it_with_its_text_and_status(
    engine: Engine, models: Models
) -> None:
    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        def rest() -> None:
            say(call, 2)
            call.put({}, last=True)
            call.lane.flush()

        say(call, 1)
        threading.Timer(0.2, rest).start()
        text = "[UNAVAILABLE] after the tokens of the lane: the cache is full"
        yield InferenceResponse(error=TritonError(text))

    engine.answer = said
    found = []
    with pytest.raises(CallError, match=r"^the cache is full$") as caught:
        found += [one["output_ids"].tolist() for one in asked(models)]
    assert caught.value.code == TritonError.UNAVAILABLE

    streamed = asked(models)
    assert next(streamed)["output_ids"].tolist() == [[[1]]]
    assert next(streamed)["output_ids"].tolist() == [[[2]]]
    with pytest.raises(CallError, match=r"^the cache is full$"):
        next(streamed)


def test_the_reason_may_come_after_the_lane_has_ended(engine: Engine, models: Models) -> None:
    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        call.put({}, last=True)
        call.lane.flush()
        engine.lanes.close()
        assert not heard_it.wait(0.2)
        text = "[INTERNAL] after the tokens of the lane: the engine is broken"
        yield InferenceResponse(error=TritonError(text))

    engine.answer, heard_it = said, threading.Event()
    with pytest.raises(CallError, match=r"^the engine is broken$"):
        heard(models)
    heard_it.set()


def test_a_request_that_is_refused_waits_for_nothing(engine: Engine, models: Models) -> None:
    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        call.end()
        yield InferenceResponse(error=TritonError("[INVALID_ARG] too long"))

    engine.answer = said
    with pytest.raises(CallError, match=r"^too long$") as caught:
        heard(models)
    assert caught.value.code == TritonError.INVALID_ARG


def test_an_engine_that_takes_no_notice_is_heard_through_triton(
    engine: Engine, models: Models
) -> None:
    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        call.end()
        yield answer([1])
        yield answer([2, 3])

    engine.answer = said
    assert heard(models) == [[1], [2, 3]]


def test_a_lane_that_ends_ends_its_calls(engine: Engine, models: Models) -> None:
    over = threading.Event()

    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        say(call, 1)
        assert over.wait(60)
        yield InferenceResponse(error=TritonError("the process is gone"))

    engine.answer = said
    found = asked(models)
    assert next(found)["output_ids"].tolist() == [[[1]]]
    engine.lanes.close()
    with pytest.raises(CallError, match=FAILED):
        next(found)
    over.set()


def test_an_answer_that_is_complete_outlives_the_lane(engine: Engine, models: Models) -> None:
    over = threading.Event()

    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        say(call, 1, last=True)
        assert over.wait(60)
        yield InferenceResponse([])

    engine.answer = said
    found = asked(models)
    assert next(found)["output_ids"].tolist() == [[[1]]]
    engine.lanes.close()
    assert list(found) == []
    over.set()


def test_a_failure_of_triton_is_not_swallowed(engine: Engine, models: Models) -> None:
    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        raise RuntimeError("out of shared memory")

    engine.answer = said
    with pytest.raises(RuntimeError, match="out of shared memory"):
        heard(models)


def test_what_comes_once_needs_no_lane(engine: Engine, models: Models) -> None:
    HANDLERS[engine.name] = lambda request: engine.asked.append(request) or iter([answer([1])])
    assert [one["output_ids"].tolist() for one in asked(models, streaming=False)] == [[[[1]]]]
    assert "triton_lane" not in engine.asked[0].parameters


def test_the_answer_to_a_call_that_was_left_is_read(engine: Engine, models: Models) -> None:
    left, read = threading.Event(), threading.Event()

    def said(_: InferenceRequest, call: LaneCall) -> Iterator[InferenceResponse]:
        say(call, 1)
        engine.lanes.close()
        assert left.wait(60)
        yield answer([2])
        yield answer([3])
        read.set()

    engine.answer = said
    with pytest.raises(CallError, match=FAILED):
        list(asked(models))
    left.set()
    # Triton keeps what nobody reads.
    assert read.wait(60)
