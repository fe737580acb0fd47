from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_repo.tensorrt_llm.settings import EngineSettings, blocks, read_settings
from pipeline.targets.openvino.memory import kv_bytes_per_token
from pipeline.targets.openvino.triton_model import openvino_engine
from tests.unit.openvino.test_rope import facts
from tests.unit.triton.demo import demo_recipe

BUILD = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 100, "max_num_tokens": 2048}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    engine = tmp_path / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    (engine / "config.json").write_text(
        json.dumps(
            {
                "pretrained_config": {"vocab_size": 512},
                "build_config": BUILD,
                "runtime": {"INFERENCE_PRECISION_HINT": "f32"},
            }
        )
    )
    return tmp_path


def read(repository: Path, **parameters: str) -> EngineSettings:
    return read_settings(repository, {"gpt_model_path": "tensorrt_llm/1/engine", **parameters})


def test_the_parameters_that_the_repository_stage_writes_are_understood(repository: Path) -> None:
    recipe = demo_recipe(
        max_queue_size=7,
        exclude_input_in_output=False,
        enable_kv_cache_reuse=False,
        batch_scheduler_policy="max_utilization",
        max_tokens_in_paged_kv_cache=1000,
        cancellation_check_period_ms=250,
        max_token_hold_ms=150,
    )
    settings = read_settings(repository, openvino_engine(recipe, {}).parameters)
    assert settings.engine_dir == repository / "tensorrt_llm/1/engine"
    assert (settings.max_queue_size, settings.guaranteed_no_evict) == (7, False)
    assert (settings.exclude_input_in_output, settings.enable_prefix_caching) == (False, False)
    assert settings.num_kv_blocks == 31  # 1000 tokens hold 31 whole blocks of 32
    assert settings.cancellation_check_period == 0.25
    assert settings.max_token_hold == 0.15
    assert settings.properties == {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_algo": "W8A8_SQ_PER_CHANNEL"}, True),
        ({"quant_algo": "W4A16_AWQ"}, False),
        ({"quant_algo": None}, False),
        (None, False),
    ],
)
def test_engines_that_multiply_int8_are_told_from_others(
    repository: Path, quantization: object, expected: bool
) -> None:
    path = repository / "tensorrt_llm/1/engine/config.json"
    config = json.loads(path.read_text())
    config["pretrained_config"]["quantization"] = quantization
    path.write_text(json.dumps(config))
    assert read(repository).int8_products is expected


def test_the_cache_holds_a_full_batch_by_default(repository: Path) -> None:
    assert read(repository).num_kv_blocks == 4 * blocks(100) == 16


def test_steps_are_kept_short_because_they_hold_the_interpreter_lock(repository: Path) -> None:
    assert read(repository).max_num_batched_tokens == 256
    assert read(repository).max_input_len == 64
    whole_prompts = read(repository, enable_chunked_context="false")
    assert whole_prompts.max_input_len == 64
    assert (whole_prompts.dynamic_split_fuse, whole_prompts.max_num_batched_tokens) == (False, 100)


def test_a_prompt_that_may_not_be_cut_must_fit_in_one_step(repository: Path) -> None:
    """As TensorRT-LLM's: TensorRT-LLM issues 2717 and 2702."""
    path = repository / "tensorrt_llm/1/engine/config.json"
    engine = json.loads(path.read_text())
    engine["build_config"]["max_num_tokens"] = 48
    path.write_text(json.dumps(engine))
    assert read(repository).max_input_len == 64
    assert read(repository, enable_chunked_context="false").max_input_len == 48


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "u8"])
def test_the_cache_takes_what_the_compile_target_plans_with(
    repository: Path, precision: str
) -> None:
    path = repository / "tensorrt_llm/1/engine/config.json"
    engine = json.loads(path.read_text())
    assert read(repository).kv_bytes == 0
    engine["runtime"]["KV_CACHE_PRECISION"] = precision
    model = {"head_size": 64, "num_hidden_layers": 4, "num_key_value_heads": 2}
    engine["pretrained_config"] |= model
    path.write_text(json.dumps(engine))
    planned = kv_bytes_per_token(facts(num_hidden_layers=4, num_key_value_heads=2), precision)
    assert facts().head_size == 64
    assert read(repository).kv_bytes == 16 * 32 * planned


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("gpt_model_path", "", "gpt_model_path .engine directory. is missing"),
        ("batch_scheduler_policy", "greedy", "batch_scheduler_policy is 'greedy'; known:"),
        ("enable_kv_cache_reuse", "maybe", "enable_kv_cache_reuse is 'maybe'"),
        ("max_queue_size", "-1", "max_queue_size is '-1'"),
        ("max_tokens_in_paged_kv_cache", "96", "one sequence of max_seq_len 100 needs 128"),
    ],
)
def test_a_wrong_parameter_is_named(repository: Path, name: str, value: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(repository, **{name: value})
