"""The stand-in of the C++ backend obeys the rules recorded from upstream's sources, on the wire.

Requests are made with tritonclient, after NVIDIA's own clients. The table of rules with the file of
each is in ``tests/doubles/tensorrtllm_backend/README.md``.
"""

from __future__ import annotations

import queue
import re
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from pipeline.errors import ServerError
from tests.doubles.tensorrtllm_backend.serving import strict_server

from ..conftest import DEMO_MODEL
from ..metrics import METRICS, UPSTREAM
from .conftest import Built
from .nvidia_calls import drained, id_arrays, requested, streamed, tensor

pytestmark = pytest.mark.strict

ENGINE = "tensorrt_llm"
PROMPT = "Once upon a time"
TOKENS = 12
MAX_SEQ_LEN = 512
VOCABULARY = 1024
LONG = 400
BOTH = ("output_ids", "sequence_length")
SCORES = (*BOTH, "output_log_probs", "cum_log_probs")

Ask = Callable[..., list[Any]]


def one(value: Any, kind: Any = np.int32) -> Any:
    return np.array([[value]], kind)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.encode(PROMPT).ids)


@pytest.fixture(scope="module")
def ask(strict: Any, prompt: list[int]) -> Ask:
    """Sends the prompt's ids to the engine; the responses."""

    def send(
        length: int = TOKENS,
        *,
        streaming: bool = True,
        outputs: tuple[str, ...] | None = BOTH,
        ids: list[int] | None = None,
        without: str = "",
        **more: Any,
    ) -> list[Any]:
        arrays = id_arrays(ids or prompt, length, streaming=streaming, **more)
        arrays.pop(without, None)
        return streamed(strict.grpc_url, ENGINE, arrays, outputs)

    return send


def refusal(ask: Ask, *args: Any, **more: Any) -> str:
    """What the engine says to a request that it refuses."""
    with pytest.raises(InferenceServerException) as caught:
        ask(*args, **more)
    return str(caught.value.message())


def ids_of(results: list[Any]) -> list[int]:
    return [int(token) for result in results for token in result.as_numpy("output_ids").reshape(-1)]


@pytest.fixture(scope="module")
def greedy(ask: Ask) -> list[int]:
    """The greedy ids after the prompt."""
    return ids_of(ask(40))


def words(*several: list[int]) -> Any:
    """A word list: all ids, padded with 0, over where each word ends, padded with -1."""
    ids = [token for word in several for token in word]
    ends = np.cumsum([len(word) for word in several]).tolist()
    return np.array([[ids, [*ends, *[-1] * (len(ids) - len(ends))]]], np.int32)


class TestRequestedOutputs:
    @pytest.mark.parametrize(
        ("asked", "missing"),
        [
            (("output_ids",), "sequence_length"),
            (("sequence_length",), "output_ids"),
            (("output_ids", "cum_log_probs"), "sequence_length"),
        ],
    )
    def test_both_must_be_asked_for(self, ask: Ask, asked: tuple[str, ...], missing: str) -> None:
        text = refusal(ask, outputs=asked)
        assert "Error encountered while populating response: " in text
        assert f"{missing} tensor must be present in list of output tensors (" in text

    def test_no_list_asks_for_everything(self, ask: Ask) -> None:
        names = {output.name for output in ask(1, outputs=None)[0].get_response().outputs}
        assert names == {"output_ids", "sequence_length"}

    def test_the_executor_goes_on_with_a_request_that_got_the_error(
        self, ask: Ask, strict_log: Path
    ) -> None:
        ask(40)  # outlasts what other tests have left behind
        before = strict_log.read_text().count("Unexpected response for a request ID")
        refusal(ask, 8, outputs=("output_ids",))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if strict_log.read_text().count("Unexpected response for a request ID") == before + 7:
                return
            time.sleep(0.05)
        pytest.fail("the other seven responses were not dropped")


