"""Calls as NVIDIA's clients make them, with plain tritonclient, on the real server.

What they send and read is that of ``inflight_batcher_llm_client.py``, ``end_to_end_test.py`` and
``benchmark_core_model.py`` of TensorRT-LLM's Triton backend. Texts come from transformers.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipeline.bench import measure
from pipeline.progress import Silent
from pipeline.recipe.file import load_recipe
from pipeline.running.runner import run_recipe
from pipeline.store.build_dir import BuildDir
from pipeline.triton.server import TritonServer
from pipeline.verify import run_conformance
from tests.conftest import DEMO_MODEL, PROJECT
from tests.fuzz.campaign import Runner, failed, written
from tests.metrics import METRICS

PROMPT = "Once there was a gentle boy named Jack, and"


def serve(root: Path, decoupled: str) -> TritonServer:
    settings = [f"name=demo-{decoupled}", f"serve.decoupled={decoupled}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("HF_HUB_OFFLINE", "1")
        recipe = load_recipe(PROJECT / "configs" / "demo-float16.yaml", settings)
        recipe = recipe.model_copy(update={"evaluate": None})
        built = run_recipe(recipe, BuildDir(root / "build"), Silent(), until="repository")
    return TritonServer(built.deployed["repository"], log_file=root / f"{decoupled}.log")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def once(root: Path) -> Iterator[TritonServer]:
    with serve(root, "false") as server:
        yield server


@pytest.fixture(scope="module")
def both(root: Path) -> Iterator[TritonServer]:
    with serve(root, "both") as server:
        yield server


@pytest.fixture(scope="module")
def expected() -> tuple[list[int], str]:
    """Ids and text of 16 greedy tokens, from transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        whole = model.generate(ids, max_new_tokens=16, do_sample=False)[0]
    new = whole[ids.shape[1] :]
    return new.tolist(), tokenizer.decode(new, skip_special_tokens=True)


def tensor(name: str, value: Any) -> grpcclient.InferInput:
    array = np.asarray(value)
    made = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def text_inputs(tokens: int = 16, **more: Any) -> list[grpcclient.InferInput]:
    inputs = {
        "text_input": np.array([[PROMPT.encode()]], object),
        "max_tokens": np.array([[tokens]], np.int32),
        **more,
    }
    return [tensor(name, value) for name, value in inputs.items()]


def token_inputs(prompts: list[list[int]], tokens: int, **more: Any) -> list[grpcclient.InferInput]:
    """As inflight_batcher_llm_client.py sends them: padded ids, and one value per row."""
    rows = len(prompts)
    ids = np.zeros((rows, max(map(len, prompts))), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    inputs = {
        "input_ids": ids,
        "input_lengths": np.array([[len(prompt)] for prompt in prompts], np.int32),
        "request_output_len": np.full((rows, 1), tokens, np.int32),
        "beam_width": np.full((rows, 1), 1, np.int32),
        "temperature": np.full((rows, 1), 1.0, np.float32),
        "end_id": np.full((rows, 1), -1, np.int32),
        "pad_id": np.full((rows, 1), 0, np.int32),
        "runtime_top_k": np.full((rows, 1), 1, np.int32),
        "runtime_top_p": np.full((rows, 1), 0.0, np.float32),
        **{name: np.array([[value]] * rows) for name, value in more.items()},
    }
    return [tensor(name, value) for name, value in inputs.items()]


def stop_inputs() -> list[grpcclient.InferInput]:
    """``prepare_stop_signals``; the shapes are [1, 1], the ids whatever is in memory."""
    return [
        tensor("input_ids", np.empty([1, 1], np.int32)),
        tensor("input_lengths", np.zeros([1, 1], np.int32)),
        tensor("request_output_len", np.array([[0]], np.int32)),
        tensor("stop", np.array([[True]])),
    ]


def prompt_ids() -> list[int]:
    ids: list[int] = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)(PROMPT)["input_ids"]
    return ids


