"""The log-probabilities of a prompt, served by ``tensorrt_llm``, against Hugging Face's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import DEMO_MODEL
from tests.integration.engine_front_support import BUILD, front, write_engine
from tests.unit.model_repo.fake_triton import Request, install, model_args

install()

import model_repo.tensorrt_llm.model as front_model  # noqa: E402 - needs install()
from model_repo.tensorrt_llm.model import TritonPythonModel  # noqa: E402
from pipeline.triton.contract import MODELS, scoring_prompts  # noqa: E402

front_model.end_with_parent = lambda: None  # it would end the tests' own process

OUTPUTS = [tensor.name for tensor in scoring_prompts(MODELS["tensorrt_llm"]).outputs]
SERVED = {
    "gpt_model_path": "tensorrt_llm/1/engine",
    "exclude_input_in_output": "true",
    "enable_kv_cache_reuse": "false",
    "cancellation_check_period_ms": "5",
}
CLOSE = 5e-4
LONG = int(BUILD["max_input_len"])  # more than a step's 256 tokens, so it is cut


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    engine = root / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    write_engine(DEMO_MODEL, engine)
    return root


@contextmanager
def serving(repository: Path, **parameters: str) -> Iterator[TritonPythonModel]:
    interval = sys.getswitchinterval()
    made = TritonPythonModel()
    made.initialize(model_args(repository, {**SERVED, **parameters}))
    yield made
    made.finalize()
    sys.setswitchinterval(interval)


@pytest.fixture(scope="module")
def model(repository: Path) -> Iterator[TritonPythonModel]:
    with serving(repository) as made:
        yield made


@pytest.fixture(scope="module")
def source() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)


def expected(source: Any, ids: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        scores = torch.log_softmax(source(torch.tensor([list(ids)])).logits[0], -1)
    return np.array([scores[place, id_] for place, id_ in enumerate(ids[1:])], np.float32)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 500, length).tolist()


def request(
    ids: Sequence[int] | Sequence[Sequence[int]], tokens: int = 1, **inputs: Any
) -> Request:
    rows = [ids] if isinstance(ids[0], int) else ids
    longest = max(map(len, rows))
    given = {"return_prompt_log_probs": True, **inputs}
    return Request(
        {
            "input_ids": np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int32),
            "input_lengths": np.array([[len(row)] for row in rows], np.int32),
            "request_output_len": np.full((len(rows), 1), tokens, np.int32),
            **{name: np.full((len(rows), 1), value) for name, value in given.items()},
        },
        OUTPUTS,
    )


def scores(asked: Request) -> np.ndarray:
    first, *others = asked.sender.outputs(60)
    assert not any("prompt_log_probs" in later for later in others)
    found = first["prompt_log_probs"]
    assert (found.dtype, found.ndim, found.shape[0]) == (np.float32, 2, 1)
    return found[0]


@pytest.mark.parametrize("length", [2, 33, 256, 257, LONG])
def test_they_are_those_of_hugging_face(model: TritonPythonModel, source: Any, length: int) -> None:
    ids = prompt(length)
    asked = request(ids)
    model.execute([asked])
    np.testing.assert_allclose(scores(asked), expected(source, ids), atol=CLOSE)


def test_a_prompt_of_one_token_has_none(model: TritonPythonModel) -> None:
    asked = request([7])
    model.execute([asked])
    assert scores(asked).shape == (0,)


def test_the_same_prompt_again_and_one_that_begins_alike(
    model: TritonPythonModel, source: Any
) -> None:
    one, other = prompt(120), [*prompt(120)[:100], *prompt(30, seed=1)]
    for ids in (one, one, other):
        asked = request(ids)
        model.execute([asked])
        np.testing.assert_allclose(scores(asked), expected(source, ids), atol=CLOSE)


def test_many_at_once_beside_requests_that_generate(model: TritonPythonModel, source: Any) -> None:
    """Steps hold parts of several prompts and tokens of texts; none gets another's numbers."""
    prompts = [prompt(length, seed=length) for length in (5, 40, 64, 130, 300, LONG)]
    alone = request(prompt(20), 12, return_prompt_log_probs=False, return_log_probs=True)
    model.execute([alone])
    beside = request(prompt(20), 12, return_prompt_log_probs=False, return_log_probs=True)
    asked = [request(ids, 3, return_log_probs=True) for ids in prompts]
    model.execute([beside, *asked])
    for ids, one in zip(prompts, asked, strict=True):
        np.testing.assert_allclose(scores(one), expected(source, ids), atol=CLOSE)
        (outputs,) = one.sender.outputs()
        whole = [*ids, *outputs["output_ids"].reshape(-1).tolist()]
        assert len(whole) == len(ids) + 3
        # What is generated keeps its own.
        generated = outputs["output_log_probs"].reshape(-1)
        np.testing.assert_allclose(generated, expected(source, whole)[-3:], atol=CLOSE)
    (plain,), (mixed,) = alone.sender.outputs(), beside.sender.outputs()
    assert "prompt_log_probs" not in mixed
    assert mixed["output_ids"].tolist() == plain["output_ids"].tolist()
    np.testing.assert_allclose(mixed["output_log_probs"], plain["output_log_probs"], atol=CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_beside_anything(model: TritonPythonModel, source: Any, seed: int) -> None:
    """The engine gives a scored prompt another one's logits, were it started beside a text."""
    random = np.random.default_rng(seed)
    asked = []
    for _ in range(4):
        some = []
        for _ in range(6):
            ids = prompt(int(random.integers(2, LONG)), seed=int(random.integers(1000)))
            tokens, scored = int(random.choice([1, 1, 2, 20])), bool(random.random() < 0.6)
            one = request(
                ids,
                tokens,
                return_prompt_log_probs=scored,
                return_log_probs=True,
                streaming=bool(random.random() < 0.3),
            )
            some.append((ids, tokens, scored, one))
        model.execute([one for *_, one in some])
        asked += some
        time.sleep(float(random.random()) * 0.05)
    assert {scored for _, _, scored, _ in asked} == {True, False}
    for ids, tokens, scored, one in asked:
        pieces = one.sender.outputs(60)
        made = [token for piece in pieces for token in piece["output_ids"].reshape(-1).tolist()]
        assert len(made) == tokens
        whole = expected(source, [*ids, *made])
        if scored:
            np.testing.assert_allclose(scores(one), whole[:-tokens], atol=CLOSE)
        found = pieces[-1]["output_log_probs"].reshape(-1)
        np.testing.assert_allclose(found, whole[-tokens:], atol=CLOSE)


def test_each_row_of_a_batch_has_its_own(model: TritonPythonModel, source: Any) -> None:
    rows = [prompt(9), prompt(50, seed=1), prompt(4, seed=2)]
    asked = request(rows)
    model.execute([asked])
    found = {one["batch_index"].item(): one for one in asked.sender.outputs()}
    for index, ids in enumerate(rows):
        np.testing.assert_allclose(
            found[index]["prompt_log_probs"][0], expected(source, ids), atol=CLOSE
        )


def test_how_tokens_are_chosen_does_not_change_them(model: TritonPythonModel, source: Any) -> None:
    ids = prompt(60)
    asked = request(
        ids,
        runtime_top_k=np.int32(5),
        temperature=np.float32(0.3),
        repetition_penalty=np.float32(1.7),
    )
    model.execute([asked])
    np.testing.assert_allclose(scores(asked), expected(source, ids), atol=CLOSE)


def test_a_stream_has_them_once_with_its_first_tokens(
    model: TritonPythonModel, source: Any
) -> None:
    ids = prompt(70)
    asked, plain = request(ids, 20, streaming=True), request(ids, 20, return_prompt_log_probs=False)
    model.execute([asked])
    model.execute([plain])
    np.testing.assert_allclose(scores(asked), expected(source, ids), atol=CLOSE)
    pieces = asked.sender.outputs()
    assert len(pieces) > 1
    streamed = [token for one in pieces for token in one["output_ids"].reshape(-1).tolist()]
    assert streamed == plain.sender.outputs()[0]["output_ids"].reshape(-1).tolist()


def test_the_prompt_may_come_back_as_well_and_an_end_id_may_end_it(
    model: TritonPythonModel, source: Any
) -> None:
    ids = prompt(12)
    first = request(ids)
    model.execute([first])
    token = first.sender.outputs()[0]["output_ids"].item()
    asked = request(ids, 4, exclude_input_in_output=False, end_id=np.int32(token))
    model.execute([asked])
    np.testing.assert_allclose(scores(asked), expected(source, ids), atol=CLOSE)
    assert asked.sender.outputs()[0]["output_ids"].reshape(-1).tolist() == ids


def test_a_cancelled_request_ends_and_the_next_is_right(
    model: TritonPythonModel, source: Any
) -> None:
    ids = prompt(LONG)
    left, other = request(ids, 100), request(prompt(200, seed=4))
    left.sender.cancelled = True
    model.execute([left, other])
    assert left.sender.done.wait(60)
    np.testing.assert_allclose(scores(other), expected(source, prompt(200, seed=4)), atol=CLOSE)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (
            {"enable_kv_cache_reuse": "true"},
            "serve the repository with serve.enable_kv_cache_reuse",
        ),
        ({"batch_scheduler_policy": "max_utilization"}, "serve.batch_scheduler_policy: guaranteed"),
    ],
)
def test_a_repository_that_cannot_tell_refuses(
    repository: Path, parameters: dict[str, str], reason: str
) -> None:
    with serving(repository, **parameters) as made:
        refused, plain = request(prompt(5)), request(prompt(5), return_prompt_log_probs=False)
        made.execute([refused, plain])
        assert reason in refused.sender.failure()
        assert plain.sender.outputs()


def test_what_the_cache_holds_is_missed_and_seen(repository: Path) -> None:
    """Why reuse is refused: of the same prompt again the engine leaves values out."""
    ids = prompt(100)
    engine = repository / "tensorrt_llm" / "1" / "engine"
    with front(engine, enable_prefix_caching=True) as made:
        _, first = made.submit(ids, 1, prompt_log_probs=True)
        first.result()
        assert len(first.prompt_log_probs) == 99
        _, again = made.submit(ids, 1, prompt_log_probs=True)
        # All but the last of 100 tokens are in the cache, so the new one's is all there is.
        assert "gave 1 log-probabilities for 101 tokens" in again.failure()
        made.idle()
