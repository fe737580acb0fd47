"""The text models on the real tritonserver, called as NVIDIA's clients call them.

The engine behind them is a stand-in that says a fixed text and answers as TensorRT-LLM's C++
backend does; the tokenizer is of Llama 2's kind, which drops the space in front of a text. What
must come out is written down here or said by the tokenizers library.
"""

from __future__ import annotations

import json
import queue
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import tritonclient.grpc as grpcclient
from tokenizers import AddedToken, Tokenizer, processors
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipeline.stages.repository import model_sources, python_files
from pipeline.triton.server import TritonServer
from pipeline.triton.tensors import TWINS
from pipeline.verify import run_conformance
from tests.conftest import PROJECT
from tests.metrics import METRICS
from tests.unit.model_repo.test_detokenizer import TOKENIZERS
from tests.unit.model_repo.upstream import assert_shape
from tests.unit.triton.by_target import render_configs
from tests.unit.triton.demo import ENGINE, demo_recipe
from trtllm_client import ChatTemplate, Client, GenerateRequest, InvalidRequest

SCRIPTED = PROJECT / "tests" / "doubles" / "scripted_engine.py"
WORDS = ("▁time", "▁", ",", "▁there", "▁was", "▁a", "▁cat", ".")
TEXT = " time , there was a cat."
BOTH = ("tensorrt_llm_bls", "ensemble")


