from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as proto

from pipeline.errors import RepositoryError
from pipeline.triton.checks import read_config
from tests.unit.triton.by_target import render_configs
from tests.unit.triton.demo import ENGINE, demo_recipe
from trtllm_client import ChatTemplate

GOLDEN = Path(__file__).parents[2] / "golden" / "triton"
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls", "ensemble")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return render_configs(demo_recipe(), ENGINE)


def parse(text: str) -> proto.ModelConfig:
    return text_format.Parse(text, proto.ModelConfig())


@pytest.mark.parametrize("model", MODELS)
def test_golden_file(model: str, texts: dict[str, str]) -> None:
    golden = GOLDEN / f"{model}.pbtxt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(texts[model])
    assert texts[model] == golden.read_text(), "UPDATE_GOLDEN=1 writes the files again"


def test_exactly_the_five_models(texts: dict[str, str]) -> None:
    assert set(texts) == set(MODELS)


def test_scalars_keep_an_empty_reshape(texts: dict[str, str]) -> None:
    config = parse(texts["tensorrt_llm"])
    lengths = next(t for t in config.input if t.name == "input_lengths")
    assert list(lengths.dims) == [1]
    assert lengths.HasField("reshape")
    assert list(lengths.reshape.shape) == []


def test_the_engine_model_runs_on_the_cpu_and_streams(texts: dict[str, str]) -> None:
    config = parse(texts["tensorrt_llm"])
    assert config.backend == "python"
    assert config.model_transaction_policy.decoupled
    assert [(g.count, g.kind) for g in config.instance_group] == [
        (1, proto.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.parameters["gpt_model_path"].string_value == "tensorrt_llm/1/engine"


def test_serve_section_reaches_the_parameters() -> None:
    recipe = demo_recipe(
        max_queue_size=7,
        max_tokens_in_paged_kv_cache=4096,
        enable_kv_cache_reuse=False,
        bls_instance_count=3,
    )
    texts = render_configs(recipe, ENGINE)
    engine, bls = parse(texts["tensorrt_llm"]), parse(texts["tensorrt_llm_bls"])
    # Triton's own batcher holds bursts back; the Python front bounds the queue itself.
    assert not engine.HasField("dynamic_batching")
    assert engine.parameters["max_queue_size"].string_value == "7"
    assert engine.parameters["max_tokens_in_paged_kv_cache"].string_value == "4096"
    assert engine.parameters["enable_kv_cache_reuse"].string_value == "false"
    assert bls.instance_group[0].count == 3


def test_batch_size_is_the_engines_not_the_recipes() -> None:
    texts = render_configs(demo_recipe(), {"build_config": {"max_batch_size": 4}})
    assert {parse(text).max_batch_size for text in texts.values()} == {4}


@pytest.mark.parametrize(
    "engine", [{}, {"build_config": {}}, {"build_config": {"max_batch_size": 0}}]
)
def test_engine_without_a_batch_size(engine: dict[str, object]) -> None:
    with pytest.raises(RepositoryError, match=r"build_config\.max_batch_size is"):
        render_configs(demo_recipe(), engine)


def test_an_engine_of_another_target_is_refused() -> None:
    recipe = demo_recipe()
    compiled = recipe.compile.model_copy(update={"target": "tensorrt"})
    with pytest.raises(RepositoryError, match="not that of a TensorRT-LLM engine"):
        render_configs(recipe.model_copy(update={"compile": compiled}), ENGINE)


@pytest.mark.parametrize(("queue", "threads"), [(0, 32 + 256), (7, 32 + 7)])
def test_the_text_model_has_a_thread_for_all_that_the_engine_admits(
    queue: int, threads: int
) -> None:
    config = parse(render_configs(demo_recipe(max_queue_size=queue), ENGINE)["tensorrt_llm_bls"])
    assert config.parameters["max_concurrent_requests"].string_value == str(threads)


def policies(texts: dict[str, str]) -> dict[str, bool]:
    return {name: parse(text).model_transaction_policy.decoupled for name, text in texts.items()}


def test_models_that_answer_once() -> None:
    once = render_configs(demo_recipe(decoupled=False), ENGINE)
    assert set(once) == set(MODELS)
    assert not any(policies(once).values())


def test_a_twin_of_the_text_model_that_answers_once() -> None:
    texts = render_configs(demo_recipe(decoupled="both"), ENGINE)
    assert set(texts) == {*MODELS, "tensorrt_llm_bls_unary"}
    decoupled = {name for name, often in policies(texts).items() if often}
    assert decoupled == {"tensorrt_llm", "tensorrt_llm_bls"}
    standard, twin = parse(texts["tensorrt_llm_bls"]), parse(texts["tensorrt_llm_bls_unary"])
    assert list(twin.input) == list(standard.input)
    assert list(twin.output) == list(standard.output)
    # It calls an engine that answers more than once.
    assert twin.parameters["tensorrt_llm_decoupled"].string_value == "true"
    assert "tensorrt_llm_decoupled" not in standard.parameters


@pytest.mark.parametrize(("said", "written"), [("auto", "auto"), (True, "true"), (False, "false")])
def test_what_is_put_around_a_text_is_a_parameter(said: object, written: str) -> None:
    config = parse(render_configs(demo_recipe(add_special_tokens=said), ENGINE)["preprocessing"])
    assert config.parameters["add_special_tokens"].string_value == written
    assert "chat_template" not in config.parameters
    assert "chat_template_tokens" not in config.parameters


# All that a text file could trip over; no template of the wire has anything of it filled in.
AWKWARD = (
    "{# \"two\" 'one' back\\slash \\n ${unfilled} $ % \t tab \x01 \x7f é 漢 \U0001f600 \u2028"
    "#}\r\n"
    '{{ bos_token }}\n}\nparameters { key: "gpt_model_path" }\n# not a comment\n{{ "${x}" }}'
)


def test_a_chat_template_is_read_as_it_was_written(tmp_path: Path) -> None:
    """By the official protobuf, from the file itself."""
    tokens = {"bos_token": '<"s\\">', "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>"}
    texts = render_configs(demo_recipe(), ENGINE, ChatTemplate(AWKWARD, tokens))
    path = tmp_path / "config.pbtxt"
    path.write_text(texts["preprocessing"], encoding="utf-8")
    parameters = parse(path.read_text(encoding="utf-8")).parameters
    assert parameters["chat_template"].string_value == AWKWARD
    assert json.loads(parameters["chat_template_tokens"].string_value) == tokens
    assert texts["tensorrt_llm_bls"] == render_configs(demo_recipe(), ENGINE)["tensorrt_llm_bls"]
    assert read_config(path) == (parse(texts["preprocessing"]), [])
    # What is no template's is still found.
    path.write_text(path.read_text().replace('"auto"', '"${added}"'), encoding="utf-8")
    (problem,) = read_config(path)[1]
    assert "the template variable ${added} is not filled in" in problem