def metric(server: TritonServer, line: str) -> float:
    text = urllib.request.urlopen(server.metrics_url).read().decode()
    return float(next(row for row in text.splitlines() if row.startswith(line)).split()[-1])


def active(server: TritonServer) -> float:
    return metric(server, 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active"')


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_infer_on_a_text_model(
    once: TritonServer, expected: tuple[list[int], str], model: str
) -> None:
    with grpcclient.InferenceServerClient(once.grpc_url) as client:
        result = client.infer(model, text_inputs(stream=np.array([[False]])))
    assert result.as_numpy("text_output").reshape(-1)[0].decode() == expected[1]


def test_infer_on_the_engine(once: TritonServer, expected: tuple[list[int], str]) -> None:
    with grpcclient.InferenceServerClient(once.grpc_url) as client:
        inputs = token_inputs([prompt_ids()], 16, streaming=False, return_perf_metrics=True)
        result = client.infer("tensorrt_llm", inputs)
    assert result.as_numpy("output_ids")[0][0].tolist() == expected[0]
    assert result.as_numpy("sequence_length")[0][0] == 16
    for name in METRICS:
        assert result.as_numpy(name)[0][0] >= 0, name


def test_plain_http(once: TritonServer, expected: tuple[list[int], str]) -> None:
    body = {
        "inputs": [
            {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [PROMPT]},
            {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [16]},
        ]
    }
    url = f"{once.http_url}/v2/models/tensorrt_llm_bls/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as response:
        outputs = json.load(response)["outputs"]
    text = next(output for output in outputs if output["name"] == "text_output")
    assert text["data"] == [expected[1]]


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
@pytest.mark.parametrize(
    ("more", "reason", "statuses"),
    [
        # Refused by preprocessing, by the engine's front, and by the engine's limits.
        (
            {"temperature": np.array([[-1.0]], np.float32)},
            "temperature must be at least 0, got -1",
            ("INVALID_ARGUMENT", 400),
        ),
        (
            {"text_input": np.array([[b"a\xff"]], object)},
            "text_input is not valid UTF-8: byte 0xff at position 1",
            ("INVALID_ARGUMENT", 400),
        ),
        (
            {"presence_penalty": np.array([[1.0]], np.float32)},
            "presence_penalty 1: TensorRT-LLM counts",
            ("UNIMPLEMENTED", 501),
        ),
    ],
    ids=["limits", "text", "engine"],
)
def test_a_clients_fault_is_called_one(
    once: TritonServer, model: str, more: Any, reason: str, statuses: tuple[str, int]
) -> None:
    """Also where one model has it from another; Triton itself makes a fault of the server of it."""
    inputs = {
        "text_input": np.array([[PROMPT.encode()]], object),
        "max_tokens": np.array([[4]], np.int32),
        **more,
    }
    with grpcclient.InferenceServerClient(once.grpc_url) as client:
        with pytest.raises(InferenceServerException, match=re.escape(reason)) as caught:
            client.infer(model, [tensor(name, value) for name, value in inputs.items()])
        assert caught.value.status() == f"StatusCode.{statuses[0]}"
        assert "[" not in caught.value.message().partition(":")[0]
    with httpclient.InferenceServerClient(once.http_url.removeprefix("http://")) as client:
        asked = []
        for name, array in inputs.items():
            asked.append(
                httpclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            )
            asked[-1].set_data_from_numpy(array)
        with pytest.raises(InferenceServerException, match=re.escape(reason)) as caught:
            client.infer(model, asked)
        assert caught.value.status() == str(statuses[1])


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("tensorrt_llm_bls", text_inputs(stream=np.array([[True]]))),
        ("ensemble", text_inputs(stream=np.array([[True]]))),
        ("tensorrt_llm", token_inputs([[5, 6]], 4, streaming=True)),
    ],
)
def test_a_stream_is_refused_with_the_reason(once: TritonServer, model: str, inputs: Any) -> None:
    with (
        grpcclient.InferenceServerClient(once.grpc_url) as client,
        pytest.raises(InferenceServerException, match=r"answers once per request.*serve.decoupled"),
    ):
        client.infer(model, inputs)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (
            "tensorrt_llm_bls",
            [
                tensor("text_input", np.array([[b"One"], [b"Two"]], object)),
                tensor("max_tokens", np.array([[4], [4]], np.int32)),
            ],
        ),
        ("tensorrt_llm", token_inputs([[5, 6], [7, 8]], 4, streaming=False)),
    ],
)
def test_a_batch_is_refused_by_what_answers_once(
    once: TritonServer, model: str, inputs: list[grpcclient.InferInput]
) -> None:
    with (
        grpcclient.InferenceServerClient(once.grpc_url) as client,
        pytest.raises(InferenceServerException, match=r"2 prompts: .*serve.decoupled: true"),
    ):
        client.infer(model, inputs)


