"""llama.cpp's own server under our supervision, asked by our client, against transformers."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
pytest.importorskip("xllamacpp", reason="xllamacpp is in the extra llamacpp")
pytest.importorskip("httpx2", reason="httpx2 is in the extra llamacpp")
from pipeline.engine_client.connect import connect, connect_async
from pipeline.errors import ServerError
from pipeline.progress import Silent
from pipeline.service.activity import ask
from pipeline.source.probes import find_probes
from pipeline.targets.llamacpp.gguf_file import write_gguf
from pipeline.targets.llamacpp.process import Settings
from pipeline.targets.llamacpp.server import LlamaCppServer
from pipeline.targets.llamacpp.source import read_tokens
from pipeline.triton.access import KEY_HEADER
from pipeline.verify import run_conformance
from tests.unit.vllm.support import recipe, write_checkpoint
from trtllm_client import (
    CallRestricted,
    Cancelled,
    ClientError,
    ConnectionFailed,
    InvalidRequest,
)

from ..conftest import DEMO_MODEL

PROMPTS = ("Once there was a", "One rainy day, the hen", "Mia had seven buns.", "In the evening")
TOKENS = 16
KEY = "a-key-that-only-clients-know"
PATIENCE_S = 120.0


def weights() -> dict[str, Any]:
    """The demo model's own, by their names in a checkpoint."""
    source = load_file(DEMO_MODEL / "model.safetensors")
    found = {
        "vocab_embedding.weight": source["model.embed_tokens.weight"],
        "ln_f.weight": source["model.norm.weight"],
        "lm_head.weight": source["lm_head.weight"],
    }
    for layer in range(json.loads((DEMO_MODEL / "config.json").read_text())["num_hidden_layers"]):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        attention = [source[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv"]
        found |= {
            f"{ours}attention.qkv.weight": np.concatenate(attention),
            f"{ours}attention.dense.weight": source[f"{theirs}self_attn.o_proj.weight"],
            f"{ours}mlp.fc.weight": source[f"{theirs}mlp.gate_proj.weight"],
            f"{ours}mlp.gate.weight": source[f"{theirs}mlp.up_proj.weight"],
            f"{ours}mlp.proj.weight": source[f"{theirs}mlp.down_proj.weight"],
            f"{ours}input_layernorm.weight": source[f"{theirs}input_layernorm.weight"],
            f"{ours}post_layernorm.weight": source[f"{theirs}post_attention_layernorm.weight"],
        }
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in float32, as a GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    source = Path(shutil.copytree(DEMO_MODEL, folder / "source"))
    wanted = recipe(source, "float16")
    checkpoint = write_checkpoint(source, wanted, folder / "checkpoint", **weights())
    path = folder / "model.gguf"
    write_gguf(checkpoint, path, "f32", read_tokens(DEMO_MODEL, Silent()), name="demo")
    return path


@pytest.fixture(scope="module")
def settings(file: Path) -> Settings:
    return Settings(
        model=str(file),
        name="demo",
        host="127.0.0.1",
        port=0,
        slots=4,
        context=512,
        batch=512,
        threads=2,
        kv_cache="f32",
        grace_s=PATIENCE_S,
        key=KEY,
    )


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[LlamaCppServer]:
    with LlamaCppServer(settings) as running:
        yield running


def client(server: LlamaCppServer) -> Any:
    return connect(server.url, headers={KEY_HEADER: KEY})


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)


def test_greedy_texts_and_log_probs_are_those_of_transformers(server: LlamaCppServer) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    with client(server) as ours:
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.inference_mode():
                made = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)
                scores = torch.log_softmax(model(made).logits[0].float(), -1)
            begin = ids.shape[1]
            expected = [
                float(scores[place - 1, made[0, place]]) for place in range(begin, made.shape[1])
            ]
            answer = ours.generate(
                prompt, max_tokens=TOKENS, top_k=1, end_id=-1, return_log_probs=True
            )
            assert tokenizer.decode(made[0, begin:]).startswith(answer.text), prompt
            assert answer.num_input_tokens == begin
            if answer.text.isascii():
                # Tokens of half a character have none.
                assert answer.output_log_probs == pytest.approx(expected, abs=1e-3)


def test_32_streams_say_together_what_each_says_alone(server: LlamaCppServer) -> None:
    prompts = [f"{prompt} {number}" for number in range(8) for prompt in PROMPTS]
    fields: dict[str, Any] = {"max_tokens": TOKENS, "top_k": 1, "end_id": -1}
    with client(server) as ours:
        alone = [ours.generate(prompt, **fields) for prompt in prompts]

    async def together() -> list[Any]:
        async with connect_async(server.url, headers={KEY_HEADER: KEY}) as crowd:

            async def one(prompt: str) -> Any:
                return [chunk async for chunk in crowd.stream(prompt, **fields)]

            return await asyncio.gather(*(one(prompt) for prompt in prompts))

    streams = asyncio.run(together())
    assert len(streams) == 32
    for answer, chunks in zip(alone, streams, strict=True):
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert sum(chunk.num_output_tokens for chunk in chunks) == TOKENS
        assert chunks[-1].finish_reason == answer.finish_reason == "length"
    assert len({answer.text for answer in alone}) > 8


