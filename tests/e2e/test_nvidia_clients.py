"""NVIDIA's example clients against the real server: what they call and read must be there.

The clients are the independent side; ``nvidia_calls.py`` makes their calls. Texts are checked
against the tokenizers library and the ids that the engine gave.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tokenizers import Tokenizer

from ..conftest import DEMO_MODEL
from ..metrics import METRICS
from .conftest import Cli
from .nvidia_calls import (
    WAIT_S,
    drained,
    id_arrays,
    requested,
    stop_inputs,
    stopped_after,
    streamed,
    tensor,
    text_arrays,
    texts,
)

PROMPTS = ("Once upon a time", "One day, a small dog")
PROMPT = PROMPTS[0]
# Ends before a character of several tokens, which a streaming ensemble breaks as upstream's does.
TOKENS = 12
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")
BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
EACH_MODEL = pytest.mark.parametrize("model", TEXT_MODELS)


def one(value: Any, kind: Any) -> Any:
    return np.array([[value]], kind)


def variant(cli: Cli, factory: pytest.TempPathFactory, *settings: str) -> Iterator[Any]:
    """A server on the demo with other settings of ``serve``."""
    from pipeline.serving import serving

    options = [word for setting in settings for word in ("--set", f"serve.{setting}")]
    name = "-".join(setting.partition("=")[2] for setting in settings)
    done = cli.run(
        "configs/demo.yaml", "--set", f"name=demo-{name}", *options, "--until", "repository",
        "--json",
    )  # fmt: skip
    repository = Path(json.loads(done.stdout)["deployed"]["repository"])
    with serving(repository, factory.mktemp("log") / "triton.log") as server:
        yield server


@pytest.fixture(scope="module")
def answering_once(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose models are not decoupled, as upstream's tools need without ``-S``."""
    yield from variant(cli, tmp_path_factory, "decoupled=false")


