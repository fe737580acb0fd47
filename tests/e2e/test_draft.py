"""A draft model's guesses on the strict stand-in: the engine's own greedy text in fewer requests.

The stand-in accepts guesses by upstream's rule: those that the engine chooses itself, up to the
first other one, and one token more. What a text must be is what the same server gives without
guesses.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from pipeline.errors import RepositoryError
from tests.doubles.tensorrtllm_backend.serving import strict_server
from trtllm_client import Client

from ..conftest import DEMO_MODEL
from .conftest import Built, Pair
from .nvidia_calls import id_arrays, streamed, text_arrays, texts

pytestmark = pytest.mark.strict

PROMPTS = (
    "Once upon a time",
    "The old man looked at the sea and",
    "One day, a small dog",
)
TOKENS = 40
GUESSES = 4
CACHE = "serve.max_tokens_in_paged_kv_cache=8192"
TOTALS = ("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens")
BLS = "tensorrt_llm_bls"
BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
BOTH_DRAFTS = pytest.mark.parametrize("draft", ["same", "small"])


def smaller_model(folder: Path) -> Path:
    """The demo model without its last layers: the same tokenizer, other texts."""
    shutil.copytree(DEMO_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    kept = {
        name: value
        for name, value in weights.items()
        if ".layers." not in name or ".layers.0." in name
    }
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def drafts(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """The draft models' own builds: the model itself, and a smaller one."""
    small = smaller_model(tmp_path_factory.mktemp("small") / "model")
    return {
        "same": pair("demo-float16", name="draft-same", gpu=(CACHE,)),
        "small": pair("demo-float16", f"model.source={small}", name="draft-small", gpu=(CACHE,)),
    }


@pytest.fixture(scope="module")
def servers(
    pair: Pair, drafts: dict[str, Built], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A server for each draft."""
    folder = tmp_path_factory.mktemp("draft-log")
    built = {
        name: pair(
            "demo-float16",
            name=f"target-{name}",
            gpu=(
                CACHE,
                f"compile.tensorrt.draft={{max_draft_len: {GUESSES}}}",
                f"serve.draft_repository={draft.gpu}",
            ),
        )
        for name, draft in drafts.items()
    }
    with (
        strict_server(
            built["same"].gpu, built["same"].engine, folder / "same.log",
            draft=drafts["same"].engine,
        ) as same,
        strict_server(
            built["small"].gpu, built["small"].engine, folder / "small.log",
            draft=drafts["small"].engine,
        ) as small,
    ):  # fmt: skip
        yield {"same": same, "small": small}


def ask(
    server: Any, prompt: str, length: int = TOKENS, *, streaming: bool = False, **more: Any
) -> list[Any]:
    """The responses to a greedy request as NVIDIA's client makes it."""
    arrays = text_arrays(prompt, length, streaming=streaming)
    arrays["exclude_input_in_output"] = np.array([[True]])
    return streamed(server.grpc_url, BLS, arrays | more)


def guessing(count: int = GUESSES) -> dict[str, Any]:
    return {
        "num_draft_tokens": np.array([[count]], np.int32),
        "return_perf_metrics": np.array([[True]]),
    }


def totals(results: list[Any]) -> tuple[float, int, int]:
    """Acceptance rate, accepted and guessed tokens of the last response."""
    rate, accepted, guessed = (results[-1].as_numpy(name).item() for name in TOTALS)
    return float(rate), int(accepted), int(guessed)


@BOTH_DRAFTS
@BOTH_WAYS
@pytest.mark.parametrize("prompt", PROMPTS)
def test_guesses_change_no_text(
    servers: dict[str, Any], draft: str, streaming: bool, prompt: str
) -> None:
    server = servers[draft]
    plain = texts(ask(server, prompt))
    results = ask(server, prompt, streaming=streaming, **guessing())
    assert texts(results) == plain
    rate, accepted, guessed = totals(results)
    assert rate == pytest.approx(accepted / guessed)
    if draft == "same":
        # Rounds of four guesses and one token more, and of the last one of none.
        assert accepted == guessed == TOKENS * GUESSES // (GUESSES + 1)
    else:
        assert 0 < accepted < guessed


@BOTH_DRAFTS
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_every_length(servers: dict[str, Any], draft: str, count: int, length: int) -> None:
    server = servers[draft]
    plain = texts(ask(server, PROMPTS[0], length))
    assert texts(ask(server, PROMPTS[0], length, **guessing(count))) == plain


@BOTH_DRAFTS
@BOTH_WAYS
def test_a_stop_word_ends_the_text(servers: dict[str, Any], draft: str, streaming: bool) -> None:
    server = servers[draft]
    (whole,) = texts(ask(server, PROMPTS[0]))
    for word in (whole[20:25], whole[30:33], "."):
        stop = {"stop_words": np.array([[word.encode()]], object)}
        (text,) = texts(ask(server, PROMPTS[0], streaming=streaming, **stop, **guessing()))
        assert text == whole[: whole.index(word)]


@BOTH_DRAFTS
def test_an_end_id_ends_the_text(servers: dict[str, Any], draft: str) -> None:
    server = servers[draft]
    (whole,) = texts(ask(server, PROMPTS[1], 100))
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    said = tokenizer.encode(whole, add_special_tokens=False).ids
    for token in (said[10], said[31]):
        end = {"end_id": np.array([[token]], np.int32)}
        (plain,) = texts(ask(server, PROMPTS[1], 100, **end))
        assert len(plain) < len(whole)
        assert texts(ask(server, PROMPTS[1], 100, **end, **guessing())) == [plain]


@BOTH_DRAFTS
def test_penalties_and_banned_words_hold(servers: dict[str, Any], draft: str) -> None:
    server = servers[draft]
    more = {
        "repetition_penalty": np.array([[1.3]], np.float32),
        "frequency_penalty": np.array([[0.4]], np.float32),
        "bad_words": np.array([[b" there"]], object),
        "min_tokens": np.array([[30]], np.int32),
    }
    plain = texts(ask(server, PROMPTS[0], **more))
    assert plain != texts(ask(server, PROMPTS[0]))
    assert texts(ask(server, PROMPTS[0], **more, **guessing())) == plain


def test_a_batch(servers: dict[str, Any]) -> None:
    server = servers["small"]
    arrays = {
        "text_input": np.array([[p] for p in PROMPTS], object),
        "max_tokens": np.full((3, 1), TOKENS, np.int32),
        "num_draft_tokens": np.array([[2], [0], [4]], np.int32),
    }
    got = texts(streamed(server.grpc_url, BLS, arrays), 3)
    assert got == [texts(ask(server, prompt))[0] for prompt in PROMPTS]


def test_a_client_that_goes_away_ends_the_rounds(servers: dict[str, Any]) -> None:
    server = servers["small"]
    with Client(server.grpc_url) as client:
        running = threading.Event()
        with client.stream(PROMPTS[0], max_tokens=450, end_id=-1, num_draft_tokens=1) as stream:
            for _ in stream:
                running.set()
                break
        assert running.is_set()
        # The rounds that were left would take seconds; the statistics count the calls.
        before = executions(server)
        time.sleep(1.0)
        later = executions(server)
        time.sleep(0.5)
    assert executions(server) == later
    assert later - before < 30


def executions(server: Any) -> int:
    """Requests that the draft has answered."""
    import tritonclient.grpc as grpcclient

    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("tensorrt_llm_draft", as_json=True)
    return int(statistics["model_stats"][0].get("inference_count", 0))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (guessing(5), "num_draft_tokens must be between 0 and 4, for which the engine was built"),
        (guessing(-1), "num_draft_tokens must be between 0 and 4"),
        (
            guessing() | {"use_draft_logits": np.array([[True]])},
            "use_draft_logits is not supported: Triton's backend returns no generation logits",
        ),
        (
            guessing() | {"top_k": np.array([[5]], np.int32)},
            "top_k cannot be combined with num_draft_tokens",
        ),
        (
            guessing() | {"return_log_probs": np.array([[True]])},
            "return_log_probs cannot be combined with num_draft_tokens",
        ),
    ],
)
def test_what_cannot_be_guessed_for_is_refused(
    servers: dict[str, Any], more: dict[str, Any], text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text):
        ask(servers["same"], PROMPTS[0], **more)