def test_a_text_that_is_cut_says_so_and_one_that_stops_too(server: LlamaCppServer) -> None:
    """The server's own word: an answer may be cut by the context long before max_tokens."""
    with client(server) as ours:
        cut = ours.generate(PROMPTS[0], max_tokens=4000, top_k=1, end_id=-1)
        assert cut.finish_reason == "length"
        assert cut.num_input_tokens + cut.num_output_tokens == 512
        stopped = ours.generate(PROMPTS[0], max_tokens=100, top_k=1, stop_words=(" named",))
        assert stopped.finish_reason == "stop"
        assert cut.text.startswith(f"{stopped.text} named")
        with pytest.raises(InvalidRequest, match="exceeds the available context size"):
            ours.generate("word " * 600, max_tokens=4)


def test_closing_a_stream_frees_its_slot(server: LlamaCppServer) -> None:
    def busy() -> float:
        counters = ask(server.metrics_url, server.metrics_headers)
        assert counters
        assert counters.active is not None
        return counters.active

    with client(server) as ours, ThreadPoolExecutor(1) as pool:
        until(lambda: busy() == 0, "nothing runs")
        stream = ours.stream(PROMPTS[0], max_tokens=500, top_k=1, end_id=-1)
        assert next(stream).text
        rest = pool.submit(list, stream)
        stream.cancel()
        with pytest.raises(Cancelled, match="the request was cancelled"):
            rest.result(PATIENCE_S)
        until(lambda: busy() == 0, "the slot is free")


def test_the_key_is_asked_for_and_seen_by_nobody(server: LlamaCppServer) -> None:
    with connect(server.url) as stranger:
        assert server.answers()
        with pytest.raises(CallRestricted, match="only those who send its key"):
            stranger.model_metadata()
    process = Path(f"/proc/{server.pid}")
    for name in ("cmdline", "environ"):
        assert KEY.encode() not in (process / name).read_bytes()
    # Nor does the page of another site reach it with a user's browser.
    address = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
    address.request("GET", "/health", headers={"Origin": "http://elsewhere.example"})
    assert not address.getresponse().headers.get("Access-Control-Allow-Origin")
    address.close()


def test_the_checks_of_verify_pass_and_those_of_tensors_say_why_not(
    server: LlamaCppServer,
) -> None:
    report = run_conformance(
        server.url,
        headers={KEY_HEADER: KEY},
        only=(
            *("readiness", "wire_contract", "own_tokenizer", "begins_once", "max_tokens"),
            *("stop_words", "log_probs", "bad_inputs", "prompt_limit", "utf8_across_tokens"),
        ),
        probes=find_probes(DEMO_MODEL),
    )
    found = {result.name: result for result in report.results}
    tensors = found.pop("wire_contract")
    assert (tensors.status, "has OpenAI's API" in (tensors.reason or "")) == ("skipped", True)
    assert {result.status for result in found.values()} == {"passed"}, report.results
    assert found["own_tokenizer"].details["compared"] > 50
    assert report.server.startswith("llamacpp ")


def test_a_server_that_is_killed_is_told_and_started_again(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    with (
        LlamaCppServer(replace(settings, grace_s=1.0), log_file=log) as server,
        client(server) as ours,
    ):
        before = ours.generate(PROMPTS[0], max_tokens=4, top_k=1).text
        first, news = server.pid, []
        assert first is not None
        stream = ours.stream(PROMPTS[0], max_tokens=500, top_k=1, end_id=-1)
        assert next(stream).text
        os.kill(first, signal.SIGSTOP)  # so that the stream cannot end before
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ConnectionFailed, match="the connection broke"):
            list(stream)

        def back() -> bool:
            news.extend(server.news())
            return any("restarts so far: 1" in line for line in news)

        until(back, "the server is back")
        assert "llama.cpp's server ended by itself with signal 9" in news[0]
        assert server.pid != first
        assert ours.generate(PROMPTS[0], max_tokens=4, top_k=1).text == before
    said = log.read_text(errors="replace")
    assert not any(prompt in said for prompt in PROMPTS)


def test_a_stop_finishes_what_runs_and_lets_nobody_in(settings: Settings) -> None:
    with (
        LlamaCppServer(settings) as server,
        client(server) as ours,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = ours.stream(PROMPTS[0], max_tokens=400, top_k=1, end_id=-1)
        chunks = [next(stream)]
        stopped = pool.submit(server.stop)
        until(lambda: not server.responds(), "the port is closed")
        with pytest.raises(ClientError, match="no server answers"):
            ours.generate("Late", max_tokens=1)
        chunks += stream
        assert sum(chunk.num_output_tokens for chunk in chunks) == 400
        assert chunks[-1].finish_reason == "length"
        stopped.result(PATIENCE_S)
        assert server.pid is None


def test_a_file_that_is_none_is_refused_with_llama_cpps_words(
    settings: Settings, tmp_path: Path
) -> None:
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUX" + b"\0" * 64)
    server = LlamaCppServer(replace(settings, model=str(broken)))
    with pytest.raises(ServerError, match=r"did not start\. .*(?i:magic)"):
        server.start()


def test_what_a_program_asks_as_openai_does(server: LlamaCppServer) -> None:
    """Without our client, as ``curl`` does: the greeting's own lines."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
    body = json.dumps({"prompt": PROMPTS[0], "max_tokens": 5, "temperature": 0})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", body, headers)
    answer = json.load(connection.getresponse())
    connection.close()
    with client(server) as ours:
        assert answer["choices"][0]["text"] == ours.generate(PROMPTS[0], max_tokens=5).text