def llama_2_kind() -> Tokenizer:
    """With bos in front of a prompt, and a special token that ends a turn."""
    tokenizer = Tokenizer.from_str(TOKENIZERS["byte_fallback"].to_str())
    tokenizer.add_special_tokens([AddedToken("[/INST]", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


TOKENIZER = llama_2_kind()
# With all that a text file could trip over.
CHAT_TEMPLATE = (
    "{# \"two\" 'one' back\\slash \\n ${unfilled} \t é 漢 \U0001f600 #}\r\n{{ bos_token }}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}[/INST]\n{% endfor %}"
)
CHAT = [
    {"role": "system", "content": "é"},
    {"role": "user", "content": "  <b>\n"},
]


def write_repository(root: Path, **serve: Any) -> Path:
    """The product's models around the scripted engine."""
    recipe, template = demo_recipe(**serve), ChatTemplate(CHAT_TEMPLATE, {"bos_token": "<s>"})
    for model, text in render_configs(recipe, ENGINE, template).items():
        (root / model / "1").mkdir(parents=True)
        (root / model / "config.pbtxt").write_text(text)
    for name in python_files(model_sources()):
        model, file = Path(name).parts
        if model in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
            for twin in (model, *TWINS.get(model, ())):
                if (root / twin).is_dir():
                    shutil.copy(model_sources() / name, root / twin / "1" / file)
    shutil.copy(SCRIPTED, root / "tensorrt_llm/1/model.py")
    script = [TOKENIZER.token_to_id(word) for word in WORDS]
    (root / "tensorrt_llm/1/script.json").write_text(json.dumps(script))
    engine = root / "tensorrt_llm/1/engine"
    engine.mkdir()
    (engine / "config.json").write_text(json.dumps({"build_config": {"max_seq_len": 64}}))
    (root / "preprocessing/1/tokenizer").mkdir()
    TOKENIZER.save(str(root / "preprocessing/1/tokenizer/tokenizer.json"))
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    root = tmp_path_factory.mktemp("text")
    with TritonServer(write_repository(root / "repository"), log_file=root / "log") as server:
        yield server


@pytest.fixture(scope="module")
def accumulating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """With every choice of the text models the other way round."""
    root = tmp_path_factory.mktemp("accumulating")
    repository = write_repository(
        root / "repository",
        accumulate_tokens=True,
        include_stop_str_in_output=True,
        add_special_tokens=False,
        decoupled="both",
    )
    with TritonServer(repository, log_file=root / "log") as server:
        yield server


def infer(
    server: TritonServer,
    model: str,
    prompts: Sequence[str],
    outputs: Sequence[str] = ("text_output",),
    parameters: dict[str, Any] | None = None,
    **inputs: Any,
) -> list[grpcclient.InferResult]:
    """Every response to one request of ``end_to_end_grpc_client.py``."""
    arrays = {
        "text_input": np.array([[prompt] for prompt in prompts]).astype(object),
        "max_tokens": np.full((len(prompts), 1), 20, np.int32),
        "stream": np.full((len(prompts), 1), True),
    } | inputs
    tensors = []
    for name, array in arrays.items():
        tensors.append(grpcclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    received: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: received.put(error or result))
        client.async_stream_infer(
            model,
            tensors,
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
            parameters=parameters,
        )
        client.stop_stream()
    results = list(received.queue)
    for result in results:
        if isinstance(result, InferenceServerException):
            raise result
        for output in result.get_response().outputs:
            assert_shape(output.name, result.as_numpy(output.name))
    return results


def texts(results: list[grpcclient.InferResult]) -> list[str]:
    return [result.as_numpy("text_output")[0].decode("utf-8") for result in results]


def whole(size: int = 1) -> dict[str, Any]:
    return {"stream": np.full((size, 1), False)}


def after(prompt: str) -> str:
    """What the tokenizers library says of the text that follows a prompt."""
    ids = TOKENIZER.encode(prompt).ids
    script = [TOKENIZER.token_to_id(word) for word in WORDS]
    return TOKENIZER.decode(ids + script)[len(TOKENIZER.decode(ids)) :]


@pytest.mark.parametrize("model", BOTH)
def test_a_completion_keeps_every_space(server: TritonServer, model: str) -> None:
    assert after("Once upon a") == TEXT
    assert "".join(texts(infer(server, model, ["Once upon a"]))) == TEXT
    assert texts(infer(server, model, ["Once upon a"], **whole())) == [TEXT]


@pytest.mark.parametrize("model", BOTH)
def test_prompt_and_completion_in_one_text(server: TritonServer, model: str) -> None:
    kept = {"exclude_input_in_output": np.array([[False]])}
    got = texts(infer(server, model, ["Once upon a"], **whole(), **kept))
    assert got == ["Once upon a" + TEXT]


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("name", ["text_input", "max_tokens"])
def test_a_missing_input_is_named(server: TritonServer, model: str, name: str) -> None:
    """Triton counts the inputs alone; an ensemble without one ended as if it were answered."""
    body = {"text_input": "Once", "max_tokens": 4, "top_k": 1, "seed": 1, "temperature": 1.0}
    del body[name]
    url = f"{server.http_url}/v2/models/{model}/generate_stream"
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(url, json.dumps(body).encode())
    with caught.value as answer:
        assert f"the input {name} is missing" in answer.read().decode()


@pytest.mark.parametrize("model", BOTH)
def test_former_names_are_taken_as_parameters_beside_the_new_ones(
    server: TritonServer, model: str
) -> None:
    one = np.array([[1]])
    results = infer(
        server,
        model,
        ["Once upon a"],
        parameters={"random_seed": 1, "min_length": 1, "return_kv_cache_reuse_stats": True},
        seed=one.astype(np.uint64),
        min_tokens=one.astype(np.int32),
        return_perf_metrics=one.astype(bool),
    )
    assert "".join(texts(results)) == TEXT


def test_a_chat_turn_gains_no_space(server: TritonServer) -> None:
    turn = "there was[/INST]"
    assert "".join(texts(infer(server, "tensorrt_llm_bls", [turn]))) == TEXT.lstrip()
    assert texts(infer(server, "tensorrt_llm_bls", [turn], **whole())) == [TEXT.lstrip()]


def test_a_chat_turn_of_the_ensemble_keeps_the_space_of_its_first_word(
    server: TritonServer,
) -> None:
    """What is left: its decoder sees neither the prompt nor whether a response is the first."""
    assert "".join(texts(infer(server, "ensemble", ["there was[/INST]"]))) == TEXT


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("stream", [True, False])
def test_each_prompt_of_a_batch_is_answered(server: TritonServer, model: str, stream: bool) -> None:
    """As ``--batch-inputs`` puts the responses together."""
    results = infer(
        server,
        model,
        ["Once upon a", "Once,"],
        ("text_output", "batch_index"),
        stream=np.full((2, 1), stream),
        exclude_input_in_output=np.full((2, 1), True),
    )
    batch_output_text = ["", ""]
    for result in results:
        batch_index = result.as_numpy("batch_index")[0][0]
        batch_output_text[batch_index] += result.as_numpy("text_output")[0].decode("utf-8")
    assert batch_output_text == [TEXT, " there was a cat."]


def test_triton_refuses_inputs_of_different_batch_sizes(server: TritonServer) -> None:
    words = {"stop_words": np.array([["there"]], dtype=object)}
    with pytest.raises(InferenceServerException, match="batch size"):
        infer(server, "tensorrt_llm_bls", ["Once", "upon"], **words)


@pytest.mark.parametrize("model", BOTH)
def test_performance_metrics_are_in_every_response(server: TritonServer, model: str) -> None:
    asked = {"return_perf_metrics": np.array([[True]])}
    for inputs in (asked, asked | whole()):
        results = infer(server, model, ["Once"], ("text_output", *METRICS), **inputs)
        last = [[result.as_numpy(name)[0][0] for name in METRICS] for result in results][-1]
        # The engine counts its responses.
        assert last == [0 if "stream" in inputs else len(WORDS) - 1] * 10


@pytest.mark.parametrize("model", BOTH)
def test_every_other_output_has_upstreams_shape(server: TritonServer, model: str) -> None:
    names = ("cum_log_probs", "output_log_probs", "num_input_tokens", "num_output_tokens")
    yes = np.array([[True]])
    flags = ("return_log_probs", "return_num_input_tokens", "return_num_output_tokens")
    results = infer(server, model, ["Once"], ("text_output", *names), **dict.fromkeys(flags, yes))
    sent = {output.name for result in results for output in result.get_response().outputs}
    assert sent == {"text_output", *names}
    counted = [result.as_numpy("num_output_tokens") for result in results]
    assert sum(int(count[0][0]) for count in counted if count is not None) == len(WORDS)


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("stop_words", [(), ("never",)])
def test_each_token_has_one_score(
    server: TritonServer, model: str, stop_words: tuple[str, ...]
) -> None:
    """The engine scores them -1, -2 and so on, and repeats all so far in each response."""
    request = GenerateRequest("Once", max_tokens=20, stop_words=stop_words, return_log_probs=True)
    with Client(server.grpc_url, model=model) as client:
        answers = [client.generate(request), client.stream(request).completion()]
    for answer in answers:
        assert answer.output_log_probs == tuple(-float(n) for n in range(1, len(WORDS) + 1))
        assert answer.cum_log_probs == -sum(range(1, len(WORDS) + 1))
        assert answer.num_output_tokens == len(WORDS)


@pytest.mark.parametrize("model", BOTH)
def test_more_than_the_engine_has_room_for_is_refused_by_both(
    server: TritonServer, model: str
) -> None:
    """As preprocessing does, for TensorRT-LLM would cut the answer and say nothing."""
    with (
        Client(server.grpc_url, model=model) as client,
        pytest.raises(InvalidRequest, match=r"6 tokens plus max_tokens 64 is 70; .*\(max_seq_len"),
    ):
        client.stream("Once", max_tokens=64).completion()


@pytest.mark.parametrize("model", BOTH)
def test_a_parameter_of_nvidias_clients_is_taken(server: TritonServer, model: str) -> None:
    results = infer(server, model, ["Once upon a"], parameters={"Streaming": True})
    assert "".join(texts(results)) == TEXT


@pytest.mark.parametrize("model", BOTH)
def test_an_empty_prompt_is_bos(server: TritonServer, model: str) -> None:
    counted = {"return_num_input_tokens": np.array([[True]])}
    results = infer(server, model, [""], ("text_output", "num_input_tokens"), **counted)
    assert results[0].as_numpy("num_input_tokens")[0][0] == 1


def test_where_a_text_ends_at_a_stop_word(server: TritonServer, accumulating: TritonServer) -> None:
    # An engine knows a word by the tokens it has alone.
    assert TOKENIZER.encode(",", add_special_tokens=False).tokens == ["▁", ","]
    words = {"stop_words": np.array([[","]], dtype=object)}
    for inputs in (words, words | whole()):
        bls, ensemble = (infer(server, model, ["Once upon a"], **inputs) for model in BOTH)
        kept = infer(accumulating, "tensorrt_llm_bls", ["Once upon a"], **inputs)
        assert "".join(texts(bls)) == " time "
        assert "".join(texts(ensemble)) == " time ,"
        assert texts(kept)[-1] == " time ,"


def test_accumulated_text_is_for_clients_that_overwrite(accumulating: TritonServer) -> None:
    """``--overwrite-output-text`` of ``end_to_end_grpc_client.py``."""
    sent = texts(infer(accumulating, "tensorrt_llm_bls", ["Once upon a"]))
    assert sent[0] == " time"
    assert sent[-1] == TEXT
    assert all(TEXT.startswith(text) for text in sent)
    with grpcclient.InferenceServerClient(accumulating.grpc_url) as client:
        config = client.get_model_config("tensorrt_llm_bls").config
    assert config.parameters["accumulate_tokens"].string_value == "true"


@pytest.mark.parametrize("model", BOTH)
def test_an_input_of_the_old_contract_is_named_over_http(server: TritonServer, model: str) -> None:
    body = {"text_input": "Once", "max_tokens": 3, "random_seed": 7}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", data=json.dumps(body).encode()
    )
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(request)
    assert "random_seed: this input is called seed" in caught.value.read().decode()


@pytest.mark.parametrize("model", BOTH)
def test_a_former_name_beside_the_new_one_is_taken(server: TritonServer, model: str) -> None:
    """As by upstream, to whose models a parameter is nothing."""
    old = {"random_seed": 7, "min_length": 2}
    body = {"text_input": "Once upon a", "max_tokens": 20, "seed": 7, "min_tokens": 2, **old}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", data=json.dumps(body).encode()
    )
    assert json.load(urllib.request.urlopen(request))["text_output"] == TEXT


@pytest.mark.parametrize("model", BOTH)
def test_generate_over_http_has_the_text_as_one_string(server: TritonServer, model: str) -> None:
    body = {"text_input": "Once upon a", "max_tokens": 20, "bad_words": "", "stop_words": ""}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", data=json.dumps(body).encode()
    )
    assert json.load(urllib.request.urlopen(request))["text_output"] == TEXT