@pytest.fixture(scope="module")
def as_upstream(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with upstream's choices for texts, and a text model that answers once beside it."""
    settings = ("accumulate_tokens=true", "include_stop_str_in_output=true", "decoupled=both")
    yield from variant(cli, tmp_path_factory, *settings)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def continuation(server: Any, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The greedy ids after each prompt, by the engine itself."""
    found = {}
    for prompt in PROMPTS:
        arrays = id_arrays(tokenizer.encode(prompt).ids, TOKENS, streaming=True)
        results = streamed(server.grpc_url, "tensorrt_llm", arrays)
        found[prompt] = [int(t) for result in results for t in result.as_numpy("output_ids")[0][0]]
        assert len(found[prompt]) == TOKENS
    return found


@pytest.fixture(scope="module")
def answers(continuation: dict[str, list[int]], tokenizer: Tokenizer) -> dict[str, str]:
    return {prompt: tokenizer.decode(ids) for prompt, ids in continuation.items()}


class TestEndToEndGrpcClient:
    """``end_to_end_grpc_client.py``."""

    @EACH_MODEL
    @BOTH_WAYS
    def test_a_text_is_the_first_element_of_text_output(
        self, server: Any, answers: dict[str, str], model: str, streaming: bool
    ) -> None:
        arrays = text_arrays(PROMPT, TOKENS, streaming=streaming)
        results = streamed(server.grpc_url, model, arrays, ["text_output"])
        # A stream leaves the prompt out, whatever exclude_input_in_output says.
        expected = answers[PROMPT] if streaming else PROMPT + answers[PROMPT]
        assert texts(results) == [expected]
        assert len(results) > 1 if streaming else len(results) == 1

    @BOTH_WAYS
    def test_prompts_of_a_batch_come_back_with_their_index(
        self, server: Any, answers: dict[str, str], streaming: bool
    ) -> None:
        for model in TEXT_MODELS:
            singles = [text_arrays(prompt, TOKENS, streaming=streaming) for prompt in PROMPTS]
            arrays = {
                name: np.concatenate([single[name] for single in singles], axis=0)
                for name in singles[0]
            }
            wanted = ["text_output", "batch_index"]
            results = streamed(server.grpc_url, model, arrays, wanted)
            assert {int(r.as_numpy("batch_index")[0][0]) for r in results} == {0, 1}
            assert texts(results, 2) == [
                answers[prompt] if streaming else prompt + answers[prompt] for prompt in PROMPTS
            ]

    @EACH_MODEL
    @BOTH_WAYS
    def test_all_metrics_are_in_every_response(
        self, server: Any, model: str, streaming: bool
    ) -> None:
        metrics = {"return_perf_metrics": one(True, bool)}
        arrays = text_arrays(PROMPT, TOKENS, streaming=streaming, **metrics)
        results = streamed(server.grpc_url, model, arrays, ["text_output", *METRICS])
        assert results
        for result in results:
            values = {name: result.as_numpy(name)[0][0] for name in METRICS}
        times = [values[name] for name in METRICS if name.endswith("_ns")]
        assert times == sorted(times)
        assert times[0] > 0
        assert values["kv_cache_alloc_total_blocks"] > 0

    @EACH_MODEL
    @BOTH_WAYS
    def test_log_probs_have_a_batch_and_a_beam_in_front(
        self, server: Any, model: str, streaming: bool
    ) -> None:
        arrays = text_arrays(PROMPT, TOKENS, streaming=streaming, return_log_probs=one(True, bool))
        wanted = ["text_output", "cum_log_probs", "output_log_probs"]
        results = streamed(server.grpc_url, model, arrays, wanted)
        assert results[-1].as_numpy("cum_log_probs").shape == (1, 1)
        shapes = {result.as_numpy("output_log_probs").shape[:2] for result in results}
        assert shapes == {(1, 1)}

    @BOTH_WAYS
    def test_stop_words_end_and_pad_ids_and_a_request_id(
        self, server: Any, answers: dict[str, str], streaming: bool
    ) -> None:
        text = answers[PROMPT]
        word = text.split()[4]
        more = {
            "stop_words": np.array([[word]], object),
            "end_id": one(1, np.int32),
            "pad_id": one(2, np.int32),
            "repetition_penalty": one(1.0, np.float32),
        }
        arrays = text_arrays(PROMPT, TOKENS, streaming=streaming, **more)
        results = streamed(
            server.grpc_url, "tensorrt_llm_bls", arrays, ["text_output"], request_id="mine"
        )
        assert {result.get_response().id for result in results} == {"mine"}
        before = text[: text.index(word)]
        assert texts(results) == [before if streaming else PROMPT + before]

    @EACH_MODEL
    def test_an_empty_prompt_continues_the_begin_token(
        self, server: Any, tokenizer: Tokenizer, model: str
    ) -> None:
        ids = id_arrays(tokenizer.encode("").ids, TOKENS, streaming=True)
        expected = [
            int(token)
            for result in streamed(server.grpc_url, "tensorrt_llm", ids)
            for token in result.as_numpy("output_ids")[0][0]
        ]
        arrays = text_arrays("", TOKENS, streaming=False)
        (got,) = texts(streamed(server.grpc_url, model, arrays, ["text_output"]))
        assert got == tokenizer.decode(expected)

    def test_overwrite_output_text_with_accumulated_tokens(
        self, as_upstream: Any, answers: dict[str, str]
    ) -> None:
        arrays = text_arrays(PROMPT, TOKENS, streaming=True)
        results = streamed(as_upstream.grpc_url, "tensorrt_llm_bls", arrays, ["text_output"])
        assert len(results) > 1
        assert texts(results, overwrite=True) == [answers[PROMPT]]

    @BOTH_WAYS
    def test_a_stop_word_stays_where_the_model_declares_it(
        self, as_upstream: Any, answers: dict[str, str], streaming: bool
    ) -> None:
        text = answers[PROMPT]
        word = text.split()[4]
        stop = {"stop_words": np.array([[word]], object)}
        arrays = text_arrays(PROMPT, TOKENS, streaming=streaming, **stop)
        results = streamed(as_upstream.grpc_url, "tensorrt_llm_bls", arrays, ["text_output"])
        expected = text[: text.index(word) + len(word)]
        assert texts(results, overwrite=streaming) == [expected if streaming else PROMPT + expected]


class TestInflightBatcherClient:
    """``inflight_batcher_llm_client.py``."""

    def test_streamed_ids(
        self, server: Any, continuation: dict[str, list[int]], tokenizer: Tokenizer
    ) -> None:
        wanted = ["output_ids", "sequence_length", "cum_log_probs", "output_log_probs", *METRICS]
        flags = {"return_log_probs": one(True, bool), "return_perf_metrics": one(True, bool)}
        arrays = id_arrays(tokenizer.encode(PROMPT).ids, TOKENS, streaming=True, **flags)
        results = streamed(server.grpc_url, "tensorrt_llm", arrays, wanted, request_id="1")
        ids = []
        for result in results:
            names = {output.name for output in result.get_response().outputs}
            assert names == set(wanted)
            if result.as_numpy("sequence_length")[0][0] > 0:
                ids += list(result.as_numpy("output_ids")[0][0])
            assert result.as_numpy("cum_log_probs")[0].shape == (1,)
            assert all(result.as_numpy(name)[0][0] >= 0 for name in METRICS)
        assert ids == continuation[PROMPT]

    def test_stop_after_milliseconds(self, server: Any, tokenizer: Tokenizer) -> None:
        asked = 450
        arrays = id_arrays(tokenizer.encode(PROMPT).ids, asked, streaming=True)
        # On a busy machine the stop can come when all is generated.
        counts: list[int] = []
        while not counts or (counts[-1] == asked and len(counts) < 20):
            results = stopped_after(server.grpc_url, arrays, 0.1)
            ids = [
                token
                for result in results
                if result.as_numpy("output_ids") is not None
                for token in result.as_numpy("output_ids")[0][0]
            ]
            counts.append(len(ids))
        assert 0 < counts[-1] < asked, counts

    def test_whole_ids_and_a_stop_without_streaming(
        self, answering_once: Any, continuation: dict[str, list[int]], tokenizer: Tokenizer
    ) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        prompt = tokenizer.encode(PROMPT).ids

        def put(result: Any, error: Any) -> None:
            answers.put(error or result)

        with grpcclient.InferenceServerClient(answering_once.grpc_url) as client:
            ask = partial(client.async_infer, "tensorrt_llm", callback=put)
            parameters = {"Streaming": False}
            inputs = id_arrays(prompt, TOKENS, streaming=False)
            ask([tensor(*item) for item in inputs.items()], parameters=parameters)
            result = answers.get(timeout=WAIT_S)
            assert not isinstance(result, Exception), result
            length = result.as_numpy("sequence_length")[0][0]
            ids = [int(token) for token in result.as_numpy("output_ids")[0][0][:length]]
            assert ids[-TOKENS:] == continuation[PROMPT]

            asked = 450
            inputs = id_arrays(prompt, asked, streaming=False)
            ask([tensor(*i) for i in inputs.items()], request_id="9", parameters=parameters)
            time.sleep(0.1)
            ask(stop_inputs(), request_id="9", parameters=parameters)
            both = [answers.get(timeout=WAIT_S) for _ in range(2)]
        assert not any(isinstance(result, Exception) for result in both), both
        with_ids = [r for r in both if r.as_numpy("output_ids") is not None]
        assert len(with_ids) == 1  # the other one is the answer to the stop itself
        assert with_ids[0].as_numpy("sequence_length")[0][0] < asked


class TestTools:
    """``end_to_end_test.py``, ``benchmark_core_model.py`` and the speculative decoding client."""

    @pytest.mark.parametrize("protocol", ["grpc", "http"])
    def test_the_models_one_by_one_are_the_ensemble_and_the_bls(
        self, answering_once: Any, protocol: str
    ) -> None:
        module = httpclient if protocol == "http" else grpcclient
        url = answering_once.http_url.removeprefix("http://")
        url = url if protocol == "http" else answering_once.grpc_url
        put = partial(tensor, module=module)
        length = one(TOKENS, np.int32)
        none = np.array([[""]], object)
        with module.InferenceServerClient(url) as client:
            before = client.infer(
                "preprocessing",
                [
                    put("QUERY", np.array([[PROMPT]], object)),
                    put("BAD_WORDS_DICT", none),
                    put("STOP_WORDS_DICT", none),
                    put("REQUEST_OUTPUT_LEN", length),
                ],
                request_id="0",
            )
            names = {
                "input_ids": "INPUT_ID",
                "decoder_input_ids": "DECODER_INPUT_ID",
                "input_lengths": "REQUEST_INPUT_LEN",
                "request_output_len": "REQUEST_OUTPUT_LEN",
                "end_id": "OUT_END_ID",
                "pad_id": "OUT_PAD_ID",
            }
            inputs = [put(name, before.as_numpy(output)) for name, output in names.items()]
            log_probs = put("return_log_probs", one(True, bool))
            ids = client.infer("tensorrt_llm", [*inputs, log_probs], request_id="0")
            after = client.infer(
                "postprocessing",
                [
                    put("TOKENS_BATCH", ids.as_numpy("output_ids").astype(np.int32)),
                    put("SEQUENCE_LENGTH", ids.as_numpy("sequence_length")),
                ],
                request_id="0",
            )
            text = after.as_numpy("OUTPUT")
            inputs = [
                put("text_input", np.array([[PROMPT]], object)),
                put("max_tokens", length),
                put("bad_words", none),
                put("stop_words", none),
            ]
            wanted = [module.InferRequestedOutput("text_output")]
            for model in TEXT_MODELS:
                answer = client.infer(model, inputs, outputs=wanted, request_id="0")
                assert text == answer.as_numpy("text_output")
                assert answer.as_numpy("text_output")[0].decode()

    def test_the_benchmark_finds_the_ids_in_the_first_output(
        self, server: Any, tokenizer: Tokenizer
    ) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            for number, ids in enumerate(prompts):
                arrays = {
                    "input_ids": np.array([ids], np.int32),
                    "input_lengths": one(len(ids), np.int32),
                    "request_output_len": one(TOKENS, np.int32),
                    "pad_id": one(0, np.int32),
                    "end_id": one(1, np.int32),
                }
                inputs = [tensor(name, value) for name, value in arrays.items()]
                client.async_stream_infer("tensorrt_llm", inputs, request_id=str(number))
            client.stop_stream()
        results = drained(answers)
        lengths = {
            (response := result.get_response(as_json=True))["id"]: int(
                response["outputs"][0]["shape"][2]
            )
            for result in results
        }
        assert lengths == {"0": TOKENS, "1": TOKENS}

    def test_preprocessing_and_postprocessing_of_the_speculative_client(
        self, server: Any, answers: dict[str, str], continuation: dict[str, list[int]]
    ) -> None:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            before = client.infer(
                "preprocessing",
                [
                    tensor("QUERY", np.array([[PROMPT]], object)),
                    tensor("REQUEST_OUTPUT_LEN", one(TOKENS, np.int32)),
                    tensor("STOP_WORDS_DICT", np.array([["castle"]], object)),
                ],
            )
            assert np.squeeze(before.as_numpy("INPUT_ID"), axis=0).ndim == 1
            assert before.as_numpy("STOP_WORDS_IDS").shape[:2] == (1, 2)
            assert before.as_numpy("BAD_WORDS_IDS").astype(np.int32).shape[:2] == (1, 2)
            assert before.as_numpy("OUT_END_ID")[0][0] == 1
            ids = np.array(continuation[PROMPT], np.int32)
            after = client.infer(
                "postprocessing",
                [
                    tensor("TOKENS_BATCH", np.expand_dims(ids, axis=(0, 1))),
                    tensor("SEQUENCE_LENGTH", one(len(ids), np.int32)),
                ],
            )
        assert after.as_numpy("OUTPUT")[0].decode("utf8") == answers[PROMPT]

    def test_a_plain_infer_beside_streams(self, as_upstream: Any, answers: dict[str, str]) -> None:
        arrays = text_arrays(PROMPT, TOKENS, streaming=False)
        arrays["exclude_input_in_output"] = one(True, bool)
        with grpcclient.InferenceServerClient(as_upstream.grpc_url) as client:
            result = client.infer(
                "tensorrt_llm_bls_unary",
                [tensor(name, value) for name, value in arrays.items()],
                outputs=requested(["text_output"]),
            )
        assert result.as_numpy("text_output")[0].decode() == answers[PROMPT]
