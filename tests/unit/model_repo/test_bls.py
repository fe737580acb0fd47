"""``tensorrt_llm_bls`` with the models behind it played by functions."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from model_repo.preprocessing.request_limits import cold_problem
from model_repo.tensorrt_llm.sampling import read_sampling
from model_repo.tensorrt_llm_bls.model import TritonPythonModel
from tests.unit.model_repo.fake_triton import (
    HANDLERS,
    InferenceRequest,
    InferenceResponse,
    Logger,
    Request,
    Tensor,
    TritonError,
    model_args,
)
from tests.unit.model_repo.test_detokenizer import TOKENIZERS
from tests.unit.model_repo.upstream import text_of

TOKENIZER = TOKENIZERS["byte_level"]


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


class Engine:
    """Answers with fixed texts, one response each; ends early when it is told to stop."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.calls: list[InferenceRequest] = []
        self.stopped: list[str] = []
        self.stop = threading.Event()
        self.pause_after: int | None = None

    def __call__(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        if "stop" in request.inputs:
            self.stopped.append(request.request_id)
            self.stop.set()
            return
        self.calls.append(request)
        for number, text in enumerate(self.texts):
            if self.stop.is_set():
                break
            yield self._response(ids(text))
            if number == self.pause_after:
                assert self.stop.wait(60), "nobody stopped the engine"
        yield self._response([])

    def _response(self, tokens: list[int]) -> InferenceResponse:
        return answer(tokens)


def answer(tokens: list[int], **details: np.ndarray) -> InferenceResponse:
    return InferenceResponse(
        [
            Tensor("output_ids", np.array([[tokens]], np.int32).reshape(1, 1, -1)),
            Tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
            *(Tensor(name, value) for name, value in details.items()),
        ]
    )


def preprocessing(request: InferenceRequest) -> Iterator[InferenceResponse]:
    rows = [ids(text.decode()) for text in request.inputs["QUERY"].flat]
    if not all(rows):
        yield InferenceResponse(error=TritonError("text_input is empty", TritonError.INVALID_ARG))
        return
    longest = max(map(len, rows))
    tokens = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    yield InferenceResponse(
        [
            Tensor("INPUT_ID", tokens),
            Tensor("REQUEST_INPUT_LEN", np.array([[len(row)] for row in rows], np.int32)),
            Tensor("REQUEST_OUTPUT_LEN", request.inputs["REQUEST_OUTPUT_LEN"]),
            Tensor("BAD_WORDS_IDS", np.empty((len(rows), 2, 0), np.int32)),
        ]
    )


@contextmanager
def opened(
    directory: Path, tokenizer: Tokenizer = TOKENIZER, **parameters: str
) -> Iterator[TritonPythonModel]:
    (directory / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer" / "tokenizer.json"))
    made = TritonPythonModel()
    own = {"tokenizer_dir": "tokenizer", "cancellation_check_period_ms": "5"}
    made.initialize(model_args(directory, own | parameters))
    HANDLERS["preprocessing"] = preprocessing
    yield made
    made.finalize()
    HANDLERS.clear()


@pytest.fixture
def model(tmp_path: Path) -> Iterator[TritonPythonModel]:
    with opened(tmp_path) as made:
        yield made


def use(engine: Engine) -> Engine:
    HANDLERS["tensorrt_llm"] = engine
    return engine


def request(text: str = "Hi", wanted: str = "text_output", **inputs: Any) -> Request:
    parameters = inputs.pop("parameters", None)
    tensors = {
        "text_input": np.array([[text.encode()]], object),
        "max_tokens": np.array([[100]], np.int32),
        **inputs,
    }
    return Request(tensors, wanted.split(), "client", parameters)


def texts(sent: Request) -> list[str]:
    return [text_of(outputs) for outputs in sent.sender.outputs()]


STREAM = {"stream": np.array([[True]])}


def words(*values: str) -> np.ndarray:
    return np.array([[value.encode() for value in values]], object)


def test_a_stream_ends_with_the_final_flag_on_a_response(model: TritonPythonModel) -> None:
    use(Engine("Hel", "lo ", "there"))
    sent = request(**STREAM)
    model.execute([sent])
    assert texts(sent) == ["Hel", "lo ", "there", ""]
    assert [final for _, final in sent.sender.sent] == [False, False, False, True]


def test_the_last_allowed_token_needs_no_extra_response(model: TritonPythonModel) -> None:
    use(Engine("Hel", "lo"))
    sent = request(**STREAM, max_tokens=np.array([[5]], np.int32))
    model.execute([sent])
    assert texts(sent) == ["Hel", "lo"]


def test_unstreamed_is_one_response(model: TritonPythonModel) -> None:
    engine = use(Engine("Hello there"))
    sent = request()
    model.execute([sent])
    assert texts(sent) == ["Hello there"]
    assert not engine.calls[0].inputs["streaming"].item()


def test_the_prompt_is_put_in_front_only_when_asked_for(model: TritonPythonModel) -> None:
    engine = use(Engine(" there"))
    sent = request("Hello", exclude_input_in_output=np.array([[False]]))
    model.execute([sent])
    assert texts(sent) == ["Hello there"]
    assert engine.calls[0].inputs["exclude_input_in_output"].item()


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_word_ends_the_text_and_the_engines_work(
    model: TritonPythonModel, stream: bool
) -> None:
    engine = use(Engine("one ", "tw", "o thr", "ee four"))
    engine.pause_after = 2
    sent = request(stream=np.array([[stream]]), stop_words=words("two"))
    model.execute([sent])
    assert "".join(texts(sent)) == "one "
    assert engine.stop.wait(60)
    assert engine.stopped == [engine.calls[0].request_id]
    assert engine.calls[0].inputs["streaming"].item()  # to see the word in time


def test_a_client_that_goes_away_stops_the_engine(model: TritonPythonModel) -> None:
    engine = use(Engine("one ", "two "))
    engine.pause_after = 0
    sent = request(**STREAM)
    sent.sender.gone_after = 1
    model.execute([sent])
    assert texts(sent)[0] == "one "
    assert set(engine.stopped) == {engine.calls[0].request_id}


def test_namesakes_are_told_apart(model: TritonPythonModel) -> None:
    engine = use(Engine("a"))
    both = [request(), request()]
    model.execute(both)
    assert [texts(sent) for sent in both] == [["a"], ["a"]]
    first, second = (call.request_id for call in engine.calls)
    assert first != second
    assert first.startswith("client-")


def test_sampling_reaches_the_engine_under_its_own_names(model: TritonPythonModel) -> None:
    engine = use(Engine("a"))
    sent = request(
        wanted="text_output cum_log_probs",
        top_k=np.array([[5]], np.int32),
        return_log_probs=np.array([True]),  # without its dimension, as Triton reshapes it
    )
    model.execute([sent])
    texts(sent)
    inputs = engine.calls[0].inputs
    assert inputs["runtime_top_k"].tolist() == [[5]]
    assert inputs["return_log_probs"].tolist() == [[True]]
    assert "bad_words_list" not in inputs
    # The scores of single tokens are needed to take that of an end id out of the sum.
    assert engine.calls[0].wanted == [
        "output_ids",
        "sequence_length",
        "cum_log_probs",
        "output_log_probs",
    ]
    assert set(sent.sender.outputs()[0]) == {"text_output"}  # this engine has none


def test_tokens_are_counted_here_and_not_by_the_engine(model: TritonPythonModel) -> None:
    engine = use(Engine("Hel", "lo ", "there"))
    yes = np.array([[True]])
    counted = request(
        "Hi",
        "text_output num_input_tokens num_output_tokens",
        **STREAM,
        return_num_input_tokens=yes,
        return_num_output_tokens=yes,
    )
    model.execute([counted])
    outputs = counted.sender.outputs()
    new = [outputs_["num_output_tokens"].item() for outputs_ in outputs]
    assert new == [len(ids(part)) for part in ("Hel", "lo ", "there")] + [0]
    assert {one["num_input_tokens"].item() for one in outputs} == {len(ids("Hi"))}
    assert engine.calls[0].wanted == ["output_ids", "sequence_length"]
    assert "return_num_output_tokens" not in engine.calls[0].inputs


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"beam_width": np.array([[2]])}, "beam_width 2: tensorrt_llm_bls has no beam search"),
        ({"beam_width": np.array([[0]])}, "beam_width 0: tensorrt_llm_bls has no beam search"),
        ({"num_return_sequences": np.array([[-3]])}, "num_return_sequences -3: .* no several"),
        ({"num_draft_tokens": np.array([[3]])}, "num_draft_tokens 3 is not supported: .* no draft"),
        ({"use_draft_logits": np.array([True])}, "use_draft_logits is not supported"),
        ({"parameters": {"id": "x", "temprature": 0.5}}, "invalid parameter temprature: there is"),
        ({"text_input": words("")}, "text_input is empty"),
        # Upstream's backend takes no notice of the first two, and the text comes unguided.
        ({"guided_decoding_guide": words("{}")}, "needs guided_decoding_guide_type"),
        (
            {"guided_decoding_guide_type": words("schema"), "guided_decoding_guide": words("{}")},
            "guided_decoding_guide_type must be one of json, json_schema",
        ),
        (
            {
                "guided_decoding_guide_type": words("json_schema"),
                "guided_decoding_guide": words("{'a': 1}"),
            },
            "guided_decoding_guide must be JSON for the type json_schema",
        ),
    ],
)
def test_a_bad_request_gets_a_clear_error(
    model: TritonPythonModel, inputs: dict[str, np.ndarray], reason: str
) -> None:
    use(Engine("a"))
    sent = request(**inputs)
    model.execute([sent])
    with pytest.raises(AssertionError, match=reason):
        sent.sender.outputs()