def as_transformers_has_it() -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER, bos_token="<s>", chat_template=CHAT_TEMPLATE
    )


def template_of(server: TritonServer) -> ChatTemplate:
    """The chat template as any gRPC client reads it from the server."""
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        parameters = client.get_model_config("preprocessing").config.parameters
    tokens = json.loads(parameters["chat_template_tokens"].string_value)
    return ChatTemplate(parameters["chat_template"].string_value, tokens)


def input_tokens(
    server: TritonServer, model: str, prompts: Sequence[str], **more: Any
) -> list[int]:
    counted = {**whole(len(prompts)), "return_num_input_tokens": np.full((len(prompts), 1), True)}
    outputs = ("text_output", "num_input_tokens", *(("batch_index",) if len(prompts) > 1 else ()))
    results = infer(server, model, prompts, outputs, **counted, **more)
    if len(prompts) > 1:
        results.sort(key=lambda result: int(result.as_numpy("batch_index").item()))
    return [int(result.as_numpy("num_input_tokens").item()) for result in results]


def test_a_client_renders_what_the_server_says_as_transformers_does(server: TritonServer) -> None:
    template = template_of(server)
    assert template.source == CHAT_TEMPLATE
    assert template.render(CHAT) == as_transformers_has_it().apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("model", BOTH)