class TestRefusals:
    """Every refusal is INTERNAL, in the words of TLLM_CHECK or TLLM_THROW, with the stack."""

    @pytest.mark.parametrize(
        ("inputs", "expression"),
        [
            ({"request_output_len": one(0)}, "mMaxNewTokens > 0"),
            ({"request_output_len": one(-5)}, "mMaxNewTokens > 0"),
            ({"temperature": one(-1, np.float32)}, "temperature.value() >= 0.f"),
            ({"temperature": one(np.nan, np.float32)}, "temperature.value() >= 0.f"),
            ({"runtime_top_p": one(1.5, np.float32)}, "topP.value() <= 1.f"),
            ({"runtime_top_k": one(-1)}, "topK.value() >= 0"),
            ({"min_tokens": one(-1)}, "minTokens.value() >= 0"),
            ({"repetition_penalty": one(0, np.float32)}, "repetitionpenalty.value() > 0.f"),
            ({"runtime_top_p_decay": one(0, np.float32)}, "topPDecay.value() > 0.f"),
            ({"beam_width": one(0)}, "beamWidth > 0 && beamWidth <= "),
            ({"beam_width": one(2000)}, "beamWidth > 0 && beamWidth <= "),
            # One place too early: the constructor had got another argument in between.
            ({"len_penalty": one(-1, np.float32)}, "promptIgnoreLength.value() >= 0"),
            ({"num_return_sequences": one(-1)}, "noRepeatNgramSize.value() >= 0"),
        ],
    )
    def test_an_assertion_of_the_front(
        self, ask: Ask, inputs: dict[str, Any], expression: str
    ) -> None:
        text = refusal(ask, **inputs)
        start = f"[TensorRT-LLM][ERROR] Assertion failed: {expression}"
        assert re.search(rf"{re.escape(start)}[^\n]*\(\S+\.(?:h|cpp):\d+\)\n1 +0x", text)

    @pytest.mark.parametrize(
        ("inputs", "reason"),
        [
            (
                {"return_context_logits": one(True, bool)},
                (
                    "[TensorRT-LLM][ERROR] Assertion failed: Return context logit need to build "
                    "engine with gather_context_logits"
                ),
            ),
            (
                {"return_generation_logits": one(True, bool)},
                (
                    "[TensorRT-LLM][ERROR] Assertion failed: To return generation logits, "
                    "gather_generation_logits must be enabled in ExecutorConfig"
                ),
            ),
            (
                {"guided_decoding_guide_type": one("json", object)},
                (
                    "[TensorRT-LLM][ERROR] Assertion failed: Request is specified with "
                    "GuidedDecodingParams, but GuidedDecoder is not setup. Please provide a valid "
                    "GuidedDecodingConfig to setup GuidedDecoder."
                ),
            ),
            (
                {"end_id": one(VOCABULARY)},
                (
                    "[TensorRT-LLM][ERROR] Assertion failed: EndId (1024) is not within acceptable "
                    "range [-1, 1024)."
                ),
            ),
            (
                {"num_return_sequences": one(0)},
                "[TensorRT-LLM][ERROR] Assertion failed: Incorrect sampling config",
            ),
            (
                {"draft_input_ids": np.array([[5, 6]], np.int32)},
                "Draft tokens length (2) exceeds maximum draft tokens length (0).",
            ),
        ],
    )
    def test_what_is_found_when_the_request_is_fetched(
        self, ask: Ask, inputs: dict[str, Any], reason: str
    ) -> None:
        text = refusal(ask, **inputs)
        assert re.search(
            r"Executor failed process requestId \d+ due to the following error: Encountered an "
            rf"error when fetching new request: {re.escape(reason)} \(",
            text,
        )

    def test_a_prompt_that_is_too_long(self, ask: Ask) -> None:
        # With chunked context the limit is max_seq_len - 1, not the engine's max_input_len of 384.
        assert len(ids_of(ask(1, ids=[5] * (MAX_SEQ_LEN - 1)))) == 1
        assert (
            "Prompt length (512) exceeds maximum input length (511). Set log level to info and "
            "check TRTGptModel logs for how maximum input length is set ("
        ) in refusal(ask, 1, ids=[5] * MAX_SEQ_LEN)

    def test_more_beams_than_the_model_has(self, ask: Ask) -> None:
        assert (
            "due to the following error: Encountered an error in forwardAsync function: "
            "[TensorRT-LLM][ERROR] Assertion failed: Requested beam width 2 is larger than "
            "configured max beam width 1 ("
        ) in refusal(ask, beam_width=one(2))

    @pytest.mark.parametrize(
        ("missing", "text"),
        [
            ("request_output_len", "request_output_len is not present in the request"),
            ("input_ids", "inputTokens or encoderInputFeatures tensor not provided"),
        ],
    )
    def test_an_input_that_triton_does_not_miss(self, ask: Ask, missing: str, text: str) -> None:
        assert text in refusal(ask, without=missing)

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            ([[[5, 6], [9, -1]]], "must not have out-of-bound offsets: 5 6 9 -1"),
            ([[[5, 6], [2, 1]]], "must not have non-increasing offsets: 5 6 2 1"),
            ([[[5, 6], [-1, 2]]], "must not have additional -1s: 5 6 -1 2"),
        ],
    )
    def test_a_word_list_whose_ends_do_not_rise(self, ask: Ask, words: Any, reason: str) -> None:
        text = refusal(ask, stop_words_list=np.array(words, np.int32))
        assert f"[TensorRT-LLM][ERROR] Assertion failed: Sparse list {reason}" in text

    def test_a_guide_that_needs_a_text(self, ask: Ask) -> None:
        text = refusal(ask, guided_decoding_guide_type=one("regex", object))
        assert "The guide string must be provided unless using GuideType::kJSON." in text

    def test_lookahead_of_a_model_without_it(self, ask: Ask) -> None:
        sizes = {"window_size": 4, "ngram_size": 3, "verification_set_size": 4}
        text = refusal(ask, **{f"lookahead_{name}": one(size) for name, size in sizes.items()})
        assert "Cannot set the request lookahead decoding configuration when model" in text

    def test_inputs_of_other_releases_are_refused_by_triton(self, ask: Ask) -> None:
        for name, array in {
            "random_seed": one(7, np.uint64),
            "min_length": one(2),
        }.items():
            text = refusal(ask, seed=one(7, np.uint64), **{name: array})
            assert f"unexpected inference input '{name}' for model 'tensorrt_llm'" in text

    def test_the_status_of_a_unary_call_is_internal(
        self, strict_once: Any, prompt: list[int]
    ) -> None:
        bad = {"temperature": one(-1, np.float32)}
        inputs = [tensor(*item) for item in id_arrays(prompt, 4, streaming=False, **bad).items()]
        with (
            grpcclient.InferenceServerClient(strict_once.grpc_url) as client,
            pytest.raises(InferenceServerException, match=r"temperature\.value\(\) >= 0\.f") as got,
        ):
            client.infer(ENGINE, inputs)
        assert got.value.status() == "StatusCode.INTERNAL"

    @pytest.mark.parametrize(
        ("rows", "streaming", "text"),
        [
            (
                1,
                True,
                "Streaming is only supported if model is deployed using decoupled mode. (",
            ),
            (
                2,
                False,
                (
                    "Batch size > 1 requires the tensorrt_llm backend to be using decoupled "
                    "transaction policy ("
                ),
            ),
        ],
    )
    def test_a_model_that_answers_once(
        self, strict_once: Any, prompt: list[int], rows: int, streaming: bool, text: str
    ) -> None:
        arrays = {
            name: np.concatenate([array] * rows)
            for name, array in id_arrays(prompt, 4, streaming=streaming).items()
        }
        inputs = [tensor(*item) for item in arrays.items()]
        with (
            grpcclient.InferenceServerClient(strict_once.grpc_url) as client,
            pytest.raises(InferenceServerException, match=re.escape(text)),
        ):
            client.infer(ENGINE, inputs)


