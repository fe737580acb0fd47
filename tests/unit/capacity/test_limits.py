"""What a simulated engine admits is what the engine's own front reads of its repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_repo.tensorrt_llm.settings import TOKENS_PER_BLOCK, read_settings
from pipeline.economics.capacity.build import left_out, limits_of
from pipeline.recipe.file import load_recipe
from pipeline.targets import get_target
from tests.conftest import PROJECT


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["compile.max_num_tokens=192"],
        ["compile.max_batch_size=64", "compile.max_num_tokens=64"],
        ["serve.enable_chunked_context=false"],
        ["serve.max_tokens_in_paged_kv_cache=1000", "serve.max_queue_size=7"],
    ],
)
def test_limits_are_those_of_the_engines_front(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    recipe = load_recipe(PROJECT / "configs" / "demo.yaml", overrides)
    build, serve = recipe.compile, recipe.serve
    engine = {
        "build_config": {
            name: getattr(build, name)
            for name in ("max_batch_size", "max_seq_len", "max_input_len", "max_num_tokens")
        },
        "pretrained_config": {"vocab_size": 100},
    }
    (tmp_path / "config.json").write_text(json.dumps(engine))
    parameters: dict[str, Any] = {
        "gpt_model_path": ".",
        "enable_chunked_context": str(serve.enable_chunked_context).lower(),
        "max_queue_size": str(serve.max_queue_size),
    }
    if serve.max_tokens_in_paged_kv_cache:
        parameters["max_tokens_in_paged_kv_cache"] = str(serve.max_tokens_in_paged_kv_cache)
    front = read_settings(tmp_path, parameters)
    limits = limits_of(recipe, get_target("openvino").step_tokens(recipe))
    assert limits.slots == front.max_batch_size
    assert limits.kv_blocks == front.num_kv_blocks
    assert limits.block_tokens == TOKENS_PER_BLOCK
    assert limits.step_tokens == front.max_num_batched_tokens
    assert limits.queue == front.max_queue_size
    assert limits.chunked == front.dynamic_split_fuse


def test_a_kv_cache_that_the_recipe_leaves_open_can_be_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(PROJECT)
    recipe = load_recipe(PROJECT / "configs" / "demo.yaml", [])
    assert limits_of(recipe, 256, kv_tokens=3200).kv_blocks == 100
    assert limits_of(recipe, 256).kv_blocks == 32 * 16
    (said,) = left_out(recipe, None)
    assert "taken to hold 32 sequences of 512 tokens" in said
    assert left_out(recipe, 3200) == []


def test_another_policy_than_the_simulated_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    overrides = ["serve.batch_scheduler_policy=max_utilization"]
    overrides.append("serve.max_tokens_in_paged_kv_cache=4096")
    recipe = load_recipe(PROJECT / "configs" / "demo.yaml", overrides)
    (said,) = left_out(recipe, None)
    assert said.startswith("The recipe says max_utilization, and guaranteed_no_evict is simulated")
