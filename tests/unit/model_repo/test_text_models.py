"""``preprocessing`` and ``postprocessing``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from model_repo.postprocessing.model import TritonPythonModel as Postprocessing
from model_repo.preprocessing.model import TritonPythonModel as Preprocessing
from model_repo.preprocessing.prompt import pad, word_list
from model_repo.preprocessing.request_parameters import unknown_parameters
from pipeline.triton.contract import MODELS
from tests.unit.model_repo.fake_triton import Request, TritonError, model_args
from tests.unit.model_repo.test_detokenizer import TOKENIZERS

TOKENIZER = TOKENIZERS["byte_fallback"]
OUTPUTS = [tensor.name for tensor in MODELS["preprocessing"].outputs]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    TOKENIZER.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}, "pad_token": "<unk>"})
    )
    return tmp_path


def write_engine(repository: Path, vocab_size: int | None = None, **build: int) -> None:
    """The config.json of an engine, as trtllm-build writes it."""
    engine = repository / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True, exist_ok=True)
    model = {} if vocab_size is None else {"vocab_size": vocab_size}
    config = {"pretrained_config": model, "build_config": build}
    (engine / "config.json").write_text(json.dumps(config))


def opened(repository: Path, **parameters: str) -> Preprocessing:
    model = Preprocessing()
    model.initialize(model_args(repository, {"tokenizer_dir": "tokenizer", **parameters}))
    return model


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(repository: Path) -> None:
    engine = repository / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    (engine / "config.json").write_text(json.dumps({"build_config": {"max_input_len": 10}}))
    longest = max(len(token.encode()) for token in TOKENIZER.get_vocab())
    model = opened(repository)
    fits = b"a" * (4 * longest * 10)
    assert run(model, inputs(fits))["INPUT_ID"].shape[1] > 10
    (response,) = model.execute([Request(inputs(fits + b"a"), OUTPUTS)])
    assert response.error().message() == (
        f"text_input is too long: its {len(fits) + 1} bytes cannot fit into the 10 tokens "
        "(max_input_len) that the engine was compiled for"
    )
    (engine / "config.json").unlink()
    assert run(opened(repository), inputs(fits + b"a"))["INPUT_ID"].shape[1] > 10


@pytest.mark.parametrize("name", ["stop_words", "bad_words", "embedding_bias_words"])
def test_words_that_would_hold_up_everybody_else_are_refused(repository: Path, name: str) -> None:
    engine = repository / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    (engine / "config.json").write_text(json.dumps({"build_config": {"max_input_len": 1000}}))
    model = opened(repository)
    longest = 4 * max(len(token.encode()) for token in TOKENIZER.get_vocab()) * 1000
    tensor = name.upper() if name.startswith("embedding") else f"{name.upper()}_DICT"

    def answer(*texts: bytes) -> str:
        weights = np.ones((1, len(texts)), np.float32)
        more = {"EMBEDDING_BIAS_WEIGHTS": weights} if name.startswith("embedding") else {}
        (response,) = model.execute([Request(inputs(**{tensor: words(*texts)}, **more), OUTPUTS)])
        return response.error().message() if response.has_error() else "fine"

    assert answer(*[b"a"] * 1024) == "fine"
    assert answer(*[b"a"] * 1025) == f"{name} has 1025 words; it may have at most 1024"
    assert answer(b"a" * (longest // 2), b"b" * (longest // 2)) == "fine"
    assert answer(b"a" * (longest // 2), b"b" * (longest // 2), b"c") == (
        f"{name} is too long: its {longest + 1} bytes cannot fit into the 1000 tokens "
        "(max_input_len) that the engine was compiled for"
    )


def test_what_nvidias_clients_send_is_taken(repository: Path) -> None:
    (response,) = opened(repository).execute(
        [Request(inputs(), OUTPUTS, parameters={"Streaming": True})]
    )
    assert not response.has_error()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["streaming"], "invalid parameter streaming: there is no such input; check its spelling"),
        (["random_seed"], "invalid parameter random_seed: this input is called seed"),
        (
            ["min_length", "Streaming", "x", "return_kv_cache_reuse_stats", "y"],
            (
                "invalid parameter min_length: this input is called min_tokens; "
                "invalid parameter return_kv_cache_reuse_stats: this input is called "
                "return_perf_metrics; "
                "invalid parameter x, y: there is no such input; check its spelling"
            ),
        ),
    ],
)
def test_an_input_of_the_old_contract_is_named_with_its_new_name(
    repository: Path, names: list[str], message: str
) -> None:
    sent = Request(inputs(), OUTPUTS, parameters=dict.fromkeys(names, 1))
    (response,) = opened(repository).execute([sent])
    assert response.error().message() == message
    inputs_of_today = {tensor.name for tensor in MODELS["ensemble"].inputs}
    assert {"seed", "min_tokens", "return_perf_metrics"} <= inputs_of_today


def test_a_former_name_beside_the_new_one_is_taken() -> None:
    """Upstream reads the new one; a parameter that no model reads is nothing to it."""
    both = {"random_seed": 7, "min_length": 4}
    for names in (("seed", "min_tokens"), ("SEED", "MIN_TOKENS")):
        asked = Request(dict.fromkeys(names, np.array([[7]])), [], parameters=both)
        assert unknown_parameters(asked) is None
    alone = Request({"top_k": np.array([[7]])}, [], parameters={"random_seed": 7})
    assert unknown_parameters(alone) == "invalid parameter random_seed: this input is called seed"


def test_a_parameter_that_nothing_reads_is_refused(repository: Path) -> None:
    model = opened(repository)
    (response,) = model.execute([Request(inputs(), OUTPUTS, parameters={"id": "a", "top_q": 1})])
    assert response.error().message() == (
        "invalid parameter top_q: there is no such input; check its spelling"
    )
    tritons = {"id": "a", "priority": 1, "sequence_id": 0, "triton_trace": "x"}
    (response,) = model.execute([Request(inputs(), OUTPUTS, parameters=tritons)])
    assert not response.has_error()


@pytest.mark.parametrize("model", [Preprocessing, Postprocessing])
def test_a_flag_is_true_or_false(repository: Path, model: Any) -> None:
    name = "add_special_tokens" if model is Preprocessing else "skip_special_tokens"
    other = "auto, " if model is Preprocessing else ""
    for wrong in ("maybe", "no", "yes"):
        reason = f"the parameter {name} is '{wrong}'; use {other}true or"
        with pytest.raises(ValueError, match=reason):
            model().initialize(model_args(repository, {"tokenizer_dir": "tokenizer", name: wrong}))


def words(*values: bytes) -> np.ndarray:
    return np.array([list(values)], object)


def inputs(text: bytes = b"Once", **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"QUERY": words(text), "REQUEST_OUTPUT_LEN": np.array([[4]], np.int32), **more}


def run(model: Any, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    (response,) = model.execute([Request(tensors, OUTPUTS)])
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def test_outputs_have_the_contracts_names_types_and_dimensions(repository: Path) -> None:
    got = run(opened(repository), inputs())
    contract = {tensor.name: tensor for tensor in MODELS["preprocessing"].outputs}
    # Upstream leaves this one out too when there is no prompt table.
    assert set(got) == set(contract) - {"OUT_PROMPT_TABLE_EXTRA_IDS"}
    for name, array in got.items():
        tensor = contract[name]
        assert array.dtype == {"TYPE_INT32": np.int32, "TYPE_FP32": np.float32}[tensor.data_type]
        assert array.ndim == 1 + len(tensor.dims), name
        assert all(
            dim in (-1, size) for dim, size in zip(tensor.dims, array.shape[1:], strict=True)
        ), name


def test_tokens_are_the_tokenizers(repository: Path) -> None:
    text = "Once upon a time 你好"
    got = run(opened(repository), inputs(text.encode()))
    assert got["INPUT_ID"].tolist() == [TOKENIZER.encode(text).ids]
    assert got["REQUEST_INPUT_LEN"].tolist() == [[len(TOKENIZER.encode(text).ids)]]
    assert got["OUT_PAD_ID"].tolist() == [[0]]


def test_every_end_id_is_honoured_unless_the_client_brings_its_own(repository: Path) -> None:
    model = opened(repository)
    got = run(model, inputs())
    assert got["OUT_END_ID"].tolist() == [[2]]
    assert got["STOP_WORDS_IDS"].tolist() == [[[1], [1]]]
    for own in (-1, 5):
        got = run(model, inputs(END_ID=np.array([[own]], np.int32)))
        assert got["OUT_END_ID"].tolist() == [[own]]
        assert got["STOP_WORDS_IDS"].shape == (1, 2, 0)


def test_the_tokenizer_names_the_end_id_where_no_generation_config_does(repository: Path) -> None:
    (repository / "tokenizer" / "generation_config.json").unlink()
    assert run(opened(repository), inputs())["OUT_END_ID"].tolist() == [[2]]
    path = repository / "tokenizer" / "tokenizer_config.json"
    for token in ("<s>", {"content": "<s>"}):
        path.write_text(json.dumps({"eos_token": token}))
        assert run(opened(repository), inputs())["OUT_END_ID"].tolist() == [[1]]
    path.write_text(json.dumps({"eos_token": "<end>"}))
    assert run(opened(repository), inputs())["OUT_END_ID"].tolist() == [[-1]]


@pytest.mark.parametrize(
    ("eos", "named"),
    [([2, None], "null"), ("2", '"2"'), (True, "true"), ([2, 4096], "4096"), (-1, "-1")],
)
def test_an_end_id_that_is_none_stops_the_model_and_not_each_request(
    repository: Path, eos: object, named: str
) -> None:
    write_engine(repository, vocab_size=4096)
    path = repository / "tokenizer" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ValueError, match=rf"{path}: eos_token_id has {named}, .* no token id"):
        opened(repository)


def test_stop_words_are_tokenized_alone(repository: Path) -> None:
    got = run(opened(repository), inputs(STOP_WORDS_DICT=words(b"cat", b"", b" was .")))
    cat = TOKENIZER.encode("cat", add_special_tokens=False).ids
    was = TOKENIZER.encode(" was .", add_special_tokens=False).ids
    flat, ends = got["STOP_WORDS_IDS"][0].tolist()
    assert flat == [*cat, *was, 1]
    assert [end for end in ends if end != -1] == [len(cat), len(cat + was), len(cat + was) + 1]


def test_prompts_begin_with_the_models_special_token_and_stop_words_do_not(
    repository: Path,
) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(repository / "tokenizer" / "tokenizer.json"))
    cat = TOKENIZER.encode("cat").ids
    asked = inputs(b"cat", STOP_WORDS_DICT=words(b"cat"), END_ID=np.array([[-1]], np.int32))
    got = run(opened(repository), asked)
    assert got["INPUT_ID"].tolist() == [[1, *cat]]
    assert got["STOP_WORDS_IDS"][0, 0].tolist() == cat
    plain = run(opened(repository, add_special_tokens="false"), asked)
    assert plain["INPUT_ID"].tolist() == [cat]


def _around(single: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2), ("<unk>", 0)]
    )
    return tokenizer


# What a tokenizer puts around a text; a text; what auto makes of it, by hand.
ONCE = [
    ("<s> $A", "cat", [1, "cat"]),
    ("<s> $A", "<s>cat", [1, "cat"]),
    ("<s> $A", "<s><s>cat", [1, 1, "cat"]),
    ("<s> $A", "<s>", [1]),
    ("<s> $A", "", [1]),
    ("<s> $A </s>", "cat", [1, "cat", 2]),
    ("<s> $A </s>", "<s>cat", [1, "cat", 2]),
    ("<s> $A </s>", "<s>cat</s>", [1, "cat", 2, 2]),
    ("<s> $A </s>", "", [1, 2]),
    ("<s> $A <s>", "", [1, 1]),
    # Of more than one only all of them count.
    ("<s> <unk> $A", "<s><unk>cat", [1, 0, "cat"]),
    ("<s> <unk> $A", "<s>cat", [1, 0, 1, "cat"]),
    ("<s> <unk> $A <unk>", "<s>", [1, 0, 1, 0]),
    ("$A </s>", "</s>cat", [2, "cat", 2]),
    ("$A", "<s>cat", [1, "cat"]),
]


@pytest.mark.parametrize(("single", "text", "expected"), ONCE)
def test_what_a_text_begins_with_is_not_put_in_front_again(
    repository: Path, single: str, text: str, expected: list[Any]
) -> None:
    tokenizer = _around(single)
    tokenizer.save(str(repository / "tokenizer" / "tokenizer.json"))
    # A word behind a special token has other ids than at the beginning, so both are looked up.
    cat = tokenizer.encode(text, add_special_tokens=False).ids
    ids = [token for token in cat if token > 2]
    wanted = [token for part in expected for token in (ids if isinstance(part, str) else [part])]
    for parameters in ({}, {"add_special_tokens": "auto"}, {"add_special_tokens": "AUTO"}):
        assert run(opened(repository, **parameters), inputs(text.encode()))[
            "INPUT_ID"
        ].tolist() == [wanted]


@pytest.mark.parametrize("setting", ["auto", "true", "false"])
def test_each_row_of_a_batch_says_whether_special_tokens_are_added(
    repository: Path, setting: str
) -> None:
    _around("<s> $A").save(str(repository / "tokenizer" / "tokenizer.json"))
    cat = TOKENIZER.encode("cat").ids
    batch = {
        "QUERY": np.array([[b"cat"], [b"cat"], [b"<s>cat"]], object),
        "REQUEST_OUTPUT_LEN": np.array([[4]] * 3, np.int32),
        "ADD_SPECIAL_TOKENS": np.array([[True], [False], [True]]),
    }
    got = run(opened(repository, add_special_tokens=setting), batch)
    lengths = got["REQUEST_INPUT_LEN"].reshape(-1).tolist()
    rows = [row[:length] for row, length in zip(got["INPUT_ID"].tolist(), lengths, strict=True)]
    assert rows[:2] == [[1, *cat], cat]
    assert rows[2][:2] == [1, 1]


def test_an_empty_prompt_is_what_the_tokenizer_makes_of_it(repository: Path) -> None:
    """Upstream's model refuses none: it calls ``tokenizer.encode`` with special tokens."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(repository / "tokenizer" / "tokenizer.json"))
    got = run(opened(repository), inputs(b""))
    assert got["INPUT_ID"].tolist() == [[1]]
    (response,) = opened(repository, add_special_tokens="false").execute(
        [Request(inputs(b""), OUTPUTS)]
    )
    assert response.error().message().startswith("text_input is empty, and this tokenizer puts no ")


