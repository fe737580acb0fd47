"""The product on a repository for a GPU, behind the strict stand-in of the C++ backend.

Commands, clients and NVIDIA's calls, as a user's first hour on a GPU would go.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tokenizers import Tokenizer

from pipeline.store.digests import file_digest, files_below
from pipeline.triton.server import TritonServer
from pipeline.verify.requests import engine_inputs, request
from tests.doubles.tensorrtllm_backend.serving import strict_server
from trtllm_client import (
    AsyncClient,
    Cancelled,
    Client,
    GenerateRequest,
    InvalidRequest,
    ServerFailed,
    add_input,
    encode_request,
)

from ..conftest import DEMO_MODEL, PROJECT
from ..metrics import METRICS
from .conftest import Built
from .nvidia_calls import (
    id_arrays,
    requested,
    stopped_after,
    streamed,
    tensor,
    text_arrays,
    texts,
)
from .test_strict_rules import ends_early

pytestmark = pytest.mark.strict

PROMPTS = (
    "Once upon a time",
    "The old man looked at the sea and",
    "One day, a small dog",
    "Once there was a gentle boy named Jack, and he lived by the sea.",
)
PROMPT = PROMPTS[0]
TOKENS = 24
LONG = 400
TEXT_MODELS = ("tensorrt_llm_bls", "ensemble")
EACH_MODEL = pytest.mark.parametrize("model", TEXT_MODELS)
BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cpu_texts(int4: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The greedy texts of the CPU target's own server."""
    return _texts(int4, tmp_path_factory)


def _texts(built: Built, factory: pytest.TempPathFactory) -> dict[str, str]:
    log = factory.mktemp("cpu-log") / "triton.log"
    with TritonServer(built.cpu, log_file=log) as server, Client(server.grpc_url) as client:
        return {p: client.generate(p, max_tokens=TOKENS, end_id=-1).text for p in PROMPTS}


def test_the_repository_is_served_as_it_was_built(int4: Built, strict: Any) -> None:
    config = (int4.gpu / "tensorrt_llm" / "config.pbtxt").read_text()
    assert 'backend: "tensorrtllm"' in config
    assert not list((int4.gpu / "tensorrt_llm" / "1").glob("*.py"))
    manifest = json.loads((int4.gpu / "artifact.json").read_text())["files"]
    for name in files_below(int4.gpu):
        if name != "artifact.json":
            assert manifest[name]["sha256"] == file_digest(int4.gpu / name), name
    with Client(strict.grpc_url, model="tensorrt_llm") as client:
        assert client.model_metadata().max_batch_size == 32


@pytest.fixture(scope="module")
def verified(strict: Any) -> dict[str, dict[str, Any]]:
    """What each check of ``verify`` found."""
    options = ("--url", strict.grpc_url, "--tokenizer", str(DEMO_MODEL), "--json")
    done = command("verify", *options)
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


class TestCommands:
    def test_generate(self, strict: Any, cpu_texts: dict[str, str]) -> None:
        options = ("--url", strict.grpc_url, "--max-tokens", str(TOKENS), "--json", PROMPTS[3])
        done = command("generate", *options)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["text"] == cpu_texts[PROMPTS[3]]
        assert answer["pieces"] > 5

    def test_bench(self, strict: Any) -> None:
        options = ("--concurrency", "8", "--requests", "16", "--rounds", "2", "--json")
        done = command("bench", "--url", strict.grpc_url, *options)
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["measurements"]
        assert row["requests"] == 16
        assert row["tokens_per_second"]["low"] > 0
        assert row["ttft_ms"]["p50"] > 0

    def test_verify(self, verified: dict[str, dict[str, Any]]) -> None:
        failed = {
            name: check["reason"] for name, check in verified.items() if check["status"] == "failed"
        }
        assert failed == {}
        skipped = {name for name, check in verified.items() if check["status"] == "skipped"}
        assert skipped == {"unary_call"}

    def test_verify_of_the_ensemble(self, strict: Any) -> None:
        options = ("--url", strict.grpc_url, "--model", "ensemble", "--json")
        done = command("verify", *options)
        checks = json.loads(done.stdout)["checks"]
        assert {c["name"]: c["reason"] for c in checks if c["status"] == "failed"} == {}
        assert done.returncode == 0
        assert sum(c["status"] == "passed" for c in checks) >= 10