@pytest.mark.parametrize("more", [{}, {"top_p": np.array([[0.9]])}, {"top_k": np.array([[5]])}])
def test_temperature_0_is_greedy_on_either_engine(
    model: TritonPythonModel, more: dict[str, np.ndarray]
) -> None:
    """runtime/samplingConfig.h: ``if (topK) topK = 1; if (topP) topP = 1.f``, at temperature 1."""
    engine = use(Engine("a"))
    seen: dict[str, np.ndarray] = {}

    def listening(asked: InferenceRequest) -> Iterator[InferenceResponse]:
        seen.update({n.lower(): a for n, a in asked.inputs.items() if n in ("TOP_K", "TOP_P")})
        yield from preprocessing(asked)

    HANDLERS["preprocessing"] = listening
    cold = request(temperature=np.array([[0.0]], np.float32), **more)
    model.execute([cold])
    assert texts(cold) == ["a"]
    sampling = {
        name: engine.calls[0].inputs[name].item()
        for name in ("runtime_top_k", "runtime_top_p", "temperature")
        if name in engine.calls[0].inputs
    }
    # What upstream makes of it, by that file.
    if sampling["temperature"] == 0:
        for name in sampling:
            sampling[name] = 1
    assert sampling["runtime_top_k"] == 1
    assert cold_problem({name: array.item() for name, array in seen.items()}.get) is None
    given = {name: a.item() for name, a in engine.calls[0].inputs.items() if a.size == 1}
    assert read_sampling(given.get).greedy


