"""The gateway on a real server, beside what OpenAI's client asks (test_gateway_openai.py).

Scored prompts are held against transformers, as lm-eval's ``local-completions`` reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
import transformers
from prometheus_client.parser import text_string_to_metric_families

from pipeline.gateway.checked import CheckedEngine
from pipeline.gateway.desk import Options
from pipeline.gateway.model import open_model
from pipeline.gateway.opening import Servers, open_gateway
from pipeline.gateway.running import RunningGateway, listen
from pipeline.gateway.served import ServedEngine
from pipeline.store.artifact import MANIFEST

from ..conftest import DEMO_MODEL
from ..processes import started
from .conftest import LONGEST

PATIENCE_S = 60
TEXT = "Once there was a gentle boy named Jack, and he lived by the sea. His favourite drawing was"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def gateway(scored: Any) -> Iterator[RunningGateway]:
    """A gateway in this process, in front of a server that scores prompts."""
    model = open_model(DEMO_MODEL, context_length=LONGEST)
    opened = listen("127.0.0.1", 0, "--port")
    with open_gateway(
        Servers.at([scored.grpc_url]), model, Options(), opened, drain_s=0, say=print
    ) as running:
        until(lambda: httpx2.get(f"{running.url}/health/ready").status_code == 200)
        yield running


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.01)


def test_prompts_are_scored_as_lm_eval_asks_for_it(gateway: RunningGateway) -> None:
    """Two prompts of token ids in one request, with what lm-eval reads of the answer."""
    source = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompts = [tokenizer(TEXT).input_ids, tokenizer(f"{TEXT} the xylophone of Zoë.").input_ids]
    body = {
        "model": DEMO_MODEL.name,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = httpx2.post(f"{gateway.url}/v1/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    for choice, ids in zip(answer.json()["choices"], prompts, strict=True):
        with torch.inference_mode():
            scores = torch.log_softmax(source(torch.tensor([ids])).logits[0], -1)
        theirs = scores[range(len(ids) - 1), ids[1:]].numpy()
        ours = choice["logprobs"]["token_logprobs"]
        assert ours[0] is None
        assert len(ours) == len(ids) + 1
        np.testing.assert_allclose(ours[1:-1], theirs, atol=2e-3)
        assert ours[-1] == pytest.approx(float(scores[-1].max()), abs=2e-3)
        # lm-eval: a token is the greedy one if its number is the largest at its place.
        tops = choice["logprobs"]["top_logprobs"][1:-1]
        greedy = [score == max(top.values()) for score, top in zip(ours[1:-1], tops, strict=True)]
        assert greedy == (scores[:-1].argmax(-1) == torch.tensor(ids[1:])).tolist()
        assert True in greedy
        assert False in greedy


def test_a_prompt_alone_is_scored_without_an_answer(gateway: RunningGateway) -> None:
    body = {"prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 0}
    choice = httpx2.post(f"{gateway.url}/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == TEXT
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"])
    for token, offset in list(
        zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True)
    )[2:]:
        assert TEXT.startswith(token, offset)


def counted_at(server: Any, name: str, kind: str = "") -> float:
    """What a server has counted, all of it or that with a label."""
    with urllib.request.urlopen(server.metrics_url, timeout=PATIENCE_S) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and (not kind or kind in sample.labels.values())
    )


def test_cached_tokens_are_those_that_the_server_counts(server: Any, repository: Path) -> None:
    counter = "nv_llm_kv_cache_reused_blocks_total"
    before = counted_at(server, counter)
    opened = listen("127.0.0.1", 0, "--port")
    with open_gateway(
        Servers.at([server.grpc_url]),
        open_model(repository),
        Options(),
        opened,
        drain_s=0,
        patience_s=PATIENCE_S,
        say=print,
    ) as running:
        said = []
        body = {"prompt": f"A story of {time.time_ns()}. {TEXT * 2}", "max_tokens": 2}
        for more in ({}, {}, {"stream": True, "stream_options": {"include_usage": True}}):
            answer = httpx2.post(
                f"{running.url}/v1/completions", json=body | more, timeout=PATIENCE_S
            )
            last = answer.text if not more else answer.text.split("data: ")[-2]
            used = json.loads(last)["usage"]
            said.append(used["prompt_tokens_details"]["cached_tokens"])
        assert 0 == said[0] < said[1] == said[2] < used["prompt_tokens"]
    # It publishes them now and then, in blocks.
    until(lambda: counted_at(server, counter) == before + sum(said) / 32)


def test_a_client_that_goes_frees_its_place_at_the_engine(
    gateway: RunningGateway, scored: Any
) -> None:
    def counted(name: str, kind: str) -> float:
        return counted_at(scored, name, kind)

    def ended() -> tuple[float, float]:
        kinds = ("cancelled", "finished")
        cancelled, finished = (counted("nv_llm_requests_total", kind) for kind in kinds)
        return cancelled, finished

    body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    # On a busy machine all may be generated before it is seen that the client has gone.
    for _ in range(20):
        before = ended()
        with httpx2.stream("POST", f"{gateway.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert response.status_code == 200
        until(lambda: sum(ended()) == sum(before) + 1)  # noqa: B023 - used at once
        until(lambda: counted("nv_trt_llm_request_metrics", "active") == 0)
        if ended()[0] > before[0]:
            return
    raise AssertionError("each request came to its end: the engine was never told")


def test_another_tokenizer_than_the_server_s_is_refused(scored: Any, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copytree(DEMO_MODEL, folder, dirs_exist_ok=True)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    a, b = "a", "b"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.chmod(0o644)
    path.write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "gateway", "--url", scored.grpc_url]
    command += ["--port", "0", "--tokenizer", str(folder), "--context-length", "64"]
    with started(command, text=True, stderr=-1) as process:
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "the gateway's tokenizer is not the server's" in said
    assert "--tokenizer" in said


def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    model = open_model(DEMO_MODEL, context_length=LONGEST)
    with listen("127.0.0.1", 0, "--port") as nobody:
        url = f"127.0.0.1:{nobody.getsockname()[1]}"
    lines: list[str] = []
    opened = listen("127.0.0.1", 0, "--port")
    with open_gateway(
        Servers.at([url]), model, Options(), opened, drain_s=0, say=lines.append
    ) as running:
        until(lambda: bool(lines))
        assert f"waiting for grpc://{url}" in lines[0]
        got = httpx2.post(f"{running.url}/v1/completions", json={"prompt": "x"})
        assert got.status_code == 503
        assert httpx2.get(f"{running.url}/health/ready").status_code == 503


class Relay:
    """One address, behind which now one server is and now another.

    Attributes:
        to: Port of the server.
        port: Where it listens.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self._taken: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._hand_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.breaks()

    def breaks(self) -> None:
        """Ends all connections, as a server does that is lost."""
        for writer in self._taken:
            writer.transport.abort()
        self._taken.clear()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.to)
        self._taken += (writer, back)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))


def test_another_model_at_the_same_address_is_noticed(
    server: Any, scored: Any, repository: Path
) -> None:
    """The tokenizers are the same, so nothing but what the servers say tells them apart."""
    model = open_model(DEMO_MODEL, context_length=LONGEST)
    lines: list[str] = []

    def port(url: str) -> int:
        return int(url.rpartition(":")[2])

    async def run() -> None:
        async with Relay(port(server.grpc_url)) as relay:
            checked = CheckedEngine(ServedEngine(f"127.0.0.1:{relay.port}"), model, lines.append)

            async def becomes_ready() -> str | None:
                end = time.monotonic() + PATIENCE_S
                while not await checked.ready():
                    assert time.monotonic() < end, "it did not become ready"
                    await asyncio.sleep(0.01)
                return checked.build

            first = await becomes_ready()
            relay.breaks()
            assert await becomes_ready() == first
            relay.to = port(scored.grpc_url)
            relay.breaks()
            second = await becomes_ready()
            await checked.close()
        manifest = json.loads((repository / MANIFEST).read_text())
        assert first == manifest["chain"]["quantize"]["digest"]
        assert second is not None
        assert second != first

    asyncio.run(run())
    assert lines == []