def test_prompts_of_a_batch_are_padded_at_their_end(repository: Path) -> None:
    batch = {
        "QUERY": np.array([[b"Once"], [b"Once upon a time"]], object),
        "REQUEST_OUTPUT_LEN": np.array([[4], [5]], np.int32),
    }
    got = run(opened(repository), batch)
    short, long = (TOKENIZER.encode(text).ids for text in ("Once", "Once upon a time"))
    assert got["INPUT_ID"].tolist() == [short + [0] * (len(long) - len(short)), long]
    assert got["REQUEST_INPUT_LEN"].tolist() == [[len(short)], [len(long)]]
    assert got["REQUEST_OUTPUT_LEN"].tolist() == [[4], [5]]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (inputs(b""), "text_input is empty"),
        (inputs(b"ab\xff"), "text_input is not valid UTF-8: byte 0xff at position 2"),
        (inputs(STOP_WORDS_DICT=words(b"\xc3")), "stop_words is not valid UTF-8: byte 0xc3"),
        (inputs(DECODER_QUERY=words(b"x")), "decoder_text_input: this model has no encoder"),
        (
            inputs(EMBEDDING_BIAS_WORDS=words(b"x"), EMBEDDING_BIAS_WEIGHTS=np.ones((1, 2))),
            "each word needs one weight",
        ),
        (inputs(EMBEDDING_BIAS_WORDS=words(b"x")), "embedding_bias_words needs embedding_bias_w"),
        (inputs(EMBEDDING_BIAS_WEIGHTS=np.ones((1, 2))), "embedding_bias_words needs embedding_"),
        (
            inputs(PROMPT_TABLE_EXTRA_ID=np.array([[5]], np.uint64)),
            "prompt_table_extra_id: a text has no virtual tokens",
        ),
    ],
)
def test_a_bad_text_gets_a_clear_error_and_spares_its_neighbours(
    repository: Path, tensors: dict[str, np.ndarray], reason: str
) -> None:
    bad, good = opened(repository).execute([Request(tensors, OUTPUTS), Request(inputs(), OUTPUTS)])
    assert reason in bad.error().message()
    assert not good.has_error()


