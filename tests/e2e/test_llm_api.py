"""The LLM API behind Triton: the real server, our front, and a stand-in of ``tensorrt_llm``.

What the answers must be, transformers says on the source model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.verify.run import run_conformance
from trtllm_client import Client, InvalidRequest

from ..conftest import DEMO_MODEL, Cli
from ..doubles.llm_api.serving import llm_server
from ..metrics import UPSTREAM
from .test_metrics import Page

PROMPT = "Once there was a girl named Zoë"
TOKENS = 40
QUICK = (
    "wire_contract",
    "output_shapes",
    "batch_of_two",
    "stop_words",
    "log_probs",
    "perf_metrics",
    "cancel_frees_slot",
    "stop_request",
    "bad_inputs",
)
"""Checks that take little; make proofs runs them all."""
GENEROUS_S = 60


@pytest.fixture(scope="module")
def repository(cli: Cli) -> Path:
    done = cli.run(
        "configs/demo-float16.yaml", "--json", "--until", "repository",
        "--set", "compile.target=llmapi", "--set", "name=llmapi", "--set", "evaluate=null",
    )  # fmt: skip
    return Path(json.loads(done.stdout)["deployed"]["repository"])


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with llm_server(repository, tmp_path_factory.mktemp("llm_api")) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> tuple[list[int], list[float], str]:
    """Greedy tokens of the source model, their log-probabilities, and the text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, torch_dtype=torch.float16).float()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        whole = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=2)
        scores = torch.log_softmax(model(whole).logits[0, :-1].float(), -1)
    new = whole[0, ids.shape[1] :].tolist()
    places = range(ids.shape[1] - 1, whole.shape[1] - 1)
    log_probs = [float(scores[place, token]) for place, token in zip(places, new, strict=True)]
    return new, log_probs, tokenizer.decode(new, skip_special_tokens=True)


def test_streams_are_the_differences_of_growing_answers(
    server: Any, reference: tuple[list[int], list[float], str]
) -> None:
    _, _, text = reference
    with Client(server.grpc_url) as client:
        assert client.generate(PROMPT, max_tokens=TOKENS).text == text
        with client.stream(PROMPT, max_tokens=TOKENS) as stream:
            pieces = [chunk.text for chunk in stream]
    assert "".join(pieces) == text
    assert len(pieces) > 5


def test_log_probabilities_are_the_models(
    server: Any, reference: tuple[list[int], list[float], str]
) -> None:
    _, log_probs, _ = reference
    with Client(server.grpc_url) as client:
        answer = client.generate(PROMPT, max_tokens=TOKENS, return_log_probs=True)
    assert list(answer.output_log_probs or ()) == pytest.approx(log_probs, abs=1e-4)


def test_stop_word_of_several_tokens_ends_the_text(
    server: Any, reference: tuple[list[int], list[float], str]
) -> None:
    text = reference[2]
    words = text.split()
    stop = f"{words[4]} {words[5]}"
    with Client(server.grpc_url) as client:
        answer = client.generate(PROMPT, max_tokens=TOKENS, stop_words=(stop,))
    assert answer.text == text[: text.index(stop)]


def test_penalties_reach_the_sampler(server: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, torch_dtype=torch.float16).float()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        whole = model.generate(
            ids, max_new_tokens=TOKENS, do_sample=False, repetition_penalty=1.4, pad_token_id=2
        )
    expected = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    with Client(server.grpc_url) as client:
        penalized = client.generate(PROMPT, max_tokens=TOKENS, repetition_penalty=1.4).text
        assert penalized == expected
        assert penalized != client.generate(PROMPT, max_tokens=TOKENS).text
        with pytest.raises(InvalidRequest, match=r"bad_words.*PyTorch backend, has no bad words"):
            client.generate(PROMPT, max_tokens=12, bad_words=("girl",))


def test_metrics_have_upstreams_families_and_the_llms_numbers(server: Any) -> None:
    with Client(server.grpc_url) as client:
        client.generate(PROMPT, max_tokens=8)
    wanted = set(UPSTREAM) - {"nv_llm_input_token_len", "nv_llm_output_token_len"}
    until = time.monotonic() + GENEROUS_S
    while True:
        page = Page(server)
        gpu = page._values.get(("nv_trt_llm_runtime_memory_metrics", "gpu"), 0.0)
        if gpu or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert wanted <= set(page.labels)
    assert gpu == 2**30


def conformance(server: Any, *only: str) -> list[str]:
    report = run_conformance(server.grpc_url, only=only, metrics=server.metrics_url)
    assert report.count("passed") > len(only) - 1
    return [f"{r.name}: {r.reason}" for r in report.results if r.status == "failed"]


def test_quick_checks_pass(server: Any) -> None:
    assert conformance(server, *QUICK) == []


@pytest.mark.proof
@pytest.mark.slow
def test_every_check_passes(server: Any) -> None:
    assert conformance(server) == []