def test_a_rendered_chat_has_the_tokens_that_transformers_gives_it(
    server: TritonServer, model: str
) -> None:
    ids = as_transformers_has_it().apply_chat_template(
        CHAT, tokenize=True, add_generation_prompt=True
    )
    assert ids.count(1) == 1
    text = template_of(server).render(CHAT)
    flags = {added: {"add_special_tokens": np.array([[added]])} for added in (True, False)}
    assert input_tokens(server, model, [text]) == [len(ids)]
    assert input_tokens(server, model, [text], **flags[False]) == [len(ids)]
    assert input_tokens(server, model, [text], **flags[True]) == [len(ids) + 1]
    plain = len(TOKENIZER.encode("Once upon a", add_special_tokens=False).ids)
    assert input_tokens(server, model, ["Once upon a"]) == [plain + 1]
    assert input_tokens(server, model, ["Once upon a"], **flags[False]) == [plain]
    each = {"add_special_tokens": np.array([[False], [True], [False]])}
    texts = [text, text, "Once upon a"]
    assert input_tokens(server, model, texts, **each) == [len(ids), len(ids) + 1, plain]


def test_a_client_says_it_by_the_field(server: TritonServer) -> None:
    counts = []
    with Client(server.grpc_url) as client:
        for added in (None, True, False):
            answer = client.generate("<s>a", max_tokens=20, add_special_tokens=added)
            counts.append(answer.num_input_tokens)
        with client.stream("<s>a", max_tokens=20, add_special_tokens=True) as stream:
            counts.append(next(iter(stream)).num_input_tokens)
    ids = len(TOKENIZER.encode("<s>a", add_special_tokens=False).ids)
    assert counts == [ids, ids + 1, ids, ids + 1]


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "tensorrt_llm_bls_unary", "ensemble"])
def test_where_the_setting_is_false_a_request_may_ask_for_special_tokens(
    accumulating: TritonServer, model: str
) -> None:
    plain = len(TOKENIZER.encode("Once upon a", add_special_tokens=False).ids)
    added = {"add_special_tokens": np.array([[True]])}
    assert input_tokens(accumulating, model, ["Once upon a"]) == [plain]
    assert input_tokens(accumulating, model, ["Once upon a"], **added) == [plain + 1]