def test_embedding_bias_names_tokens(repository: Path) -> None:
    weights = np.array([[2.5]], np.float32)
    got = run(
        opened(repository),
        inputs(EMBEDDING_BIAS_WORDS=words(b"cat"), EMBEDDING_BIAS_WEIGHTS=weights),
    )
    tokens = TOKENIZER.encode("cat", add_special_tokens=False).ids
    assert got["EMBEDDING_BIAS"].shape == (1, TOKENIZER.get_vocab_size())
    assert np.flatnonzero(got["EMBEDDING_BIAS"]).tolist() == sorted(set(tokens))
    assert got["EMBEDDING_BIAS"][0, tokens[0]] == 2.5


def test_a_bias_has_the_engines_vocabulary(repository: Path) -> None:
    """As for Qwen2.5, whose tokenizer has 151665 tokens and whose model has 152064.

    createNewDecoderRequests.cpp demands ``embeddingBias.shape[1] == modelConfig.getVocabSize()``,
    the ``vocab_size`` of the engine's ``pretrained_config``.
    """
    padded = TOKENIZER.get_vocab_size() + 399
    write_engine(repository, vocab_size=padded)
    asked = inputs(
        EMBEDDING_BIAS_WORDS=words(b"cat"), EMBEDDING_BIAS_WEIGHTS=np.array([[2.5]], np.float32)
    )
    got = run(opened(repository), asked)["EMBEDDING_BIAS"]
    tokens = TOKENIZER.encode("cat", add_special_tokens=False).ids
    assert got.shape == (1, padded)
    assert np.flatnonzero(got).tolist() == sorted(set(tokens))


