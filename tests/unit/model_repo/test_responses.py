from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from model_repo.tensorrt_llm.answer import Answer
from model_repo.tensorrt_llm.hold import Hold
from model_repo.tensorrt_llm.request import RequestError
from model_repo.tensorrt_llm.responder import Responder
from model_repo.tensorrt_llm.responses import ResponseStream
from tests.unit.model_repo.fake_triton import InferenceResponse, Logger, Sender, TritonError

WANTED = frozenset({"output_ids"})


def ids(outputs: list[dict[str, np.ndarray]]) -> list[list[int]]:
    return [one["output_ids"].reshape(-1).tolist() for one in outputs]


def stream(streaming: bool = True) -> tuple[ResponseStream, Sender, list[ResponseStream]]:
    ready: list[ResponseStream] = []
    sender = Sender()
    return ResponseStream(sender, Answer(streaming, WANTED), ready.append), sender, ready


def test_tokens_that_pile_up_leave_in_one_response() -> None:
    made, sender, _ = stream()
    made.tokens([1], [], last=False)
    made.send()
    made.tokens([2], [], last=False)
    made.tokens([3], [], last=False)
    made.send()
    made.send()
    made.tokens([4], [], last=True)
    made.send()
    assert ids(sender.outputs()) == [[1], [2, 3], [4]]
    assert [final for _, final in sender.sent] == [False, False, True]


def test_an_answer_that_is_not_streamed_is_one_response() -> None:
    made, sender, ready = stream(streaming=False)
    made.tokens([1], [], last=False)
    made.tokens([2], [], last=False)
    assert ready == []
    made.tokens([3], [], last=True)
    ready[0].send()
    assert ids(sender.outputs()) == [[1, 2, 3]]


def test_nothing_is_sent_or_asked_after_the_end() -> None:
    made, sender, _ = stream()
    made.tokens([1], [], last=True)
    made.send()
    made.send()
    assert not made.is_cancelled()
    assert len(sender.sent) == 1


def test_a_failure_ends_the_stream_with_its_code() -> None:
    made, sender, _ = stream()
    made.fail(RequestError("the cache is full", "UNAVAILABLE"))
    made.send()
    assert sender.failure() == "the cache is full"
    response = sender.sent[-1][0]
    assert response is not None
    error = response.error()
    assert error is not None
    assert error.code() == TritonError.UNAVAILABLE


def test_a_failure_after_tokens_is_followed_by_an_end_of_its_own() -> None:
    made, sender, _ = stream()
    made.tokens([1], [], last=False)
    made.send()
    made.fail(RequestError("the cache is full", "UNAVAILABLE"))
    made.send()
    assert sender.failure() == "the cache is full"
    assert [final for _, final in sender.sent] == [False, False, True]
    assert sender.sent[-1][0] is None
    assert Logger.messages[-1] == "a request failed while it was served: the cache is full"


def test_the_thread_sends_and_a_broken_client_does_not_stop_it() -> None:
    class Broken(Sender):
        def send(self, *_: object, **__: object) -> None:
            raise RuntimeError("gone")

    responder = Responder()
    responder.start()
    good, broken = Sender(), Broken()
    for sender in (broken, good):
        made = ResponseStream(sender, Answer(True, WANTED), responder.ready)
        made.tokens([7], [], last=True)
    responder.publish()
    assert ids(good.outputs()) == [[7]]
    responder.close()


def test_the_engine_waits_for_responses_for_a_part_of_its_step_at_most() -> None:
    release = threading.Event()

    class Slow(Sender):
        def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
            release.wait(60)
            super().send(response, flags)

    responder = Responder()
    responder.start()
    made = ResponseStream(Slow(), Answer(True, WANTED), responder.ready)
    made.tokens([7], [], last=True)
    started = time.perf_counter()
    responder.publish(step_seconds=0.2)
    waited = time.perf_counter() - started
    assert 0.04 < waited < 30
    release.set()
    responder.close()


def test_periodic_work_is_done_while_nothing_is_sent() -> None:
    done = threading.Event()
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 3:
            done.set()
        raise RuntimeError("work may fail")

    responder = Responder([(0.001, work)])
    responder.start()
    assert done.wait(60)
    responder.close()


@pytest.mark.parametrize("publish", [True, False])
def test_closing_sends_what_is_left(publish: bool) -> None:
    responder = Responder()
    sender = Sender()
    made = ResponseStream(sender, Answer(True, WANTED), responder.ready)
    made.tokens([7], [], last=True)
    responder.start()
    if publish:
        responder.publish()
    responder.close()
    assert ids(sender.outputs(timeout=0)) == [[7]]


def test_the_engine_waits_while_requests_are_taken_in() -> None:
    """Also where nothing leaves; a finished sender must not end the wait for them."""
    responder = Responder(hold=Hold(10.0, 1))
    responder.start()
    with responder.let_in():
        made = ResponseStream(Sender(), Answer(True, WANTED), responder.ready)
        made.tokens([7], [], last=True)
        started = time.perf_counter()
        responder.publish(step_seconds=0.2)
        assert time.perf_counter() - started > 0.04
    started = time.perf_counter()
    responder.publish(step_seconds=1000.0)
    assert time.perf_counter() - started < 100
    responder.close()


def test_closing_sends_what_is_held() -> None:
    responder = Responder(hold=Hold(100.0, 1))
    responder.start()
    senders = [Sender(), Sender()]
    made = [ResponseStream(one, Answer(True, WANTED), responder.ready) for one in senders]
    for number in (1, 2):
        for one in made:
            one.tokens([number], [], last=False)
        responder.publish()
    responder.close()
    # In one response where a busy machine's thread saw both tokens at once.
    for sender in senders:
        assert ids_of(sender) == [1, 2]


def ids_of(sender: Sender) -> list[int]:
    """All tokens that were sent, in order."""
    sent = [response for response, _ in sender.sent if response is not None]
    arrays = [response.output_tensors()[0].as_numpy() for response in sent]
    return [int(token) for array in arrays for token in array.reshape(-1)]


def test_a_failure_is_sent_behind_the_tokens_before_it() -> None:
    made, sender, _ = stream()
    made.tokens([1], [], last=False)
    made.fail(RequestError("the cache is full", "UNAVAILABLE"))
    made.send()
    assert [response is None for response, _ in sender.sent] == [False, False, True]
    first = sender.sent[0][0]
    assert first is not None
    assert first.output_tensors()[0].as_numpy().tolist() == [[[1]]]
    assert sender.failure() == "the cache is full"


def test_a_failure_of_an_answer_that_is_not_streamed_is_all_there_is() -> None:
    made, sender, _ = stream(streaming=False)
    made.tokens([1], [], last=False)
    made.fail(RequestError("the cache is full", "UNAVAILABLE"))
    made.send()
    assert len(sender.sent) == 1
    assert sender.failure() == "the cache is full"