def test_the_engine_takes_no_more_guesses_than_it_was_built_for(servers: dict[str, Any]) -> None:
    """The stand-in's own rule, in the words of ``LlmRequest::validate``."""
    arrays = id_arrays([1, 2, 3], 6, streaming=False)
    arrays["draft_input_ids"] = np.array([[5, 6, 7, 8, 9]], np.int32)
    expected = r"Draft tokens length \(5\) exceeds maximum draft tokens length \(4\)\."
    with pytest.raises(InferenceServerException, match=expected):
        streamed(servers["same"].grpc_url, "tensorrt_llm", arrays)


def test_guesses_end_a_request_after_one_step(servers: dict[str, Any]) -> None:
    """The stand-in's own rule, by hand: of three guesses the second is wrong."""
    url, engine = servers["same"].grpc_url, "tensorrt_llm"

    def ids(**more: Any) -> list[int]:
        results = streamed(url, engine, id_arrays([1, 50, 60], 6, streaming=False, **more))
        return [int(t) for r in results for t in r.as_numpy("output_ids").reshape(-1)]

    plain = ids()[-6:]
    guesses = [plain[0], (plain[1] + 1) % 1024, plain[2]]
    assert ids(draft_input_ids=np.array([guesses], np.int32))[-2:] == plain[:2]
    whole = ids(draft_input_ids=np.array([plain[:3]], np.int32))
    assert whole[-4:] == plain[:4]
    assert len(ids(draft_input_ids=np.array([guesses], np.int32))) == len(whole) - 2


def test_a_draft_with_another_tokenizer_is_refused(pair: Pair, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[500:502]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    draft = pair("demo-float16", f"model.source={model}", name="draft-other", gpu=(CACHE,))
    settings = (
        CACHE,
        "compile.tensorrt.draft={max_draft_len: 4}",
        f"serve.draft_repository={draft.gpu}",
    )
    with pytest.raises(RepositoryError, match="the draft has another tokenizer"):
        pair("demo-float16", name="target-other", gpu=settings)


def test_a_repository_with_a_damaged_draft_is_refused(
    drafts: dict[str, Built], pair: Pair, tmp_path: Path
) -> None:
    copy = tmp_path / "draft"
    shutil.copytree(drafts["same"].gpu, copy)
    engine = copy / "tensorrt_llm/1/engine/rank0.engine"
    engine.chmod(0o644)
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    settings = (
        CACHE,
        "compile.tensorrt.draft={max_draft_len: 4}",
        f"serve.draft_repository={copy}",
        # Its own, since a repository that was made of the whole draft would be taken instead.
        "serve.max_queue_size=77",
    )
    with pytest.raises(RepositoryError, match=r"not what was built.*rank0\.engine was changed"):
        pair("demo-float16", name="target-damaged", gpu=settings)