@pytest.mark.parametrize("name", ["text_input", "embedding_bias_words", "bad_words"])
def test_a_token_that_the_engine_lacks_is_refused(repository: Path, name: str) -> None:
    """Some fine-tunes add tokens to the tokenizer and leave the model as it is."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save(str(repository / "tokenizer" / "tokenizer.json"))
    known = TOKENIZER.get_vocab_size()
    write_engine(repository, vocab_size=known)
    asked = {
        "text_input": inputs(b"Once <|new|>"),
        "bad_words": inputs(BAD_WORDS_DICT=words(b"<|new|>")),
        "embedding_bias_words": inputs(
            EMBEDDING_BIAS_WORDS=words(b"<|new|>"), EMBEDDING_BIAS_WEIGHTS=np.ones((1, 1))
        ),
    }[name]
    (response,) = opened(repository).execute([Request(asked, OUTPUTS)])
    assert response.error().message() == (
        f"{name} has the token '<|new|>', which only the tokenizer knows: its id is {known}, and "
        f"the engine's are 0 to {known - 1}"
    )


@pytest.mark.parametrize("tokens", [0, -5])
def test_no_tokens_at_all_is_refused_by_name(repository: Path, tokens: int) -> None:
    """TensorRT-LLM says "Assertion failed: mMaxNewTokens > 0" (requestImpl.h)."""
    asked = inputs(REQUEST_OUTPUT_LEN=np.array([[tokens]], np.int32))
    (response,) = opened(repository).execute([Request(asked, OUTPUTS)])
    assert response.error().message() == f"max_tokens must be at least 1, got {tokens}"


@pytest.mark.parametrize(("draft", "longest"), [(0, 40), (7, 33)])
def test_more_tokens_than_the_engine_has_room_for_are_refused(
    repository: Path, draft: int, longest: int
) -> None:
    """llmRequest.cpp, validate: the longest sequence less what each step drafts."""
    write_engine(repository, max_seq_len=40, max_input_len=40, max_draft_len=draft)
    model, text = opened(repository), b"Once upon a time"
    prompt = len(TOKENIZER.encode(text.decode()).ids)

    def answer(tokens: int) -> str:
        asked = inputs(text, REQUEST_OUTPUT_LEN=np.array([[tokens]], np.int32))
        (response,) = model.execute([Request(asked, OUTPUTS)])
        return response.error().message() if response.has_error() else "fine"

    assert answer(longest - prompt) == "fine"
    assert answer(longest - prompt + 1) == (
        f"the prompt's {prompt} tokens plus max_tokens {longest - prompt + 1} is {longest + 1}; "
        f"the engine was compiled for at most {longest} (max_seq_len)"
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        # cpp/tensorrt_llm/executor/samplingConfig.cpp; NaN fails its comparisons, too.
        ("temperature", -0.5, "temperature must be at least 0, got -0.5"),
        ("temperature", np.nan, "temperature must be a finite number from 0, got nan"),
        ("temperature", np.inf, "temperature must be a finite number from 0, got inf"),
        ("temperature", -np.inf, "temperature must be a finite number from 0, got -inf"),
        ("top_p", np.inf, "top_p must be between 0 and 1, got inf"),
        ("top_k", -1, "top_k must be at least 0, got -1"),
        ("top_p", 1.5, "top_p must be between 0 and 1, got 1.5"),
        (
            "top_p",
            np.nextafter(np.float32(1), np.float32(2)),
            "top_p must be between 0 and 1, got 1.00000012",
        ),
        ("repetition_penalty", 0.0, "repetition_penalty must be above 0; 1 leaves the tokens"),
        ("repetition_penalty", -1.0, "repetition_penalty must be at least 0, got -1"),
        ("min_tokens", -2, "min_tokens must be at least 0, got -2"),
        ("min_tokens", 5, "min_tokens 5 is above max_tokens 4"),
        ("length_penalty", -1.0, "length_penalty must be at least 0, got -1"),
        ("presence_penalty", np.inf, "presence_penalty must be a finite number, got inf"),
        ("frequency_penalty", np.nan, "frequency_penalty must be a finite number, got nan"),
        # trtGptModelInflightBatching.cpp, changeBeamWidth: inside a step, at everyone's cost.
        ("beam_width", 3, "beam_width must be at most the engine's max_beam_width 2, got 3"),
        ("beam_width", 0, "beam_width must be at least 1, got 0"),
        # executorImpl.cpp; the backend for Triton never sets it.
        ("return_generation_logits", True, "gather_generation_logits on, so that every request"),
    ],
)
def test_what_no_engine_should_be_asked_for_is_refused(
    repository: Path, name: str, value: Any, reason: str
) -> None:
    write_engine(repository, max_beam_width=2)
    model, good = opened(repository), {"REQUEST_OUTPUT_LEN": np.array([[4], [4]], np.int32)}
    fine = {"min_tokens": 4, "return_generation_logits": False}.get(name, 1)
    batch = {"QUERY": np.array([[b"One"], [b"Two"]], object), **good}
    for values, refused in (([fine, fine], False), ([fine, value], True)):
        asked = {**batch, name.upper(): np.array([[one] for one in values])}
        (response,) = model.execute([Request(asked, OUTPUTS)])
        assert response.has_error() is refused
    assert reason in response.error().message()


def test_a_limit_that_is_not_known_is_in_no_message(repository: Path) -> None:
    """The engine may be kept elsewhere; then its config.json is not read."""
    asked = {
        "QUERY": np.array([[b"One"]], object),
        "REQUEST_OUTPUT_LEN": np.array([[4]], np.int32),
        "BEAM_WIDTH": np.array([[0]], np.int32),
    }
    (response,) = opened(repository).execute([Request(asked, OUTPUTS)])
    assert response.error().message() == "beam_width must be at least 1, got 0"


def test_what_tensorrt_llm_takes_for_not_given_is_taken(repository: Path) -> None:
    """utils.cc, getSamplingConfigFromTensors, drops a top_p of 0; zeros elsewhere are allowed."""
    zeros = ("temperature", "top_k", "top_p", "min_tokens", "length_penalty", "presence_penalty")
    run(opened(repository), inputs(**{name.upper(): np.array([[0]]) for name in zeros}))


def test_a_cold_top_p_is_refused_where_it_would_not_be_greedy(repository: Path) -> None:
    """runtime/samplingConfig.h, validate: ``temperature = 1; if (topK) topK = 1; topP = 1``."""
    model = opened(repository)
    cold = inputs(TEMPERATURE=np.array([[0.0]]), TOP_P=np.array([[0.9]]))
    (response,) = model.execute([Request(cold, OUTPUTS)])
    assert response.error().message() == (
        "temperature 0 with top_p and no top_k must be sent with top_k 1: TensorRT-LLM makes of it "
        "temperature 1 and top_p 1, which is any token"
    )
    run(model, {**cold, "TOP_K": np.array([[1]])})
    run(model, {**cold, "TEMPERATURE": np.array([[0.5]])})


def test_each_prompt_of_a_batch_needs_room(repository: Path) -> None:
    write_engine(repository, max_seq_len=20)
    batch = {
        "QUERY": np.array([[b"Once"], [b"Once upon a time"]], object),
        "REQUEST_OUTPUT_LEN": np.array([[4], [19]], np.int32),
    }
    (response,) = opened(repository).execute([Request(batch, OUTPUTS)])
    assert "plus max_tokens 19 is" in response.error().message()


def test_word_lists_are_padded_as_upstream_pads_them() -> None:
    assert word_list([[[5, 6], [7]], [[8]]]).tolist() == [
        [[5, 6, 7], [2, 3, -1]],
        [[8, 0, 0], [1, -1, -1]],
    ]
    assert word_list([[]]).shape == (1, 2, 0)
    assert pad([[1], [2, 3]], 9).tolist() == [[1, 9], [2, 3]]


@pytest.mark.parametrize(
    ("skip", "expected"), [("true", b" Once upon"), ("false", b" Once upon</s>")]
)
def test_texts_are_decoded_up_to_their_length(repository: Path, skip: str, expected: bytes) -> None:
    model = Postprocessing()
    model.initialize(
        model_args(repository, {"tokenizer_dir": "tokenizer", "skip_special_tokens": skip})
    )
    ids = [*TOKENIZER.encode("Once upon", add_special_tokens=False).ids, 2]
    tokens = np.array([[[*ids, 5, 5]]], np.int32)
    request = Request(
        {"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": np.array([[len(ids)]], np.int32)}, ["OUTPUT"]
    )
    (response,) = model.execute([request])
    (output,) = response.output_tensors()
    assert output.as_numpy().tolist() == [expected]


def postprocessed(repository: Path, *pieces: list[int]) -> list[str]:
    """The texts of one response for each piece, as upstream's clients take them."""
    model = Postprocessing()
    model.initialize(model_args(repository, {"tokenizer_dir": "tokenizer"}))
    requests = [
        Request(
            {
                "TOKENS_BATCH": np.array([[piece]], np.int32),
                "SEQUENCE_LENGTH": np.array([[len(piece)]], np.int32),
            },
            ["OUTPUT"],
        )
        for piece in pieces
    ]
    texts = []
    for response in model.execute(requests):
        (output,) = response.output_tensors()
        assert output.as_numpy().shape == (1,)
        texts.append(output.as_numpy()[0].decode("utf-8"))
    return texts


