"""Log-likelihoods of a real server over gRPC, against lm-eval's records and Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.errors import UnsupportedError
from pipeline.evaluation.tasks.answering import choices
from pipeline.evaluation.tasks.encoding import Pair, encode_pair
from pipeline.evaluation.tasks.reading import read_questions
from pipeline.harness.prompts import Prompts
from pipeline.recipe.evaluate import TaskSection
from pipeline.source.tokens import load_tokenizer
from trtllm_client import Client, ClientError, InvalidRequest, add_input, new_message

from ..conftest import DEMO_MODEL, PROJECT
from .conftest import LONGEST

HELLASWAG = PROJECT.parent / "shared" / "data" / "hellaswag_val_1000.jsonl"
RECORDED = PROJECT / "tests" / "data" / "lm-eval" / "tiny_llama.json"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def client(scored: Any) -> Iterator[Client]:
    with Client(scored.grpc_url) as made:
        yield made


@pytest.fixture(scope="module")
def source() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)


def scores(source: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(source(torch.tensor([ids])).logits[0], -1)


def test_hellaswag_over_grpc_is_answered_as_lm_eval_does(client: Client) -> None:
    if not HELLASWAG.is_file():
        pytest.skip("../shared/data is not here")
    rows = 200
    expected = json.loads(RECORDED.read_text("utf-8"))["hellaswag"]["rows"][:rows]
    questions = read_questions(
        TaskSection(name="swag", file=str(HELLASWAG), layout="hellaswag", rows=rows)
    )
    tokenizer = load_tokenizer(DEMO_MODEL)
    pairs = [
        encode_pair(tokenizer, question.context, f" {choice}", LONGEST)
        for question in questions
        for choice in question.choices
    ]
    assert max(len(pair.ids) for pair in pairs) < LONGEST - 1, "a text would be cut"
    found = [nats for nats, _ in Prompts(client).likelihoods(pairs, greedy=False)]
    theirs = [value for row in expected for value in row["log_likelihoods"]]
    np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=0.01)
    assert choices(questions, found, "hellaswag") == [row["choice"] for row in expected]


def test_a_continuation_is_greedy_if_each_token_is_the_likeliest(
    client: Client, source: Any
) -> None:
    tokenizer = load_tokenizer(DEMO_MODEL)
    context = tuple(tokenizer.encode("Once there was a gentle boy named Jack, and he"))
    grown = context
    for _ in range(12):
        grown = (*grown, int(scores(source, grown)[-1].argmax()))
    best = grown[len(context) :]
    wrong = (best[0] + 1, *best[1:])
    later = (*best[:7], best[7] + 1)
    after = [best, best[:1], wrong, later, best[:7]]
    pairs = [Pair((*context, *ids)[:-1], ids) for ids in after]
    found = Prompts(client).likelihoods(pairs)
    assert [greedy for _, greedy in found] == [True, True, False, False, True]
    for pair, (nats, _) in zip(pairs, found, strict=True):
        all_ = (*pair.ids, pair.continuation[-1])
        rows = scores(source, all_)
        begin = len(context)
        want = sum(rows[place - 1, all_[place]].item() for place in range(begin, len(all_)))
        assert nats == pytest.approx(want, abs=2e-3)


def test_one_token_and_as_many_as_fit(client: Client, source: Any) -> None:
    assert Prompts(client).log_probs([7]) == ()
    ids = tuple(np.random.default_rng(3).integers(3, 1000, LONGEST - 1).tolist())
    rows = scores(source, ids)
    want = [rows[place, id_].item() for place, id_ in enumerate(ids[1:])]
    np.testing.assert_allclose(Prompts(client).log_probs(ids), want, atol=2e-3)
    with pytest.raises(ClientError, match="the prompt has 1024 tokens"):
        Prompts(client).log_probs([*ids, 5])


def test_a_server_that_reuses_blocks_says_which_key_to_change(server: Any) -> None:
    with (
        Client(server.grpc_url) as client,
        pytest.raises(UnsupportedError, match="does not tell how likely given tokens") as caught,
    ):
        Prompts(client).likelihoods([Pair((5, 6, 7), (7, 8))])
    assert "serve.enable_kv_cache_reuse: false" in (caught.value.why or "")
    assert "--model checkpoint" in (caught.value.fix or "")


def test_a_server_that_does_not_declare_it_is_refused_before_anything(strict: Any) -> None:
    """The stand-in of NVIDIA's backend has upstream's tensors and no more."""
    with Client(strict.grpc_url) as client:
        with pytest.raises(UnsupportedError, match="does not tell how likely") as caught:
            Prompts(client).likelihoods([Pair((5, 6, 7), (7, 8))])
        assert "Its tensorrt_llm has no prompt_log_probs" in (caught.value.why or "")
        message = new_message("tensorrt_llm")
        for name in ("input_ids", "input_lengths", "request_output_len"):
            add_input(message, name, [1], datatype="INT32")
        add_input(message, "return_prompt_log_probs", [True], datatype="BOOL")
        with pytest.raises(InvalidRequest, match="return_prompt_log_probs"):
            list(client.responses(message))