class TestWhatIsNotRead:
    def test_top_p_of_0_is_not_given(self, ask: Ask, greedy: list[int]) -> None:
        top_p = one(0, np.float32)
        assert ids_of(ask(runtime_top_p=top_p, without="runtime_top_k")) == greedy[:TOKENS]

    def test_an_unknown_guide_type(self, ask: Ask, greedy: list[int]) -> None:
        guide = {
            "guided_decoding_guide_type": one("json_object", object),
            "guided_decoding_guide": one("{}", object),
        }
        assert ids_of(ask(**guide)) == greedy[:TOKENS]

    def test_lora_without_the_plugin(self, ask: Ask, greedy: list[int]) -> None:
        assert ids_of(ask(lora_task_id=one(3, np.uint64))) == greedy[:TOKENS]

    def test_parameters(self, strict: Any, prompt: list[int], greedy: list[int]) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        parameters = {"Streaming": False, "request_type": "no such type", "stray": 7}
        with grpcclient.InferenceServerClient(strict.grpc_url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            arrays = id_arrays(prompt, TOKENS, streaming=True)
            inputs = [tensor(*item) for item in arrays.items()]
            client.async_stream_infer(ENGINE, inputs, parameters=parameters)
            client.stop_stream()
        assert ids_of(drained(answers)) == greedy[:TOKENS]

    def test_the_length_of_a_single_prompt(
        self, ask: Ask, prompt: list[int], greedy: list[int]
    ) -> None:
        padded = [*prompt, 2, 2]
        # The padding counts as tokens, whatever input_lengths says.
        got = ask(4, ids=padded, input_lengths=one(len(prompt)))
        assert ids_of(got) == ids_of(ask(4, ids=padded)) != greedy[:4]


class TestLength:
    def test_more_tokens_than_there_is_room_for_are_cut(self, ask: Ask, prompt: list[int]) -> None:
        results = ask(2**31 - 1, streaming=False, exclude_input_in_output=one(True, bool))
        assert len(ids_of(results)) == MAX_SEQ_LEN - len(prompt)

    def test_the_end_id_is_no_output_and_comes_as_an_empty_last_response(
        self, ask: Ask, greedy: list[int]
    ) -> None:
        place = next(i for i in range(5, 40) if greedy[i] not in greedy[:i])
        results = ask(40, end_id=one(greedy[place]), outputs=SCORES, return_log_probs=one(1, bool))
        assert ids_of(results) == greedy[:place]
        last = results[-1]
        assert last.as_numpy("output_ids").shape == (1, 1, 0)
        assert last.as_numpy("sequence_length").tolist() == [[0]]
        # Its log probability is in neither list nor sum.
        assert last.as_numpy("output_log_probs").shape == (1, 1, place)
        before = results[-2]
        assert last.as_numpy("cum_log_probs") == before.as_numpy("cum_log_probs")

    def test_the_end_id_of_a_whole_answer(self, ask: Ask, greedy: list[int]) -> None:
        place = next(i for i in range(5, 40) if greedy[i] not in greedy[:i])
        more = {"end_id": one(greedy[place]), "exclude_input_in_output": one(True, bool)}
        (result,) = ask(40, streaming=False, **more)
        assert ids_of([result]) == greedy[:place]

    def test_a_stop_word_stays_and_so_does_a_second_end_id(
        self, ask: Ask, greedy: list[int]
    ) -> None:
        place = next(i for i in range(5, 40) if greedy[i] not in greedy[:i])
        single = ask(40, stop_words_list=words([greedy[place]]))
        assert ids_of(single) == greedy[: place + 1]
        pair = ask(40, stop_words_list=words([3, 3, 3], greedy[place - 1 : place + 1]))
        assert ids_of(pair) == greedy[: place + 1]

    def test_a_stop_word_may_begin_in_the_prompt(
        self, ask: Ask, prompt: list[int], greedy: list[int]
    ) -> None:
        results = ask(stop_words_list=words([prompt[-1], greedy[0]]))
        assert ids_of(results) == greedy[:1]

    def test_min_tokens_holds_the_end_id_back_and_no_stop_word(
        self, ask: Ask, greedy: list[int]
    ) -> None:
        late = one(8)
        got = ids_of(ask(min_tokens=late, end_id=one(greedy[3])))
        assert got[:3] == greedy[:3]
        assert len(got) >= 8
        assert greedy[3] not in got[:8]
        stopped = ask(min_tokens=late, stop_words_list=words([greedy[3]]))
        assert ids_of(stopped) == greedy[:4]


class TestLogProbs:
    def test_every_response_of_a_stream_has_all_so_far(self, ask: Ask) -> None:
        results = ask(outputs=SCORES, return_log_probs=one(True, bool))
        shapes = [result.as_numpy("output_log_probs").shape for result in results]
        assert shapes == [(1, 1, count) for count in range(1, TOKENS + 1)]
        assert all(result.as_numpy("cum_log_probs").shape == (1, 1) for result in results)

    def test_of_greedy_tokens_they_are_0_where_normalized_and_the_sum_is_not(
        self, ask: Ask, int4: Any
    ) -> None:
        config = (int4.gpu / ENGINE / "config.pbtxt").read_text()
        declared = re.search(r'"normalize_log_probs"\s*value\s*{\s*string_value: "(\w+)"', config)
        assert declared
        last = ask(outputs=SCORES, return_log_probs=one(True, bool))[-1]
        probs = last.as_numpy("output_log_probs")
        total = float(last.as_numpy("cum_log_probs").item())
        assert total < -0.1
        if declared[1] == "true":
            assert not probs.any()
        else:
            assert float(probs.sum()) == pytest.approx(total, rel=1e-5)

    def test_only_who_asks_gets_them(self, ask: Ask) -> None:
        names = {output.name for output in ask(1, outputs=SCORES)[0].get_response().outputs}
        assert names == set(BOTH)


class TestBias:
    def test_another_width_ends_everyone(self, ask: Ask, strict: Any, prompt: list[int]) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        arrays = id_arrays(prompt, LONG, streaming=True)
        with grpcclient.InferenceServerClient(strict.grpc_url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer(ENGINE, [tensor(*item) for item in arrays.items()])
            first = answers.get(timeout=60)
            assert not isinstance(first, Exception), first
            reason = (
                "Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] Assertion "
                "failed: The embedding bias shape is not as expected. Expected last dimension to "
                "be same as vocab size: 1024. ("
            )
            bias = np.zeros((1, VOCABULARY - 1), np.float32)
            assert reason in refusal(ask, embedding_bias=bias)
            client.stop_stream()
        rest = list(answers.queue)
        assert len(rest) < LONG - 1
        # The neighbour dies with the same words, and the next request is served.
        assert reason in str(rest[-1])
        assert len(ids_of(ask(4))) == 4

    def test_it_is_added_to_the_scores(self, ask: Ask, greedy: list[int]) -> None:
        bias = np.zeros((1, VOCABULARY), np.float32)
        bias[0, 77] = 1000
        assert ids_of(ask(3, embedding_bias=bias)) == [77, 77, 77]
        none = np.zeros((1, 0), np.float32)
        assert ids_of(ask(3, embedding_bias=none)) == greedy[:3]


class TestSampling:
    def test_a_bad_word_is_never_chosen(self, ask: Ask, greedy: list[int]) -> None:
        got = ids_of(ask(3, bad_words_list=words([greedy[0]])))
        assert got[0] != greedy[0]
        pair = ids_of(ask(3, bad_words_list=words(greedy[:2])))
        assert pair[0] == greedy[0]
        assert pair[1] != greedy[1]

    def test_num_return_sequences_is_taken_for_a_ngram_size(
        self, ask: Ask, prompt: list[int], greedy: list[int]
    ) -> None:
        several = (*BOTH, "sequence_index")
        results = ask(40, num_return_sequences=one(1), outputs=several)
        got = ids_of(results)
        assert len({*prompt, *got}) == len(set(prompt)) + len(got) == len(set(prompt)) + 40
        assert len(set(greedy)) < 40
        assert all(result.as_numpy("sequence_index") is None for result in results)

    def test_equal_seeds_give_equal_tokens(self, ask: Ask) -> None:
        def draw(**more: Any) -> list[int]:
            flat = {"runtime_top_k": one(50), "temperature": one(1.5, np.float32)}
            return ids_of(ask(20, **flat, **more))

        assert draw(seed=one(7, np.uint64)) == draw(seed=one(7, np.uint64))
        assert draw(seed=one(7, np.uint64)) != draw(seed=one(8, np.uint64))
        assert draw() == draw(seed=one(0, np.uint64))


class TestAnswer:
    def test_a_stream_has_one_response_for_each_token(self, ask: Ask) -> None:
        lengths = [result.as_numpy("sequence_length").tolist() for result in ask()]
        assert lengths == [[[1]]] * TOKENS

    def test_a_whole_answer_has_the_prompt_unless_excluded(
        self, ask: Ask, prompt: list[int], greedy: list[int]
    ) -> None:
        counts = (*BOTH, "num_output_tokens")
        counted = {"return_num_output_tokens": one(True, bool)}
        whole = {"streaming": False, "outputs": counts, **counted}
        (included,) = ask(exclude_input_in_output=one(False, bool), **whole)
        (excluded,) = ask(exclude_input_in_output=one(True, bool), **whole)
        assert ids_of([included]) == prompt + greedy[:TOKENS]
        assert ids_of([excluded]) == greedy[:TOKENS]
        # The count is that of the ids in the response, the prompt's among them.
        assert included.as_numpy("num_output_tokens").item() == len(prompt) + TOKENS
        assert excluded.as_numpy("num_output_tokens").item() == TOKENS
        # A stream never has it.
        assert ids_of(ask(exclude_input_in_output=one(False, bool))) == greedy[:TOKENS]

    def test_counts_come_to_who_asks(self, ask: Ask, prompt: list[int]) -> None:
        outputs = (*BOTH, "num_input_tokens", "num_output_tokens")
        for result in ask(outputs=outputs):
            assert result.as_numpy("num_input_tokens") is None
            assert result.as_numpy("num_output_tokens") is None
        asked = {f"return_num_{side}_tokens": one(True, bool) for side in ("input", "output")}
        for result in ask(outputs=outputs, **asked):
            assert result.as_numpy("num_input_tokens").tolist() == [[len(prompt)]]
            assert result.as_numpy("num_output_tokens").tolist() == [[1]]

    def test_performance_metrics(self, ask: Ask) -> None:
        asked = {"return_perf_metrics": one(True, bool)}
        results = ask(outputs=(*BOTH, *METRICS), **asked)
        for result in results:
            for name in METRICS:
                value = result.as_numpy(name)
                assert value.shape == (1, 1)
                kind = np.int64 if name.endswith("_ns") else np.int32
                assert value.dtype == (np.float32 if name == "acceptance_rate" else kind)
        *before, last = results
        # The end has a time when it has come.
        assert {result.as_numpy("last_token_time_ns").item() for result in before} == {0}
        times = [last.as_numpy(name).item() for name in METRICS if name.endswith("_ns")]
        assert times == sorted(times)
        assert times[0] > 0

    def test_each_prompt_of_a_batch_is_answered_with_its_index(
        self, strict: Any, prompt: list[int], greedy: list[int]
    ) -> None:
        short = prompt[:4]
        rows = [id_arrays(row, 4, streaming=True) for row in (prompt, [*short, 9, 9, 9, 9, 9])]
        assert len(prompt) == 9
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        arrays["input_lengths"] = np.array([[9], [4]], np.int32)
        results = streamed(strict.grpc_url, ENGINE, arrays, (*BOTH, "batch_index"))
        of = {
            index: [r for r in results if r.as_numpy("batch_index").tolist() == [[index]]]
            for index in (0, 1)
        }
        assert len(of[0]) + len(of[1]) == len(results)
        assert ids_of(of[0]) == greedy[:4]
        # Of a batch each prompt is cut at its length.
        alone = streamed(strict.grpc_url, ENGINE, id_arrays(short, 4, streaming=True), BOTH)
        assert ids_of(of[1]) == ids_of(alone)
        assert alone[0].as_numpy("batch_index") is None


class TestStop:
    """``stop`` asks for the end of the request with the same id."""

    @staticmethod
    def stop(client: Any, request_id: str) -> None:
        arrays = {
            "input_ids": np.zeros((1, 1), np.int32),
            "input_lengths": np.zeros((1, 1), np.int32),
            "request_output_len": np.zeros((1, 1), np.int32),
            "stop": one(True, bool),
        }
        inputs = [tensor(*item) for item in arrays.items()]
        client.async_stream_infer(ENGINE, inputs, request_id=request_id)

    def test_it_needs_the_id(self, strict: Any) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        with grpcclient.InferenceServerClient(strict.grpc_url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            self.stop(client, "")
            client.stop_stream()
        with pytest.raises(
            InferenceServerException,
            match="Trying to stop a request but request ID is not provided",
        ):
            drained(answers)

    def test_an_id_that_nobody_has_is_answered_as_any(self, strict: Any) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        with grpcclient.InferenceServerClient(strict.grpc_url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            self.stop(client, "nobody's")
            client.stop_stream()
        (answer,) = drained(answers)
        assert not answer.get_response().outputs
        assert answer.get_response().parameters["triton_final_response"].bool_param

    def test_of_two_with_one_id_it_ends_the_later(self, strict: Any, prompt: list[int]) -> None:
        received: queue.Queue[Any] = queue.Queue()
        arrays = id_arrays(prompt, LONG, streaming=True)
        inputs = [tensor(*item) for item in arrays.items()]
        earlier, later, stopper = (
            grpcclient.InferenceServerClient(strict.grpc_url) for _ in range(3)
        )
        with earlier, later, stopper:
            for name, client in {"earlier": earlier, "later": later}.items():
                client.start_stream(
                    lambda result, error, name=name: received.put((name, error or result))
                )
                client.async_stream_infer(
                    ENGINE, inputs, outputs=requested(BOTH), request_id="same"
                )
                while received.get(timeout=60)[0] != name:
                    pass
            stopper.start_stream(lambda **_: None)
            self.stop(stopper, "same")
            stopper.stop_stream()
            later.stop_stream()
            earlier.stop_stream()
        counts = {"earlier": 0, "later": 0}
        while not received.empty():
            name, result = received.get()
            counts[name] += len(ids_of([result]))
        assert counts["later"] < LONG - 1
        assert counts["earlier"] > counts["later"]

    def test_a_cancelled_call_ends_the_generation(self, strict: Any, prompt: list[int]) -> None:
        arrays = id_arrays(prompt, LONG, streaming=True)

        def cancel() -> None:
            answers: queue.Queue[Any] = queue.Queue()
            with grpcclient.InferenceServerClient(strict.grpc_url) as client:
                client.start_stream(lambda result, error: answers.put(error or result))
                inputs = [tensor(*item) for item in arrays.items()]
                client.async_stream_infer(ENGINE, inputs)
                answers.get(timeout=60)
                client.stop_stream(cancel_requests=True)

        assert ends_early(strict, cancel)


def ends_early(server: Any, cancel: Callable[[], None]) -> bool:
    """Whether a generation of ``LONG`` tokens that is cancelled has fewer, in one of ten tries.

    A busy machine may have made all of them before it hears of that.

    Args:
        server: Has nothing else to do.
        cancel: Starts one, and cancels it at its first token.
    """
    counted = "nv_llm_output_token_len_sum"
    for _ in range(10):
        before = metric(server, counted)
        cancel()
        deadline = time.monotonic() + 60
        # They are counted when the generation has ended.
        while metric(server, counted) == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if metric(server, counted) - before < LONG:
            return True
    return False


def metric(server: Any, name: str, label: str = "") -> float:
    """A value of the metrics endpoint."""
    text = metrics(server)
    found = re.search(rf"^{name}{{[^}}]*{re.escape(label)}[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert found, (name, label)
    return float(found[1])


def wait_for_tokens(server: Any, expected: float) -> None:
    """They are counted when the last response has been sent."""
    deadline = time.monotonic() + 60
    while (found := metric(server, "nv_llm_output_token_len_sum")) != expected:
        assert time.monotonic() < deadline, (found, expected)
        time.sleep(0.02)


def metrics(server: Any) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
        return str(answer.read().decode())


def test_a_model_without_a_mandatory_parameter_does_not_load(int4: Built, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(int4.gpu / ENGINE, repository / ENGINE)
    config = repository / ENGINE / "config.pbtxt"
    text, found = re.subn(
        r'parameters {\s*key: "guided_decoding_backend"\s*value {[^}]*}\s*}',
        "",
        config.read_text(),
    )
    assert found == 1
    config.unlink()
    config.write_text(text)
    reason = (
        "unexpected error when creating modelInstanceState: Cannot find parameter with name: "
        "guided_decoding_backend"
    )
    with (
        pytest.raises(ServerError, match=reason),
        strict_server(repository, int4.engine, tmp_path / "triton.log"),
    ):
        pass


def test_metrics_have_upstreams_names_and_labels(strict: Any, ask: Ask, prompt: list[int]) -> None:
    for name, (label, values) in UPSTREAM.items():
        if name.startswith("nv_llm_"):
            continue  # histograms, below
        for value in values:
            assert metric(strict, name, f'{label}="{value}"') >= 0
    assert metric(strict, "nv_trt_llm_request_metrics", 'request_type="max"') == 32
    before = metric(strict, "nv_llm_output_token_len_sum")
    # Neither the prompt in a whole answer nor the number of responses counts.
    ask(7, streaming=False, exclude_input_in_output=one(False, bool))
    ask(5)
    wait_for_tokens(strict, before + 12)
    # A batch counts once, with the tokens of the prompt that finishes last.
    arrays = {n: np.concatenate([a] * 2) for n, a in id_arrays(prompt, 6, streaming=True).items()}
    streamed(strict.grpc_url, ENGINE, arrays, BOTH)
    wait_for_tokens(strict, before + 18)