def test_a_further_end_id_at_the_end_has_no_text(repository: Path) -> None:
    """The engine leaves it in its output, knowing it as a stop word (stopCriteriaKernels.cu)."""
    cat, there = (TOKENIZER.token_to_id(piece) for piece in ("▁cat", "▁there"))
    path = repository / "tokenizer" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, cat]}))
    assert postprocessed(repository, [there, cat], [cat], [cat, there]) == [
        " there",
        "",
        " cat there",
    ]
    # The first one is upstream's own end id, which never comes.
    path.write_text(json.dumps({"eos_token_id": [cat, 2]}))
    assert postprocessed(repository, [there, cat]) == [" there cat"]


def test_texts_of_a_batch_and_its_beams_are_flat(repository: Path) -> None:
    model = Postprocessing()
    model.initialize(model_args(repository, {"tokenizer_dir": "tokenizer"}))
    there, cat = (TOKENIZER.token_to_id(piece) for piece in ("▁there", "▁cat"))
    tokens = np.array([[[there], [cat]], [[cat], [cat]]], np.int32)
    lengths = np.array([[1, 1], [1, 0]], np.int32)
    (response,) = model.execute(
        [Request({"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": lengths}, ["OUTPUT"])]
    )
    (output,) = response.output_tensors()
    assert output.as_numpy().tolist() == [b" there", b" cat", b" cat", b""]