@pytest.mark.parametrize("model", BOTH)
def test_a_flag_of_another_type_is_refused(server: TritonServer, model: str) -> None:
    number = {"add_special_tokens": np.array([[1]], np.int32)}
    with pytest.raises(InferenceServerException, match=r"\W*add_special_tokens\W.* is .*INT32"):
        infer(server, model, ["Once"], **number)


@pytest.mark.parametrize("model", BOTH)
def test_the_field_goes_over_http_too(server: TritonServer, model: str) -> None:
    body = {"text_input": "<s>Once upon a", "max_tokens": 20, "add_special_tokens": False}
    body |= {"return_num_input_tokens": True}
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", data=json.dumps(body).encode()
    )
    ids = TOKENIZER.encode("<s>Once upon a", add_special_tokens=False).ids
    assert json.load(urllib.request.urlopen(request))["num_input_tokens"] == len(ids)


@pytest.mark.parametrize("model", BOTH)
def test_the_conformance_run_sees_it(
    server: TritonServer, accumulating: TritonServer, model: str
) -> None:
    for place, setting in ((server, "auto"), (accumulating, False)):
        report = run_conformance(place.grpc_url, model=model, only=["begins_once"])
        (found,) = (result for result in report.results if result.name == "begins_once")
        assert (found.status, found.reason) == ("passed", None)
        assert found.details["setting"] == setting
        once, plain, twice = found.details["tokens"]
        assert (once, twice) == (plain, plain + 1)
        assert {"tensorrt_llm_bls", "ensemble"} <= {*found.details["models"]}