Answers = queue.Queue[Any]


def running(
    server: TritonServer, count: int, ask: Callable[[Answers], Sequence[Any]]
) -> tuple[Answers, Sequence[Any]]:
    """Asks until so many requests are seen to run at once; returns the last answers and calls.

    On a busy machine requests can end before the metrics are read; those are asked again.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answers: Answers = queue.Queue()
        calls = ask(answers)
        while answers.qsize() < len(calls):
            if active(server) >= count:
                return answers, calls
            time.sleep(0.005)
    raise AssertionError(f"{count} requests never ran together")


def test_unary_requests_run_together_and_end_with_their_client(once: TritonServer) -> None:
    with grpcclient.InferenceServerClient(once.grpc_url) as client:
        inputs = text_inputs(450, end_id=np.array([[-1]], np.int32))

        def six(answers: Answers) -> list[Any]:
            def note(result: Any, error: Any) -> None:
                answers.put(error or result)

            return [client.async_infer("tensorrt_llm_bls", inputs, callback=note) for _ in range(6)]

        answers, calls = running(once, 6, six)
        for call in calls:
            call.cancel()
        deadline = time.monotonic() + 60
        while active(once) > 0:
            assert time.monotonic() < deadline, "a request outlives its client"
            time.sleep(0.02)
        told = [str(answers.get(timeout=60)).lower() for _ in calls]
    # Of six, one may have ended when they were cancelled.
    assert sum("cancel" in one for one in told) >= 4, told


def test_a_unary_stop_request(once: TritonServer) -> None:
    parameters = {"Streaming": False}
    with grpcclient.InferenceServerClient(once.grpc_url) as client:

        def send(answers: Answers, inputs: list[grpcclient.InferInput]) -> list[Any]:
            def note(result: Any, error: Any) -> None:
                answers.put(error or result.as_numpy("output_ids"))

            return [
                client.async_infer(
                    "tensorrt_llm", inputs, request_id="21", callback=note, parameters=parameters
                )
            ]

        inputs = token_inputs([prompt_ids()], 450, streaming=False)
        for _ in range(20):
            answers, _calls = running(once, 1, lambda answers: send(answers, inputs))
            send(answers, stop_inputs())
            found = [answers.get(timeout=60) for _ in range(2)]
            assert sum(one is None for one in found) == 1, found
            (ids,) = (one for one in found if one is not None)
            if ids.size < 450:
                return
    raise AssertionError("no stop came before the end of what it stops")


def test_the_twin_answers_once_and_its_original_streams(
    both: TritonServer, expected: tuple[list[int], str]
) -> None:
    pieces: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(both.grpc_url) as client:
        result = client.infer("tensorrt_llm_bls_unary", text_inputs())
        assert result.as_numpy("text_output").reshape(-1)[0].decode() == expected[1]
        client.start_stream(lambda result, error: pieces.put(error or result))
        client.async_stream_infer("tensorrt_llm_bls", text_inputs(stream=np.array([[True]])))
        client.stop_stream()
    found = [pieces.get_nowait() for _ in range(pieces.qsize())]
    texts = [one.as_numpy("text_output").reshape(-1)[0] for one in found]
    assert b"".join(texts).decode() == expected[1]
    assert len(texts) > 3


@pytest.mark.parametrize("stop_after_ms", [30, 100])
def test_nvidias_client_stops_a_stream(both: TritonServer, stop_after_ms: int) -> None:
    """``inflight_batcher_llm_client.py --streaming --stop-after-ms n --return-perf-metrics``."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(both.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        inputs = token_inputs([prompt_ids()], 450, streaming=True, return_perf_metrics=True)
        client.async_stream_infer("tensorrt_llm", inputs, request_id="22")
        time.sleep(stop_after_ms / 1000)
        client.async_stream_infer(
            "tensorrt_llm", stop_inputs(), request_id="22", parameters={"Streaming": True}
        )
        client.stop_stream()
    results = [answers.get_nowait() for _ in range(answers.qsize())]
    tokens = 0
    for result in results:
        assert not isinstance(result, InferenceServerException), result
        if result.as_numpy("output_ids") is None:
            continue  # "Got cancellation response from server"
        tokens += result.as_numpy("sequence_length")[0][0]
        for name in METRICS:
            assert result.as_numpy(name)[0][0] >= 0, name
    assert sum(result.as_numpy("output_ids") is None for result in results) == 1
    assert 0 < tokens < 450