@pytest.mark.parametrize(
    ("tokens", "lengths", "told"),
    [
        ([[[5, -1]]], [[2]], "TOKENS_BATCH has the id -1; ids are 0 and above"),
        ([[[5, 6]]], [[3]], "SEQUENCE_LENGTH must be between 0 and the 2 ids"),
        ([[[5, 6]]], [[-1]], "got -1"),
        ([[[5, 6]]], [[1, 1]], "which has the shape [1, 1, 2]; it has the shape [1, 2]"),
        ([[[5], [6]]], [[1]], "which has the shape [1, 2, 1]; it has the shape [1, 1]"),
    ],
)
def test_tokens_that_are_no_answer_are_refused_in_words(
    repository: Path, tokens: list[Any], lengths: list[Any], told: str
) -> None:
    model = Postprocessing()
    model.initialize(model_args(repository, {"tokenizer_dir": "tokenizer"}))
    request = Request(
        {
            "TOKENS_BATCH": np.array(tokens, np.int32),
            "SEQUENCE_LENGTH": np.array(lengths, np.int32),
        },
        ["OUTPUT"],
    )
    (response,) = model.execute([request])
    assert told in response.error().message()
    assert response.error().code() == TritonError.INVALID_ARG


def test_what_is_behind_a_text_may_be_anything(repository: Path) -> None:
    """TensorRT-LLM leaves it as it was, and an engine may have more tokens than its tokenizer."""
    model = Postprocessing()
    model.initialize(model_args(repository, {"tokenizer_dir": "tokenizer"}))
    cat, beyond = TOKENIZER.token_to_id("▁cat"), TOKENIZER.get_vocab_size() + 7
    tokens = np.array([[[cat, beyond, -1]]], np.int32)
    request = Request(
        {"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": np.array([[2]], np.int32)}, ["OUTPUT"]
    )
    (response,) = model.execute([request])
    (output,) = response.output_tensors()
    assert output.as_numpy().tolist() == [b" cat"]