def test_a_wrong_top_k_stays_wrong_at_temperature_0(model: TritonPythonModel) -> None:
    seen: dict[str, np.ndarray] = {}

    def listening(asked: InferenceRequest) -> Iterator[InferenceResponse]:
        seen.update(asked.inputs)
        yield from preprocessing(asked)

    use(Engine("a"))
    HANDLERS["preprocessing"] = listening
    cold = request(
        temperature=np.array([[0.0]], np.float32), top_k=np.array([[-(2**31)]], np.int32)
    )
    model.execute([cold])
    assert texts(cold) == ["a"]
    assert seen["TOP_K"].item() == -(2**31)


def test_each_prompt_of_a_batch_is_cold_by_itself(model: TritonPythonModel) -> None:
    HANDLERS["tensorrt_llm"] = engine = Prompts(2)
    sent = several(
        "abcd",
        "wxyz",
        temperature=np.array([[0.0], [0.7]], np.float32),
        top_p=np.array([[0.9], [0.9]], np.float32),
    )
    model.execute([sent])
    by_prompt(sent)
    top_k = {
        TOKENIZER.decode(call.inputs["input_ids"][0].tolist()): call.inputs["runtime_top_k"].item()
        for call in engine.calls
    }
    assert top_k == {"abcd": 1, "wxyz": 0}  # 0 is no limit


