"""The loop in front of the LLM API, on an LLM that answers by a script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repo.llmapi.engine_loop import EngineLoop
from model_repo.llmapi.request import GenerationRequest, RequestError, Sampling
from model_repo.llmapi.sampling import FullSampling, check_sampler, sampling_params
from model_repo.llmapi.settings import EngineSettings

GENEROUS_S = 30.0
SETTINGS = EngineSettings(Path("engine"), 100, 4, 50, 80, 40, 64, max_queue_size=1, end_ids=(9,))


class LlmError(Exception):
    """As upstream's, which is known by its name alone."""


LlmError.__name__ = "RequestError"


class Answer:
    """What ``generate_async`` returns: one object, which grows."""

    def __init__(self, script: list[Any]) -> None:
        self.script, self.aborted, self.finished = list(script), asyncio.Event(), False
        self.outputs = [SimpleNamespace(token_ids=[], logprobs=[], finish_reason=None)]

    def abort(self) -> None:
        self.aborted.set()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Answer:
        if not self.script:
            await self.aborted.wait()
            raise StopAsyncIteration
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        ids, reason = step
        self.outputs[0].token_ids.extend(ids)
        self.outputs[0].finish_reason = reason
        self.finished = reason is not None
        return self


class Scripted:
    """An LLM; ``scripts`` are its next answers."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts, self.params, self.answers = list(scripts), [], []
        self.closed = False

    def generate_async(self, prompt: list[int], params: Any, *, streaming: bool) -> Answer:
        assert streaming
        assert all(type(token) is int for token in prompt)
        self.params.append(params)
        self.answers.append(Answer(self.scripts.pop(0)))
        return self.answers[-1]

    async def get_stats_async(self, timeout: float) -> AsyncIterator[dict[str, Any]]:
        await asyncio.sleep(timeout)
        yield {"kvCacheStats": {"maxNumBlocks": 77, "usedNumBlocks": 5}, "gpuMemUsage": 123}

    def shutdown(self) -> None:
        self.closed = True


class Sink:
    """Keeps what it gets; ``over`` is set with the last of it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.error: RequestError | None = None
        self.over = threading.Event()

    def scheduled(self, reused_blocks: int) -> None:
        pass

    def prompt_scored(self, log_probs: list[float]) -> None:
        raise AssertionError(log_probs)

    def tokens(self, ids: list[int], log_probs: list[float], *, last: bool) -> None:
        assert not self.over.is_set()
        assert log_probs == []
        self.ids += ids
        if last:
            self.over.set()

    def fail(self, error: RequestError) -> None:
        self.error = error
        self.over.set()

    def end(self) -> Sink:
        assert self.over.wait(GENEROUS_S)
        return self


class Served:
    """A loop on a scripted LLM."""

    def __init__(self, *scripts: list[Any], sampler: str = "TRTLLMSampler") -> None:
        self.llm = Scripted(*scripts)
        self.broken: list[Exception] = []
        self.broke = threading.Event()
        self.loop = EngineLoop(
            lambda: (self.llm, SimpleNamespace),
            SETTINGS,
            sampler=sampler,
            broken=lambda error: (self.broken.append(error), self.broke.set()),
        )
        self.loop.start()

    def ask(self, **changes: Any) -> tuple[Sink, Any]:
        given = {"prompt": np.array([1, 2, 3]), "max_new_tokens": 6, "end_id": 9, **changes}
        sink = Sink()
        (generation,) = self.loop.submit_all([(GenerationRequest(**given), sink)])
        return sink, generation


@pytest.fixture
def serve() -> Iterator[Any]:
    made: list[Served] = []

    def make(*scripts: list[Any], **options: Any) -> Served:
        made.append(Served(*scripts, **options))
        return made[-1]

    yield make
    for served in made:
        served.loop.close()


def test_only_what_is_new_is_handed_on(serve: Any) -> None:
    sink, _ = serve([([4], None), ([5, 6], None), ([7], "length")]).ask()
    assert sink.end().ids == [4, 5, 6, 7]


@pytest.mark.parametrize("last", [[7, 9], [7]], ids=["with the end id", "without it"])
def test_end_id_is_no_part_of_the_text(serve: Any, last: list[int]) -> None:
    served = serve([([4], None), (last, "stop")])
    sink, _ = served.ask()
    assert sink.end().ids == [4, 7]
    assert served.loop.stats.outcomes["finished"] == 1


def test_stop_word_of_two_tokens_aborts_the_llm(serve: Any) -> None:
    served = serve([([4], None), ([5], None), ([6], None)])
    sink, _ = served.ask(stop_words=((5, 6), (8,)))
    assert sink.end().ids == [4, 5, 6]
    assert served.llm.params[0].stop_token_ids == [8]
    assert served.llm.answers[0].aborted.is_set()