def test_a_stream_of_the_ensemble_keeps_every_space(repository: Path) -> None:
    ids = [TOKENIZER.token_to_id(piece) for piece in ("▁Once", "▁upon", "▁a", "▁time", ",", "▁a")]
    assert TOKENIZER.decode(ids) == "Once upon a time, a"
    pieces = postprocessed(repository, *([token] for token in ids[1:]))
    assert pieces == [" upon", " a", " time", ",", " a"]
    assert postprocessed(repository, ids[1:]) == [" upon a time, a"]


def test_an_answer_with_its_prompt_begins_as_a_text_does(repository: Path) -> None:
    ids = TOKENIZER.encode("Once upon a time", add_special_tokens=False).ids
    assert postprocessed(repository, [1, *ids]) == ["Once upon a time"]


def test_bytes_that_are_no_character_spoil_no_line_in_front_of_them(repository: Path) -> None:
    pieces = ("▁cat", "<0x0A>", "<0xE5>", "<0xE5>", "▁was")
    ids = [TOKENIZER.token_to_id(piece) for piece in pieces]
    assert postprocessed(repository, ids, [1, *ids]) == [
        " cat\n\ufffd\ufffd was",
        "cat\n\ufffd\ufffd was",
    ]


def test_a_character_split_over_responses_of_the_ensemble_is_two_replacements(
    repository: Path,
) -> None:
    ids = TOKENIZER.encode("é", add_special_tokens=False).ids[1:]
    assert len(ids) == 2
    assert postprocessed(repository, ids[:1], ids[1:]) == ["\ufffd", "\ufffd"]
    assert postprocessed(repository, ids) == ["é"]


@pytest.mark.parametrize(
    ("name", "client_name"), [("QUERY", "text_input"), ("REQUEST_OUTPUT_LEN", "max_tokens")]
)
def test_a_missing_input_is_named_as_the_client_knows_it(
    repository: Path, name: str, client_name: str
) -> None:
    """Triton lets a request pass that has enough inputs, whichever they are."""
    tensors = inputs()
    del tensors[name]
    (response,) = opened(repository).execute([Request(tensors, OUTPUTS)])
    assert response.error().message() == f"the input {client_name} is missing"