def test_a_batch_is_fanned_out(both: TritonServer, expected: tuple[list[int], str]) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    finished = threading.Event()

    def note(result: Any, error: Any) -> None:
        answers.put(error or result)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            finished.set()

    prompts = [prompt_ids(), prompt_ids()[:5]]
    with grpcclient.InferenceServerClient(both.grpc_url) as client:
        client.start_stream(note)
        client.async_stream_infer("tensorrt_llm", token_inputs(prompts, 16, streaming=True))
        assert finished.wait(60)
        client.stop_stream()
    rows: dict[int, list[int]] = {0: [], 1: []}
    for result in (answers.get_nowait() for _ in range(answers.qsize())):
        assert not isinstance(result, InferenceServerException), result
        rows[int(result.as_numpy("batch_index")[0][0])] += result.as_numpy("output_ids")[0][
            0
        ].tolist()
    assert rows[0] == expected[0]
    assert len(rows[1]) == 16


def test_our_own_tools_work_with_models_that_answer_once(
    once: TritonServer, expected: tuple[list[int], str]
) -> None:
    measured = measure(once.grpc_url, concurrency=(2,), requests=2, rounds=1, output_tokens=4)
    (row,) = measured["measurements"]
    assert (row["output_tokens"], row["ttft_ms"], row["itl_ms"]) == (8, None, None)
    report = run_conformance(once.grpc_url, only=("wire_contract", "stream_equals_whole"))
    results = {result.name: (result.status, result.reason) for result in report.results}
    assert results["wire_contract"] == ("passed", None)
    assert results["stream_equals_whole"][0] == "skipped"
    assert "answers once per request" in str(results["stream_equals_whole"][1])
    command = [sys.executable, "-m", "pipeline", "generate", "--url", once.grpc_url]
    done = subprocess.run(
        [*command, PROMPT, "--max-tokens", "16"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected[1]}\n"


def test_seeded_requests_right_and_wrong_ones_get_what_they_deserve(
    both: TritonServer, expected: tuple[list[int], str], tmp_path: Path
) -> None:
    """The short form of ``make fuzz``; the golden text is that of transformers."""
    runner = Runner(both, seed=20, golden={PROMPT: expected[1]})
    try:
        campaign = runner.run(300)
    finally:
        runner.close()
    assert not failed(campaign), "\n".join([*failed(campaign), *written(campaign, tmp_path)])
    assert campaign.right_answered == 1
    # It would show nothing if most were wrong, or if all were right.
    assert campaign.verdicts["valid"] > 100
    assert campaign.verdicts["invalid"] > 50
    assert {model for model, _, _ in campaign.ways} == set(runner.models)
    assert len(runner.models) == 6
