"""The whole conformance run on tiny random models, on the real tritonserver.

The engine's numbers are held against transformers elsewhere; here a right server must not be called
wrong because of what its model writes, or because little fits into its engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.source.probes import known_probes
from pipeline.triton.server import TritonServer
from pipeline.verify import run_conformance
from tests.integration.random_models import (
    broken_bytes,
    broken_characters,
    build_repository,
    chat,
    chat_model,
    one_token_chat,
    words,
)
from trtllm_client import Client

QUESTIONS = "questions through the server's chat template"
# Checks that may have nothing to look at; all others pass.
UNEXERCISED = {
    "begins_once",
    "border",
    "cancel_frees_slot",
    "end_ids",
    "end_token",
    "stop_request",
    "stop_word_kept",
    "stop_words",
    "unary_call",
    "utf8_across_tokens",
}


CONVERSATION = [
    {"role": "system", "content": "Be naïve 😀"},
    {"role": "user", "content": "The sea?"},
    {"role": "assistant", "content": " Old."},
    {"role": "user", "content": "And the man?"},
]


def continued(source: Path, ids: Sequence[int], count: int) -> list[int]:
    """The greedy continuation of ids by transformers, with the weights as they are served."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source).half().float()
    tokens = torch.tensor([list(ids)])
    with torch.no_grad():
        for _ in range(count):
            following = model(tokens).logits[0, -1].argmax()
            tokens = torch.cat([tokens, following.view(1, 1)], dim=1)
    return tokens[0, len(ids) :].tolist()


def check_chats(url: str, source: Path) -> None:
    """Chats with both text models, by each method, against what transformers makes of it."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    for turns in ([{"role": "user", "content": "Look!"}], CONVERSATION):
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
        answer = continued(source, ids, 8)
        assert tokenizer.eos_token_id not in answer
        expected = tokenizer.decode(answer, skip_special_tokens=True)
        assert expected
        for model in ("tensorrt_llm_bls", "ensemble"):
            with Client(url, model=model) as client:
                whole = client.chat(turns, max_tokens=8)
                with client.stream_chat(turns, max_tokens=8) as stream:
                    pieces = stream.completion()
            assert whole.num_input_tokens == pieces.num_input_tokens == len(ids)
            assert whole.num_output_tokens == pieces.num_output_tokens == 8
            assert whole.text == expected
            # The ensemble decodes each piece by itself, and most characters here are in several.
            assert model == "ensemble" or pieces.text == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "architecture", "max_seq_len", "asked"),
    [
        pytest.param(words, "Mistral", 64, "plain texts", marks=pytest.mark.proof),
        (chat, "Llama", 256, QUESTIONS),
        pytest.param(one_token_chat, "Qwen2", 256, QUESTIONS, marks=pytest.mark.proof),
        (chat_model, "Qwen3", 64, "plain texts: the server's chat template leaves too little room"),
        (broken_bytes, "Llama", 64, "plain texts"),
        pytest.param(broken_characters, "Llama", 36, "plain texts", marks=pytest.mark.proof),
    ],
)
def test_a_right_server_passes_whatever_its_model_writes(
    source: Callable[[str, Path], Path],
    architecture: str,
    max_seq_len: int,
    asked: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "source").mkdir()
    repository = build_repository(source(architecture, tmp_path / "source"), tmp_path, max_seq_len)
    with TritonServer(repository, log_file=tmp_path / "triton.log") as server:
        report = run_conformance(server.grpc_url, probes=known_probes(repository))
        if source is chat_model:
            check_chats(server.grpc_url, tmp_path / "source")
    assert report.tolerance is None
    assert report.prompts.startswith(asked)
    assert {r.name: r.reason for r in report.results if r.status == "failed"} == {}
    skipped = {r.name: r.reason or "" for r in report.results if r.status == "skipped"}
    assert skipped.keys() <= UNEXERCISED
    # The reason is one of this model or engine, not a request that was refused.
    assert not [reason for reason in skipped.values() if "refused" in reason]
