"""Guided decoding, LoRA adapters and lookahead decoding behind the strict stand-in.

A repository with each is made by the pipeline and served as it is. Texts are compared with
transformers' own, of the model with the adapter merged by PEFT's definition, and guides with the
libraries that know them.
"""

from __future__ import annotations

import json
import math
import queue
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from tritonclient.utils import InferenceServerException

from tests.doubles.tensorrtllm_backend.serving import strict_server
from trtllm_client import Client, GenerateRequest, InvalidRequest, add_input, encode_request

from ..conftest import DEMO_MODEL
from .conftest import Built, Pair
from .nvidia_calls import id_arrays, streamed, tensor

pytestmark = pytest.mark.strict

ENGINE = "tensorrt_llm"
PROMPT = "Once upon a time"
TOKENS = 16
BOTH = ("output_ids", "sequence_length")
TOKENIZER = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
IDS = list(TOKENIZER.encode(PROMPT).ids)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Tom", "Anna"]}, "age": {"enum": [3, 40]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GUIDES = {
    "regex": r"[A-Z][a-z]{2,5} [0-9]{3}",
    "json_schema": json.dumps(SCHEMA),
    "ebnf_grammar": 'root ::= "yes" | "no"',
}
END_ID = 1
# Rank, alpha, rslora and linears of two adapters.
ADAPTERS: tuple[tuple[int, int, bool, tuple[str, ...]], ...] = (
    (4, 8, False, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    (2, 3, True, ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
)
MODULES = "attn_q, attn_k, attn_v, attn_dense, mlp_h_to_4h, mlp_gate, mlp_4h_to_h"


def one(value: Any, kind: Any = np.int32) -> Any:
    return np.array([[value]], kind)


def hugging_face() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


def greedy(model: Any, tokens: int = TOKENS) -> list[int]:
    """transformers' greedy ids after the prompt; no id ends them."""
    ids = list(IDS)
    with torch.inference_mode():
        for _ in range(tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(IDS) :]


@pytest.fixture(scope="module")
def plain() -> list[int]:
    """The model's own ids."""
    return greedy(hugging_face())


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[int]]]:
    """Folders as PEFT saves them, and the ids of the model with each merged by its definition."""
    made = []
    for number, (rank, alpha, rslora, linears) in enumerate(ADAPTERS):
        torch.manual_seed(number)
        model = hugging_face()
        scale = alpha / (math.sqrt(rank) if rslora else rank)
        weights = {}
        for layer, block in enumerate(model.model.layers):
            for linear in linears:
                weight = block.get_submodule(linear).weight
                a = 0.15 * torch.randn(rank, weight.shape[1])
                b = 0.15 * torch.randn(weight.shape[0], rank)
                weight.data += scale * (b @ a)
                prefix = f"base_model.model.model.layers.{layer}.{linear}"
                weights |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        folder = tmp_path_factory.mktemp("adapter")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(weights, folder / "adapter_model.safetensors")
        made.append((folder, greedy(model)))
    return made