@pytest.fixture(scope="module")
def noisy(int4: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose scores differ by as much as those of half-precision kernels."""
    log = tmp_path_factory.mktemp("noisy-log") / "triton.log"
    with strict_server(int4.gpu, int4.engine, log, noise=0.04) as server:
        yield server


class TestRounding:
    """Scores that differ from run to run, as on a GPU: texts part where two tokens are close."""

    def test_verify_takes_a_near_tie_for_one(self, noisy: Any) -> None:
        done = command("verify", "--url", noisy.grpc_url, "--json")
        checks = json.loads(done.stdout)["checks"]
        assert {c["name"]: c["reason"] for c in checks if c["status"] == "failed"} == {}
        assert done.returncode == 0

    def test_strict_takes_none(self, noisy: Any) -> None:
        only = [o for n in ("greedy_determinism", "stream_equals_whole") for o in ("--only", n)]
        done = command("verify", "--url", noisy.grpc_url, "--strict", *only, "--json")
        assert done.returncode == 6
        checks = [c for c in json.loads(done.stdout)["checks"] if c["status"] == "failed"]
        assert checks
        assert all("differs" in check["reason"] for check in checks)


class TestTexts:
    @BOTH_WAYS
    def test_greedy_text_is_the_cpus(
        self, strict: Any, cpu_texts: dict[str, str], streaming: bool
    ) -> None:
        with Client(strict.grpc_url) as client:
            for prompt in PROMPTS:
                if streaming:
                    with client.stream(prompt, max_tokens=TOKENS, end_id=-1) as stream:
                        got = "".join(chunk.text for chunk in stream)
                else:
                    got = client.generate(prompt, max_tokens=TOKENS, end_id=-1).text
                assert got == cpu_texts[prompt]

    def test_float16_too(
        self, float16: Built, strict_odd: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        expected = _texts(float16, tmp_path_factory)
        with Client(strict_odd.grpc_url) as client:
            got = {p: client.generate(p, max_tokens=TOKENS, end_id=-1).text for p in PROMPTS}
        assert got == expected

    def test_many_streams_at_once(self, strict: Any, cpu_texts: dict[str, str]) -> None:
        async def all_of_them() -> list[str]:
            async with AsyncClient(strict.grpc_url) as client:

                async def one(prompt: str) -> str:
                    pieces = [
                        chunk.text
                        async for chunk in client.stream(prompt, max_tokens=TOKENS, end_id=-1)
                    ]
                    assert len(pieces) > 3
                    return "".join(pieces)

                return list(await asyncio.gather(*(one(prompt) for prompt in PROMPTS * 4)))

        assert asyncio.run(all_of_them()) == [cpu_texts[prompt] for prompt in PROMPTS] * 4

    @BOTH_WAYS
    def test_a_stop_word_that_spans_tokens(
        self, strict: Any, cpu_texts: dict[str, str], streaming: bool
    ) -> None:
        whole = cpu_texts[PROMPT]
        words = whole.split(" ")
        word = f"{words[3][-1]} {words[4][:2]}"
        with Client(strict.grpc_url) as client:
            asked = {"max_tokens": TOKENS, "end_id": -1, "stop_words": (word,)}
            if streaming:
                with client.stream(PROMPT, **asked) as stream:
                    got = "".join(chunk.text for chunk in stream)
            else:
                got = client.generate(PROMPT, **asked).text
        assert got == whole[: whole.index(word)]

    def test_counts_and_ends(self, strict: Any) -> None:
        tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        with Client(strict.grpc_url) as client:
            cut = client.generate(PROMPT, max_tokens=TOKENS, end_id=-1)
            ended = client.generate(PROMPT, max_tokens=LONG)
        assert (cut.finish_reason, cut.num_output_tokens) == ("length", TOKENS)
        assert cut.num_input_tokens == len(tokenizer.encode(PROMPT).ids)
        assert ended.finish_reason == "stop"
        assert ended.num_output_tokens
        assert TOKENS < ended.num_output_tokens < LONG

    def test_a_cancelled_stream_ends_the_generation(self, strict: Any) -> None:
        with Client(strict.grpc_url) as client:

            def cancel() -> None:
                with client.stream(PROMPT, max_tokens=LONG, end_id=-1) as stream:
                    next(iter(stream))

            assert ends_early(strict, cancel)
            assert client.generate(PROMPT, max_tokens=4).text

    def test_a_cancelled_stream_says_so(self, strict: Any) -> None:
        with Client(strict.grpc_url) as client:
            stream = client.stream(PROMPT, max_tokens=LONG, end_id=-1)
            next(iter(stream))
            stream.cancel()
            with pytest.raises(Cancelled, match="cancelled"):
                for _ in stream:
                    pass


class TestHttp:
    def test_the_generate_endpoints(self, strict: Any, cpu_texts: dict[str, str]) -> None:
        body = {"text_input": PROMPT, "max_tokens": TOKENS, "end_id": -1}
        whole = {**body, "exclude_input_in_output": True, "stop_words": "", "bad_words": ""}
        (answer,) = posted(strict, "tensorrt_llm_bls/generate", whole)
        assert answer["text_output"] == cpu_texts[PROMPT]
        pieces = posted(strict, "tensorrt_llm_bls/generate_stream", {**body, "stream": True})
        assert "".join(piece["text_output"] for piece in pieces) == cpu_texts[PROMPT]
        assert len(pieces) > 3


def posted(server: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of one of Triton's generate endpoints."""
    sent = urllib.request.Request(
        f"{server.http_url}/v2/models/{path}", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(sent, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.strip()]


class TestNvidiasClients:
    """The calls of ``end_to_end_grpc_client.py`` and ``inflight_batcher_llm_client.py``."""

    @EACH_MODEL
    @BOTH_WAYS
    def test_a_text(
        self, strict: Any, cpu_texts: dict[str, str], model: str, streaming: bool
    ) -> None:
        arrays = text_arrays(PROMPT, TOKENS, streaming=streaming)
        results = streamed(strict.grpc_url, model, arrays, ["text_output"])
        # A stream leaves the prompt out, whatever exclude_input_in_output says.
        expected = cpu_texts[PROMPT] if streaming else PROMPT + cpu_texts[PROMPT]
        (got,) = texts(results)
        assert got == expected or (model == "ensemble" and streaming and _alike(got, expected))

    @EACH_MODEL
    @BOTH_WAYS
    def test_a_batch(
        self, strict: Any, cpu_texts: dict[str, str], model: str, streaming: bool
    ) -> None:
        few = 12
        rows = [text_arrays(prompt, few, streaming=streaming) for prompt in PROMPTS[:3]]
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        results = streamed(strict.grpc_url, model, arrays, ["text_output", "batch_index"])
        assert {int(r.as_numpy("batch_index")[0][0]) for r in results} == {0, 1, 2}
        for prompt, text in zip(PROMPTS, texts(results, 3), strict=False):
            answer = text if streaming else text.removeprefix(prompt)
            assert answer
            same = cpu_texts[prompt].startswith(answer)
            assert same or (model == "ensemble" and streaming and _alike(answer, cpu_texts[prompt]))

    @EACH_MODEL
    @BOTH_WAYS
    def test_all_metrics_are_in_every_response(
        self, strict: Any, model: str, streaming: bool
    ) -> None:
        asked = {"return_perf_metrics": np.array([[True]])}
        arrays = text_arrays(PROMPT, 4, streaming=streaming, **asked)
        results = streamed(strict.grpc_url, model, arrays, ["text_output", *METRICS])
        for result in results:
            values = {name: result.as_numpy(name)[0][0] for name in METRICS}
        times = [values[name] for name in METRICS if name.endswith("_ns")]
        assert times == sorted(times)
        assert times[0] > 0

    def test_ids_and_a_stop(self, strict: Any, cpu_texts: dict[str, str]) -> None:
        tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        arrays = id_arrays(tokenizer.encode(PROMPT).ids, TOKENS, streaming=True)
        results = streamed(strict.grpc_url, "tensorrt_llm", arrays)
        ids = [int(t) for result in results for t in result.as_numpy("output_ids")[0][0]]
        assert tokenizer.decode(ids) == cpu_texts[PROMPT]
        arrays = id_arrays(tokenizer.encode(PROMPT).ids, LONG, streaming=True)
        stopped = stopped_after(strict.grpc_url, arrays, 0.02)
        lengths = [r.as_numpy("sequence_length") for r in stopped]
        # The answer to the stop itself has no output.
        assert sum(length is None for length in lengths) == 1
        assert 0 < sum(int(length[0][0]) for length in lengths if length is not None) < LONG

    def test_plain_infer_on_a_model_that_answers_once(
        self, strict_once: Any, cpu_texts: dict[str, str]
    ) -> None:
        arrays = text_arrays(PROMPT, TOKENS, streaming=False)
        arrays["end_id"] = np.array([[-1]], np.int32)
        with grpcclient.InferenceServerClient(strict_once.grpc_url) as client:
            for model in TEXT_MODELS:
                result = client.infer(
                    model,
                    [tensor(*item) for item in arrays.items()],
                    outputs=requested(["text_output"]),
                )
                got = result.as_numpy("text_output")[0].decode()
                assert got.removeprefix(PROMPT) == cpu_texts[PROMPT]


class TestMended:
    """What the product did to a user of a GPU before it was held against this front."""

    def test_a_request_that_the_server_itself_makes_wrong_is_its_fault(self, strict: Any) -> None:
        """As tensorrt_llm_bls once asked, for the ids alone: not the user's mistake (exit 2)."""
        message = request(
            "tensorrt_llm", engine_inputs([5, 6, 7], 4, stream=True), outputs=("output_ids",)
        )
        with (
            Client(strict.grpc_url) as client,
            pytest.raises(ServerFailed, match="sequence_length tensor must be present"),
        ):
            list(client.responses(message))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"max_tokens": 0},
            {"max_tokens": -5},
            {"temperature": -1.0},
            {"top_p": 1.5},
            {"top_k": -1},
            {"repetition_penalty": 0.0},
            {"min_tokens": -1},
        ],
    )
    @EACH_MODEL
    def test_a_wrong_value_is_the_clients_fault(
        self, strict: Any, wrong: dict[str, Any], model: str
    ) -> None:
        (name,) = wrong
        with (
            Client(strict.grpc_url, model=model, validate=False) as client,
            pytest.raises(InvalidRequest, match=f"{name} must be ") as caught,
        ):
            client.generate(PROMPT, **{"max_tokens": 4, **wrong})
        # Neither upstream's expression nor its stack.
        assert "Assertion" not in str(caught.value)
        assert "0x7f" not in str(caught.value)

    @EACH_MODEL
    def test_no_answer_is_cut_in_silence(self, strict: Any, model: str) -> None:
        """The C++ backend would cut it, and the finish reason could not say so."""
        with (
            Client(strict.grpc_url, model=model, validate=False) as client,
            pytest.raises(InvalidRequest, match=r"max_tokens 2000 is 20\d\d; the engine was"),
        ):
            client.generate(PROMPT, max_tokens=2000, end_id=-1)

    @BOTH_WAYS
    @EACH_MODEL
    def test_log_probs_are_one_for_each_token_and_their_sum_is_right(
        self, strict: Any, model: str, streaming: bool
    ) -> None:
        asked = {"max_tokens": TOKENS, "end_id": -1, "return_log_probs": True}
        with Client(strict.grpc_url, model=model) as client:
            if streaming:
                with client.stream(PROMPT, **asked) as stream:
                    chunks = list(stream)
                probs = [p for chunk in chunks for p in chunk.output_log_probs or ()]
                total = chunks[-1].cum_log_probs
            else:
                answer = client.generate(PROMPT, **asked)
                probs, total = list(answer.output_log_probs or ()), answer.cum_log_probs
        assert len(probs) == TOKENS
        assert total is not None
        assert math.isclose(sum(probs), total, rel_tol=1e-4)
        assert total < -0.1

    def test_log_probs_are_those_of_transformers(self, strict_odd: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        with Client(strict_odd.grpc_url) as client:
            answer = client.generate(
                PROMPT, max_tokens=8, end_id=-1, return_log_probs=True, stop_words=("\x01",)
            )
        assert answer.output_log_probs
        model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
        ids = tokenizer.encode(PROMPT).ids
        expected = []
        with torch.inference_mode():
            for _ in range(8):
                scores = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(scores.argmax()))
                expected.append(float(scores.max()))
        assert list(answer.output_log_probs) == pytest.approx(expected, abs=5e-3)

    def test_a_bias_of_words_where_the_engine_has_more_tokens(self, strict_odd: Any) -> None:
        with Client(strict_odd.grpc_url) as client:
            plain = client.generate(PROMPT, max_tokens=4, end_id=-1).text
            word = plain.split(" ")[1]
            biased = client.send(_with_bias(f" {word}", -100.0), timeout=60).completion()
        assert not biased.text.startswith(f" {word}")

    def test_a_second_end_id_is_not_part_of_the_answer(self, strict_odd: Any) -> None:
        """The full stop ends the stories of this model, as <|eot_id|> does Llama 3's answers."""
        tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        with Client(strict_odd.grpc_url) as client:
            whole = client.generate(PROMPTS[3], max_tokens=60, end_id=-1)
            answer = client.generate(PROMPTS[3], max_tokens=60)
        first = whole.text.split(".")[0]
        assert answer.text == first
        assert answer.finish_reason == "stop"
        ids = tokenizer.encode(PROMPTS[3] + first).ids
        assert answer.num_output_tokens == len(ids) - len(tokenizer.encode(PROMPTS[3]).ids)

    def test_it_ends_a_text_whose_last_token_it_is(self, strict_odd: Any) -> None:
        tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        with Client(strict_odd.grpc_url) as client:
            first = client.generate(PROMPTS[3], max_tokens=60, end_id=-1).text.split(".")[0]
            ids = tokenizer.encode(PROMPTS[3] + first).ids
            tokens = len(ids) - len(tokenizer.encode(PROMPTS[3]).ids)
            answer = client.generate(PROMPTS[3], max_tokens=tokens + 1)
        assert answer.finish_reason == "stop"

    @EACH_MODEL
    def test_generation_logits_are_refused_with_the_reason(self, strict: Any, model: str) -> None:
        arrays = text_arrays(
            PROMPT, 4, streaming=False, return_generation_logits=np.array([[True]])
        )
        with pytest.raises(
            grpcclient.InferenceServerException, match="never switches its executor's gather_gen"
        ):
            streamed(strict.grpc_url, model, arrays, ["text_output"])


def _alike(got: str, expected: str) -> bool:
    """Equal up to the first character of several tokens, which the ensemble breaks."""
    start = re.split(r"[^\x00-\x7f]", expected)[0]
    return start != expected and got.startswith(start)


def _with_bias(word: str, weight: float) -> Any:
    message = encode_request(
        GenerateRequest(PROMPT, max_tokens=4, end_id=-1),
        model="tensorrt_llm_bls", request_id="biased", stream=True,
    )  # fmt: skip
    add_input(message, "embedding_bias_words", [word])
    add_input(message, "embedding_bias_weights", [weight])
    return message


def test_the_log_has_no_trace_of_python(strict: Any, strict_log: Path) -> None:
    """What the stand-in says are upstream's words, not an exception of its own."""
    assert "Traceback" not in strict_log.read_text()