class Backend:
    """The C++ backend as llmRequest.cpp and model_instance_state.cc have it, token by token.

    Every response of a stream has the scores of all tokens so far, and a stop word, which the
    model's end ids after the first are to it, stays in the output.
    """

    def __init__(self, tokens: list[int], scores: list[float]) -> None:
        self.tokens, self.scores = tokens, scores

    def __call__(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        for name in ("output_ids", "sequence_length"):
            if name not in request.wanted:
                message = f"{name} tensor must be present in list of output tensors"
                yield InferenceResponse(error=TritonError(message, TritonError.INTERNAL))
                return
        count = len(self.tokens)
        ends = range(1, count + 1) if request.inputs["streaming"].item() else (count,)
        for begin, end in zip((0, *ends), ends, strict=False):
            scores = np.array([[self.scores[:end]]], np.float32)
            total = np.array([[sum(self.scores[:end])]], np.float32)
            found = {"output_log_probs": scores, "cum_log_probs": total}
            asked = {name: value for name, value in found.items() if name in request.wanted}
            yield answer(self.tokens[begin:end], **asked)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stop_words", [(), ("never",)])
def test_each_score_is_sent_once_and_an_end_id_has_none(
    tmp_path: Path, stream: bool, stop_words: tuple[str, ...]
) -> None:
    (end,) = ids("!")
    (tmp_path / "tokenizer").mkdir()
    ends = json.dumps({"eos_token_id": [ids("?")[0], end]})
    (tmp_path / "tokenizer" / "generation_config.json").write_text(ends)
    outputs = "text_output output_log_probs cum_log_probs num_output_tokens"
    yes = np.array([True])
    asked = {
        "stream": np.array([[stream]]),
        "return_log_probs": yes,
        "return_num_output_tokens": yes,
        "max_tokens": np.array([[4]], np.int32),
        **({"stop_words": words(*stop_words)} if stop_words else {}),
    }
    scores = [-0.5, -1.0, -0.25, -8.0]
    with opened(tmp_path) as made:
        HANDLERS["tensorrt_llm"] = Backend(ids("abc!"), scores)
        ended = request(wanted=outputs, **asked)
        own = request(wanted=outputs, **asked, end_id=np.array([[-1]], np.int32))
        made.execute([ended, own])
        for sent, text, count in ((ended, "abc", 3), (own, "abc!", 4)):
            responses = sent.sender.outputs()
            assert "".join(text_of(one) for one in responses) == text
            found = [one["output_log_probs"].reshape(-1).tolist() for one in responses]
            assert list(chain.from_iterable(found)) == scores[:count]
            assert responses[-1]["cum_log_probs"].item() == sum(scores[:count])
            assert sum(one["num_output_tokens"].item() for one in responses) == count


def test_an_engine_error_after_some_text_ends_the_stream(model: TritonPythonModel) -> None:
    def failing(_: InferenceRequest) -> Iterator[InferenceResponse]:
        yield answer(ids("some"))
        yield InferenceResponse(error=TritonError("the engine stopped", TritonError.INTERNAL))

    HANDLERS["tensorrt_llm"] = failing
    sent = request(**STREAM)
    model.execute([sent])
    assert sent.sender.failure() == "the engine stopped"
    assert len(sent.sender.sent) == 2


def test_an_end_without_outputs_is_an_error_that_was_lost(model: TritonPythonModel) -> None:
    def failing(_: InferenceRequest) -> Iterator[InferenceResponse]:
        yield answer(ids("some"))
        yield InferenceResponse([])

    HANDLERS["tensorrt_llm"] = failing
    sent = request(**STREAM)
    model.execute([sent])
    assert sent.sender.failure() == (
        "tensorrt_llm failed while it was serving the request; the reason is in the server's log"
    )


def test_an_engine_that_fails_after_the_answer_changes_nothing(model: TritonPythonModel) -> None:
    def failing(request: InferenceRequest) -> Iterator[InferenceResponse]:
        if "stop" not in request.inputs:
            yield answer(ids("one two"))
            yield InferenceResponse(error=TritonError("too late", TritonError.INTERNAL))

    HANDLERS["tensorrt_llm"] = failing
    sent = request(**STREAM, stop_words=words("two"))
    model.execute([sent])
    assert "".join(texts(sent)) == "one "
    model.finalize()
    assert len(sent.sender.sent) == 1


def test_more_requests_than_threads_are_refused(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    made = TritonPythonModel()
    made.initialize(model_args(tmp_path, {"tokenizer_dir": ".", "max_concurrent_requests": "2"}))
    HANDLERS["preprocessing"] = preprocessing
    engine = use(Engine("one"))
    engine.pause_after = 0
    served, refused = [request(), request()], request()
    made.execute([*served, refused])
    assert refused.sender.failure() == (
        "tensorrt_llm_bls serves 2 requests at a time (max_concurrent_requests), "
        "please try again later"
    )
    engine.stop.set()
    assert all(len(texts(sent)) == 1 for sent in served)
    made.finalize()
    HANDLERS.clear()


@pytest.mark.parametrize("name", ["exclude_input_in_output", "include_stop_str_in_output"])
def test_a_parameter_that_is_neither_true_nor_false_is_refused(tmp_path: Path, name: str) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=f"the parameter {name} is 'maybe'; use true or false"):
        TritonPythonModel().initialize(model_args(tmp_path, {"tokenizer_dir": ".", name: "maybe"}))


def test_what_leaves_things_as_they_are_is_accepted(model: TritonPythonModel) -> None:
    use(Engine("a"))
    one = np.array([[1]], np.int32)
    sent = request(
        beam_width=one,
        num_return_sequences=one,
        num_draft_tokens=one * 0,
        use_draft_logits=np.array([False]),
        parameters={"id": "client", "priority": 1, "triton_enable_empty_final_response": True},
    )
    model.execute([sent])
    assert texts(sent) == ["a"]


def test_64_requests_are_served_at_once(model: TritonPythonModel) -> None:
    engine = use(Engine("one"))
    engine.pause_after = 0
    sent = [request(**STREAM) for _ in range(64)]
    model.execute(sent)
    for one in sent:
        while not one.sender.sent:
            threading.Event().wait(0.001)
    engine.stop.set()
    assert all(texts(one) == ["one", ""] for one in sent)


def test_a_response_that_cannot_be_sent_ends_the_engines_work(model: TritonPythonModel) -> None:
    engine = use(Engine("one ", "two "))
    engine.pause_after = 0
    sent = request(**STREAM)
    send = sent.sender.send

    def broken(response: Any = None, flags: int = 0) -> None:
        if not flags:
            raise RuntimeError("no shared memory left")
        send(response, flags)

    sent.sender.send = broken
    model.execute([sent])
    told = sent.sender.failure()
    assert "failed inside the server" in told
    number = told.rpartition("(failure ")[2].rstrip(")")
    assert [line for line in Logger.messages if number in line and "no shared memory left" in line]
    assert engine.stopped == [engine.calls[0].request_id]


class Prompts:
    """An engine that spells out each prompt backwards, a letter at a time, in step with others."""

    def __init__(self, rows: int) -> None:
        self.calls: list[InferenceRequest] = []
        self.stopped: list[str] = []
        self.fails: str | None = None
        self._step = threading.Barrier(rows, timeout=60)
        self._stop: dict[str, threading.Event] = {}

    def __call__(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        stop = self._stop.setdefault(request.request_id, threading.Event())
        if "stop" in request.inputs:
            self.stopped.append(request.request_id)
            stop.set()
            return
        self.calls.append(request)
        prompt = TOKENIZER.decode(request.inputs["input_ids"][0].tolist())
        self._step.wait()
        for place, letter in enumerate(reversed(prompt)):
            if place == 1 and prompt == self.fails:
                yield InferenceResponse(error=TritonError("no", TritonError.INTERNAL))
                return
            if place == 2 and self.fails is not None:
                assert stop.wait(60), "the other prompt failed and nobody stopped this one"
                return
            yield answer(ids(letter))
        yield answer([])


def several(*texts: str, **inputs: Any) -> Request:
    """A request of several prompts, as end_to_end_grpc_client.py --batch-inputs makes it."""
    rows = len(texts)
    return request(
        wanted="text_output batch_index num_input_tokens",
        text_input=np.array([[text.encode()] for text in texts], object),
        max_tokens=np.full((rows, 1), 100, np.int32),
        stream=np.full((rows, 1), True),
        **inputs,
    )


def by_prompt(sent: Request) -> dict[int, str]:
    """What end_to_end_grpc_client.py puts together from the responses."""
    texts: dict[int, str] = {}
    for outputs in sent.sender.outputs():
        index = int(outputs["batch_index"][0][0])
        texts[index] = texts.get(index, "") + text_of(outputs)
    return texts


def test_each_prompt_of_a_batch_is_answered_under_its_index(model: TritonPythonModel) -> None:
    HANDLERS["tensorrt_llm"] = engine = Prompts(2)
    sent = several("abc", "world", return_num_input_tokens=np.array([True, True]))
    model.execute([sent])
    assert by_prompt(sent) == {0: "cba", 1: "dlrow"}
    assert [final for _, final in sent.sender.sent].count(True) == 1
    assert sent.sender.sent[-1][1]
    lengths = {outputs["num_input_tokens"].item() for outputs in sent.sender.outputs()}
    assert lengths == {3, 5}
    assert len({call.request_id for call in engine.calls}) == 2
    shapes = sorted(call.inputs["input_ids"].shape for call in engine.calls)
    assert shapes == [(1, 3), (1, 5)]  # without the padding of the shorter one


def test_one_prompt_has_no_batch_index(model: TritonPythonModel) -> None:
    """As upstream's engine: ``requestData.batchSize > 1`` in model_instance_state.cc."""
    use(Engine("a"))
    sent = request(wanted="text_output batch_index")
    model.execute([sent])
    assert [set(outputs) for outputs in sent.sender.outputs()] == [{"text_output"}]


def test_each_prompt_of_a_batch_has_its_own_inputs(model: TritonPythonModel) -> None:
    HANDLERS["tensorrt_llm"] = engine = Prompts(2)
    sent = several(
        "abcd",
        "wxyz",
        stop_words=np.array([[b"b"], [b""]], object),
        top_k=np.array([[3], [5]], np.int32),
    )
    model.execute([sent])
    assert by_prompt(sent) == {0: "dc", 1: "zyxw"}
    top_k = {
        TOKENIZER.decode(call.inputs["input_ids"][0].tolist()): call.inputs[
            "runtime_top_k"
        ].tolist()
        for call in engine.calls
    }
    assert top_k == {"abcd": [[3]], "wxyz": [[5]]}


def test_a_prompt_that_fails_ends_the_whole_batch(model: TritonPythonModel) -> None:
    HANDLERS["tensorrt_llm"] = engine = Prompts(2)
    engine.fails = "bad"
    sent = several("bad", "good")
    model.execute([sent])
    assert sent.sender.failure() == "no"
    model.finalize()
    assert [final for _, final in sent.sender.sent].count(True) == 1
    good = next(call.request_id for call in engine.calls if call.inputs["input_ids"].shape[1] == 4)
    assert set(engine.stopped) == {good}


def test_a_batch_that_is_refused_is_refused_as_one(model: TritonPythonModel) -> None:
    use(Engine("a"))
    sent = several("fine", "not", beam_width=np.array([[1], [2]], np.int32))
    model.execute([sent])
    assert sent.sender.failure() == "beam_width 2: tensorrt_llm_bls has no beam search"
    assert len(sent.sender.sent) == 1


def test_prompts_of_a_batch_count_as_requests(tmp_path: Path) -> None:
    with opened(tmp_path, max_concurrent_requests="2") as made:
        use(Engine("one"))
        never = several("a", "b", "c")
        made.execute([never])
        assert never.sender.failure() == (
            "the request has 3 prompts; tensorrt_llm_bls serves at most 2 at a time "
            "(max_concurrent_requests)"
        )
        HANDLERS["tensorrt_llm"] = Prompts(2)
        fits = several("ab", "cd")
        made.execute([fits])
        assert by_prompt(fits) == {0: "ba", 1: "dc"}


def test_a_batch_is_answered_when_the_model_is_unloaded_meanwhile(model: TritonPythonModel) -> None:
    use(Engine("one"))

    def unloaded_meanwhile(asked: InferenceRequest) -> Iterator[InferenceResponse]:
        model._pool.shutdown(wait=False)  # what finalize() begins with
        return preprocessing(asked)

    HANDLERS["preprocessing"] = unloaded_meanwhile
    sent = several("a", "b", "c")
    model.execute([sent])
    assert "is being unloaded" in sent.sender.failure(timeout=60)
    model.finalize()
    assert model._unfinished == 0


def test_a_client_that_goes_away_stops_every_prompt(model: TritonPythonModel) -> None:
    engine = use(Engine("one ", "two "))
    engine.pause_after = 0
    sent = several("a", "b")
    sent.sender.cancelled = True
    model.execute([sent])
    sent.sender.done.wait(60)
    assert set(engine.stopped) == {call.request_id for call in engine.calls}
    assert len(engine.calls) == 2


def test_accumulated_text_is_a_parameter(tmp_path: Path) -> None:
    with opened(tmp_path, accumulate_tokens="true") as made:
        use(Engine("Hel", "lo ", "there"))
        sent = request(**STREAM)
        made.execute([sent])
        assert texts(sent) == ["Hel", "Hello ", "Hello there", "Hello there"]


def test_a_stop_word_can_be_kept_by_a_parameter(tmp_path: Path) -> None:
    with opened(tmp_path, include_stop_str_in_output="true") as made:
        use(Engine("one ", "tw", "o three"))
        sent = request(stop_words=words("two"))
        made.execute([sent])
        assert texts(sent) == ["one two"]


def test_a_parameter_that_nvidias_clients_send_is_taken(model: TritonPythonModel) -> None:
    use(Engine("a"))
    sent = request(parameters={"Streaming": True})
    model.execute([sent])
    assert texts(sent) == ["a"]


def test_metrics_of_the_engine_reach_every_response(model: TritonPythonModel) -> None:
    def engine(_: InferenceRequest) -> Iterator[InferenceResponse]:
        for number, letter in enumerate("abc"):
            yield answer(ids(letter), last_token_time_ns=np.array([[number]], np.int64))
        yield answer([], last_token_time_ns=np.array([[3]], np.int64))

    HANDLERS["tensorrt_llm"] = engine
    sent = request(wanted="text_output last_token_time_ns", **STREAM)
    model.execute([sent])
    found = [outputs["last_token_time_ns"][0][0] for outputs in sent.sender.outputs()]
    assert found == [0, 1, 2, 3]


def test_the_text_continues_the_prompts(tmp_path: Path) -> None:
    """With Llama 2's kind of decoder, which drops the space in front of a text."""
    tokenizer = TOKENIZERS["byte_fallback"]

    def encode(request: InferenceRequest) -> Iterator[InferenceResponse]:
        tokens = tokenizer.encode(request.inputs["QUERY"].item().decode()).ids
        yield InferenceResponse(
            [
                Tensor("INPUT_ID", np.array([tokens], np.int32)),
                Tensor("REQUEST_INPUT_LEN", np.array([[len(tokens)]], np.int32)),
                Tensor("REQUEST_OUTPUT_LEN", request.inputs["REQUEST_OUTPUT_LEN"]),
            ]
        )

    def engine(_: InferenceRequest) -> Iterator[InferenceResponse]:
        yield answer([tokenizer.token_to_id("▁time")])
        yield answer([tokenizer.token_to_id("▁there"), 2])
        yield answer([])

    with opened(tmp_path, tokenizer) as made:
        HANDLERS.update(preprocessing=encode, tensorrt_llm=engine)
        sent = [
            request("Once upon a"),
            request("Once upon a", **STREAM),
            request("Once upon a", exclude_input_in_output=np.array([[False]])),
            request("Once upon a</s>"),
        ]
        made.execute(sent)
        assert ["".join(texts(one)) for one in sent] == [
            " time there",
            " time there",
            "Once upon a time there",
            "time there",
        ]


def test_a_request_that_cannot_be_read_gets_an_answer(model: TritonPythonModel) -> None:
    use(Engine("a"))
    sent = Request({"max_tokens": np.array([[1]], np.int32)}, ["text_output"])
    model.execute([sent])
    assert sent.sender.failure() == "the input text_input is missing"
    later = request()
    model.execute([later])
    assert texts(later) == ["a"]


GUIDE = {"guided_decoding_guide_type": np.array([[b"regex"]], object)}
GUIDE["guided_decoding_guide"] = np.array([[b"[0-9]+"]], object)


def test_a_guide_is_refused_where_no_guides_are_served(model: TritonPythonModel) -> None:
    engine = use(Engine("12"))
    sent = request(**GUIDE)
    model.execute([sent])
    assert "GuidedDecoder is not set up in this repository" in sent.sender.failure()
    assert not engine.calls


@pytest.mark.parametrize(("name", "value"), [("end_id", 3), ("end_id", -1), ("min_tokens", 2)])
def test_a_guide_goes_with_no_other_end(tmp_path: Path, name: str, value: int) -> None:
    # xgrammar of the C++ backend fails on a text that goes on after its end, and every request of
    # the engine with it.
    engine = use(Engine("12"))
    with opened(tmp_path, guided_decoding_backend="xgrammar") as made:
        use(engine)
        sent = request(**GUIDE, **{name: np.array([[value]], np.int32)})
        made.execute([sent])
        assert f"{name} cannot be combined with a guide" in sent.sender.failure()
    assert not engine.calls


def test_a_guide_reaches_the_engine(tmp_path: Path) -> None:
    engine = Engine("12")
    with opened(tmp_path, guided_decoding_backend="xgrammar") as made:
        use(engine)
        sent = request(**GUIDE, min_tokens=np.array([[0]], np.int32))
        made.execute([sent])
        assert texts(sent)[-1] == "12"
    assert engine.calls[0].inputs["guided_decoding_guide"].item() == b"[0-9]+"


@pytest.mark.parametrize(
    "asked",
    [
        {"top_k": np.array([[5]], np.int32)},
        {"top_p": np.array([[0.9]], np.float32)},
        {"top_k": np.array([[0]], np.int32), "top_p": np.array([[1.0]], np.float32)},
        {"repetition_penalty": np.array([[1.2]], np.float32)},
        {"frequency_penalty": np.array([[0.5]], np.float32)},
        {"return_log_probs": np.array([[True]])},
        {"bad_words": words("cat")},
    ],
)
def test_an_engine_that_guesses_tokens_samples_nothing(
    tmp_path: Path, asked: dict[str, np.ndarray]
) -> None:
    engine = Engine("12")
    with opened(tmp_path, decodes_greedily="true") as made:
        use(engine)
        sent = request(**asked)
        made.execute([sent])
        failure = sent.sender.failure()
    assert f"{list(asked)[-1]} is not supported: this engine was built for lookahead" in failure
    assert not engine.calls


def test_greedy_requests_pass_to_an_engine_that_guesses(tmp_path: Path) -> None:
    with opened(tmp_path, decodes_greedily="true") as made:
        use(Engine("12"))
        sent = request(
            top_k=np.array([[1]], np.int32),
            top_p=np.array([[0.9]], np.float32),
            temperature=np.array([[0.7]], np.float32),
            repetition_penalty=np.array([[1.0]], np.float32),
            return_log_probs=np.array([[False]]),
        )
        made.execute([sent])
        assert texts(sent)[-1] == "12"


def _task(number: int) -> dict[str, np.ndarray]:
    return {"lora_task_id": np.array([[number]], np.uint64)}


@pytest.mark.parametrize(
    ("served", "asked", "reason"),
    [
        # An engine without the plugin takes no notice of the id and answers as the model alone.
        ("", _task(1), "this repository serves no LoRA adapters"),
        ("1,2", _task(3), "lora_task_id 3 is unknown and needs lora_weights"),
        ("1,2", {"lora_config": np.zeros((1, 1, 3), np.int32)}, "lora_config needs lora_task_id"),
    ],
)
def test_an_adapter_that_is_not_there_is_refused(
    tmp_path: Path, served: str, asked: dict[str, np.ndarray], reason: str
) -> None:
    engine = Engine("12")
    with opened(tmp_path, **({"lora_task_ids": served} if served else {})) as made:
        use(engine)
        sent = request(**asked)
        made.execute([sent])
        assert reason in sent.sender.failure()
    assert not engine.calls


@pytest.mark.parametrize(
    "asked",
    [
        _task(2),
        # Upstream's way: the first request with an id brings the weights.
        {
            **_task(7),
            "lora_weights": np.zeros((1, 1, 8), np.float16),
            "lora_config": np.zeros((1, 1, 3), np.int32),
        },
    ],
)
def test_an_adapter_reaches_the_engine(tmp_path: Path, asked: dict[str, np.ndarray]) -> None:
    engine = Engine("12")
    with opened(tmp_path, lora_task_ids="1,2") as made:
        use(engine)
        sent = request(**asked)
        made.execute([sent])
        assert texts(sent)[-1] == "12"
    for name, value in asked.items():
        assert np.array_equal(engine.calls[0].inputs[name], value)