@pytest.fixture(scope="module")
def featured(
    pair: Pair,
    float16: Built,
    adapters: list[tuple[Path, list[int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A server with guided decoding, two adapters, CUDA graphs and a KV cache on the host."""
    repository = pair.gpu(
        "demo-float16",
        "featured",
        "serve.guided_decoding=xgrammar",
        f"compile.tensorrt.lora={{max_rank: 4, target_modules: [{MODULES}]}}",
        f"serve.lora_adapters=[{', '.join(str(folder) for folder, _ in adapters)}]",
        "serve.cuda_graphs=4",
        "serve.kv_cache_host_memory=0.5",
    )
    log = tmp_path_factory.mktemp("featured-log") / "triton.log"
    with strict_server(repository, float16.engine, log) as server:
        yield server


@pytest.fixture(scope="module")
def ahead(pair: Pair, float16: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with lookahead decoding."""
    repository = pair.gpu(
        "demo-float16",
        "ahead",
        "compile.tensorrt.lookahead={window_size: 2, ngram_size: 4, verification_set_size: 3}",
    )
    log = tmp_path_factory.mktemp("ahead-log") / "triton.log"
    with strict_server(repository, float16.engine, log) as server:
        yield server


def ask(server: Any, outputs: tuple[str, ...] = BOTH, length: int = TOKENS, **more: Any) -> Any:
    arrays = id_arrays(IDS, length, streaming=True, **more)
    return streamed(server.grpc_url, ENGINE, arrays, outputs)


def ids_of(results: list[Any]) -> list[int]:
    return [int(token) for result in results for token in result.as_numpy("output_ids").reshape(-1)]


def refusal(server: Any, **more: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask(server, **more)
    return str(caught.value.message())


def guide(kind: str, text: str | None = None) -> dict[str, Any]:
    """The engine's inputs."""
    given = {"guided_decoding_guide_type": one(kind, object)}
    return given if text is None else {**given, "guided_decoding_guide": one(text, object)}


def follows(kind: str, text: str) -> bool:
    if kind == "json_schema":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    return bool(re.fullmatch(GUIDES["regex"] if kind == "regex" else "yes|no", text))


class TestGuided:
    @pytest.mark.parametrize("kind", GUIDES)
    def test_the_text_follows_its_guide(self, featured: Any, kind: str) -> None:
        asked = {
            "guided_decoding_guide_type": kind,
            "guided_decoding_guide": GUIDES[kind],
            # Or the model would fill an object with spaces.
            "frequency_penalty": 1.0,
            "max_tokens": 100,
        }
        with Client(featured.grpc_url) as client:
            answer = client.generate(PROMPT, **asked)
            with client.stream(PROMPT, **asked) as stream:
                pieces = [chunk.text for chunk in stream]
        assert answer.finish_reason == "stop"
        assert follows(kind, answer.text)
        assert "".join(pieces) == answer.text

    def test_any_json(self, featured: Any) -> None:
        message = encode_request(
            GenerateRequest(
                PROMPT, max_tokens=100, frequency_penalty=1.0, guided_decoding_guide_type="json"
            ),
            model="tensorrt_llm_bls", request_id="json", stream=True,
        )  # fmt: skip
        # Or it would tell its story in a string.
        add_input(message, "embedding_bias_words", ['"', ' "'])
        add_input(message, "embedding_bias_weights", [-100.0, -100.0])
        with Client(featured.grpc_url) as client:
            text = client.send(message, timeout=60).completion().text
        assert isinstance(json.loads(text), dict | list)

    def test_sampled_texts_follow_it_too(self, featured: Any) -> None:
        with Client(featured.grpc_url) as client:
            texts = {
                client.generate(
                    PROMPT, max_tokens=60, temperature=1.5, top_k=50, seed=seed,
                    guided_decoding_guide_type="regex", guided_decoding_guide=GUIDES["regex"],
                ).text
                for seed in range(4)
            }  # fmt: skip
        assert len(texts) > 1
        assert all(follows("regex", text) for text in texts)

    def test_a_guide_that_does_not_compile_ends_everyone(self, featured: Any) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        arrays = id_arrays(IDS, 400, streaming=True)
        with grpcclient.InferenceServerClient(featured.grpc_url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer(ENGINE, [tensor(*item) for item in arrays.items()])
            first = answers.get(timeout=60)
            assert not isinstance(first, Exception), first
            text = refusal(featured, **guide("ebnf_grammar", "root ::= ("))
            client.stop_stream()
        reason = "Encountered an error in forwardAsync function: "
        assert reason in text
        # The neighbour dies with the same words, and the next request is served.
        rest = list(answers.queue)
        assert len(rest) < 399
        assert str(rest[-1]).partition(reason)[2][:60] == text.partition(reason)[2][:60] != ""
        assert len(ask(featured, length=2)) == 2

    def test_a_guided_text_that_goes_on_after_its_end(self, featured: Any) -> None:
        text = refusal(featured, end_id=one(-1), **guide("ebnf_grammar", GUIDES["ebnf_grammar"]))
        assert "Encountered an error in forwardAsync function: " in text
        assert "terminated" in text

    def test_log_probs_are_of_what_the_guide_left(self, featured: Any) -> None:
        outputs = (*BOTH, "output_log_probs")
        asked = {"return_log_probs": one(True, bool), **guide("regex", "7")}
        results = ask(featured, outputs, end_id=one(END_ID), **asked)
        assert results[0].as_numpy("output_log_probs").reshape(-1)[0] == pytest.approx(0, abs=1e-4)
        assert TOKENIZER.decode(ids_of(results[:1])) == "7"

    def test_an_unknown_type_is_not_read_here_either(self, featured: Any, plain: list[int]) -> None:
        assert ids_of(ask(featured, **guide("json_object", "{}"))) == plain


class TestAdapters:
    def test_each_adapter_is_added_to_the_weights(
        self, featured: Any, adapters: list[tuple[Path, list[int]]], plain: list[int]
    ) -> None:
        expected = {None: plain, **{number: ids for number, (_, ids) in enumerate(adapters, 1)}}
        assert len({tuple(ids) for ids in expected.values()}) == 3

        def text(number: int | None) -> str:
            with Client(featured.grpc_url) as client:
                return client.generate(
                    PROMPT, max_tokens=TOKENS, end_id=-1, lora_task_id=number
                ).text

        # All at once, several times.
        numbers = [*expected] * 3
        with ThreadPoolExecutor(len(numbers)) as pool:
            texts = list(pool.map(text, numbers))
        whole = {number: TOKENIZER.decode(IDS + ids) for number, ids in expected.items()}
        assert [PROMPT + text for text in texts] == [whole[number] for number in numbers]

    def test_the_gateway_has_each_adapter_as_a_model(
        self, featured: Any, adapters: list[tuple[Path, list[int]]]
    ) -> None:
        pytest.importorskip("fastapi")
        from pipeline.gateway.desk import Options
        from pipeline.gateway.model import open_model
        from pipeline.gateway.opening import Servers, open_gateway
        from pipeline.gateway.running import listen

        model = open_model(DEMO_MODEL, names=["demo"], context_length=64)
        with open_gateway(
            Servers.at([featured.grpc_url]),
            model,
            Options(),
            listen("127.0.0.1", 0, "--port"),
            drain_s=0,
            patience_s=60,
            say=print,
        ) as running:
            listed = httpx2.get(f"{running.url}/v1/models", timeout=60).json()["data"]
            assert [one["id"] for one in listed] == ["demo", "demo:1", "demo:2"]
            assert [one.get("parent") for one in listed] == [None, "demo", "demo"]
            for number, (_, ids) in enumerate(adapters, 1):
                body = {
                    "model": f"demo:{number}",
                    "prompt": IDS,
                    "max_tokens": TOKENS,
                    "temperature": 0,
                    "ignore_eos": True,
                }
                answer = httpx2.post(f"{running.url}/v1/completions", json=body, timeout=60).json()
                assert answer["model"] == f"demo:{number}"
                text = TOKENIZER.decode(IDS) + answer["choices"][0]["text"]
                assert text == TOKENIZER.decode(IDS + ids)
            body["model"] = "demo:3"
            refused = httpx2.post(f"{running.url}/v1/completions", json=body, timeout=60)
            assert refused.status_code == 404

    def test_an_adapter_that_is_not_in_the_cache(self, featured: Any) -> None:
        text = refusal(featured, lora_task_id=one(7, np.uint64))
        assert re.search(
            r"Executor failed process requestId \d+ due to the following error: LoRA task 7 not "
            r"found in cache\. Please send LoRA weights with request$",
            text,
        )
        with (
            Client(featured.grpc_url) as client,
            pytest.raises(InvalidRequest, match=r"lora_task_id 7 is unknown.*are 1, 2"),
        ):
            client.generate(PROMPT, max_tokens=4, lora_task_id=7)

    def test_weights_that_come_along(self, featured: Any) -> None:
        values = np.zeros((1, 1, 4 * (256 + 128)), np.float16)
        row = np.array([[[3, 0, 4]]], np.int32)
        number = {"lora_task_id": one(9, np.uint64)}
        text = refusal(featured, lora_weights=values, **number)
        assert "Request for LoRA inference must have both lora_weights and lora_keys (" in text
        text = refusal(featured, lora_weights=values, lora_config=row)
        assert "lora_task_id must be set for LoRA inference (" in text
        first = ids_of(ask(featured, lora_weights=values, lora_config=row, **number))
        # Zeros change nothing; the id alone is enough from now on.
        assert first == ids_of(ask(featured, **number)) == ids_of(ask(featured))


class TestLookahead:
    def test_greedy_texts_in_pieces_of_several_tokens(self, ahead: Any, plain: list[int]) -> None:
        results = ask(ahead, length=200, end_id=one(-1))
        counts = [result.as_numpy("sequence_length").item() for result in results]
        assert ids_of(results)[:TOKENS] == plain
        assert sum(counts) == 200
        # A step gives at most as many as an n-gram has.
        assert 1 < max(counts) <= 4
        with Client(ahead.grpc_url) as client:
            with client.stream(PROMPT, max_tokens=TOKENS, end_id=-1) as stream:
                pieces = [chunk.text for chunk in stream]
            whole = client.generate(PROMPT, max_tokens=TOKENS, end_id=-1)
        assert PROMPT + "".join(pieces) == PROMPT + whole.text == TOKENIZER.decode(IDS + plain)
        assert whole.num_output_tokens == TOKENS

    def test_what_lookahead_leaves_out(self, ahead: Any, plain: list[int]) -> None:
        outputs = (*BOTH, "output_log_probs", "cum_log_probs")
        results = ask(
            ahead,
            outputs,
            runtime_top_k=one(50),
            temperature=one(1.5, np.float32),
            repetition_penalty=one(1.9, np.float32),
            bad_words_list=np.array([[[plain[0]], [1]]], np.int32),
            return_log_probs=one(True, bool),
        )
        assert ids_of(results) == plain
        assert not results[-1].as_numpy("output_log_probs").any()
        assert results[-1].as_numpy("cum_log_probs").item() == 0

    def test_stop_words_and_min_tokens_work_with_it(self, ahead: Any, plain: list[int]) -> None:
        words = np.array([[[plain[5]], [1]]], np.int32)
        assert ids_of(ask(ahead, stop_words_list=words)) == plain[: plain.index(plain[5]) + 1]
        held = ids_of(ask(ahead, end_id=one(plain[2]), min_tokens=one(8)))
        assert ids_of(ask(ahead, end_id=one(plain[2]))) == plain[: plain.index(plain[2])]
        assert plain[2] not in held[:8]
        assert len(held) >= 8

    @pytest.mark.parametrize(
        "asked",
        [
            {"temperature": 0.8, "top_k": 40},
            {"top_p": 0.9},
            {"repetition_penalty": 1.2},
            {"bad_words": ("boy",)},
            {"return_log_probs": True},
        ],
    )
    def test_the_bls_refuses_what_would_be_left_out(
        self, ahead: Any, asked: dict[str, Any]
    ) -> None:
        name = [*asked][-1]
        with (
            Client(ahead.grpc_url) as client,
            pytest.raises(InvalidRequest, match=f"{name} is not supported.*lookahead"),
        ):
            client.generate(PROMPT, max_tokens=4, **asked)

    def test_the_sizes_of_a_request(self, ahead: Any, plain: list[int]) -> None:
        sizes = {"window_size": 1, "ngram_size": 2, "verification_set_size": 1}
        given = {f"lookahead_{name}": one(size) for name, size in sizes.items()}
        assert ids_of(ask(ahead, **given)) == plain
        missing = {name: size for name, size in given.items() if "ngram" not in name}
        assert "Failed to extract lookahead_ngram_size" in refusal(ahead, **missing)
        wrong = {**given, "lookahead_ngram_size": one(1)}
        assert "ngramSize=1 requires verificationSetSize=0 (" in refusal(ahead, **wrong)

    def test_a_step_needs_room_for_all_that_it_guesses(self, ahead: Any) -> None:
        # The engine has 512 tokens and the 2 + 4 x 3 guesses of a step.
        results = ask(ahead, length=2000, end_id=one(-1))
        assert len(IDS) + len(ids_of(results)) == 512