def test_cancelled_request_is_aborted(serve: Any) -> None:
    served = serve([([4], None)], [([4], "length")])
    sink, generation = served.ask(client_id="mine")
    assert served.loop.cancel_client_id("mine") == 1
    served.loop.cancel(generation)  # harmless
    assert sink.end().error is None
    assert served.loop.stats.outcomes["cancelled"] == 1
    assert served.ask()[0].end().ids == [4]


def test_request_that_fails_in_the_llm_fails_alone(serve: Any) -> None:
    served = serve([LlmError("no room")], [([4], "length")])
    error = served.ask()[0].end().error
    assert str(error) == "the LLM failed at it: no room"
    assert error.code == "INTERNAL"
    assert served.ask()[0].end().ids == [4]
    assert served.broken == []


def test_answer_that_was_cut_is_an_error(serve: Any) -> None:
    error = serve([([4], None), ([], "timeout")]).ask()[0].end().error
    assert str(error) == "the LLM ended the answer: timeout"


def test_broken_llm_fails_everybody_and_ends_the_process(serve: Any) -> None:
    served = serve([([4], None)], [RuntimeError("CUDA error")])
    first, _ = served.ask()
    second, _ = served.ask()
    for sink in (first, second):
        assert "process ends" in str(sink.end().error)
    assert served.broke.wait(GENEROUS_S)
    assert str(served.broken[0]) == "CUDA error"
    with pytest.raises(RequestError, match="the engine stopped working"):
        served.ask()


def test_queue_is_bounded(serve: Any) -> None:
    served = serve(*[[([4], None)]] * 5)
    for _ in range(5):
        served.ask()
    with pytest.raises(RequestError, match="Maximum queue size of 1 has been reached") as caught:
        served.ask()
    assert caught.value.code == "UNAVAILABLE"


def test_close_ends_the_llm_and_its_requests(serve: Any) -> None:
    served = serve([([4], None)])
    sink, _ = served.ask()
    served.loop.close()
    assert str(sink.end().error) == "the engine is shutting down"
    assert served.llm.closed


def test_llm_that_does_not_open_says_why() -> None:
    def fail() -> Any:
        raise ValueError("unsupported quant mode: W8A8")

    with pytest.raises(RuntimeError, match="could not be opened: unsupported quant mode: W8A8"):
        EngineLoop(fail, SETTINGS).start()


def test_levels_are_the_llms_own(serve: Any) -> None:
    served = serve([([4], None)])
    served.ask()
    waited = threading.Event()
    for _ in range(300):
        if served.loop.levels().gpu_bytes:
            break
        waited.wait(0.1)
    levels = served.loop.levels()
    assert (levels.running, levels.used_blocks, levels.gpu_bytes) == (1, 5, 123)
    assert served.loop.stats.max_blocks == 77


def params(**changes: Any) -> dict[str, Any]:
    given = {"prompt": np.array([1]), "max_new_tokens": 6, "end_id": 9, **changes}
    return dict(sampling_params(dict, GenerationRequest(**given), (9, 10)))


def test_parameters_have_upstreams_names() -> None:
    sampling = FullSampling(False, 0.7, 5, 0.9, 3, 1.2, 2, presence_penalty=0.5)
    made = params(sampling=sampling, log_probs=True, stop_words=((4,), (5, 6)))
    assert made == {
        "max_tokens": 6, "end_id": 9, "ignore_eos": False, "include_stop_str_in_output": True,
        "detokenize": False, "add_special_tokens": False, "stop_token_ids": [4], "min_tokens": 2,
        "logprobs": 1, "repetition_penalty": 1.2, "presence_penalty": 0.5, "temperature": 0.7,
        "top_p": 0.9, "top_k": 5, "seed": 3,
    }  # fmt: skip


def test_no_end_id_is_not_none_for_the_llm() -> None:
    made = params(end_id=None)
    assert (made["end_id"], made["ignore_eos"], made["top_k"]) == (9, True, 1)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (FullSampling(repetition_penalty=1.1), "repetition_penalty"),
        (FullSampling(frequency_penalty=0.1), "frequency_penalty"),
        (FullSampling(greedy=False, seeded=True), "seed"),
    ],
)
def test_what_the_torch_sampler_ignores_is_refused(sampling: Sampling, name: str) -> None:
    with pytest.raises(RequestError, match=rf"^{name}: TorchSampler .* ignores it"):
        check_sampler(sampling, "TorchSampler")
    check_sampler(sampling, "TRTLLMSampler")
    check_sampler(FullSampling(seeded=True), "TorchSampler")  # greedy: a seed decides nothing
