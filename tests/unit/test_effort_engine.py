"""What an engine takes of memory while it is measured, against the settings it is opened with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.effort.questions import Seen
from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target
from pipeline.targets.base import EngineEvaluation, NotMeasured
from pipeline.targets.openvino import measure
from pipeline.targets.openvino.options import build_config, runtime_properties
from pipeline.targets.vllm.commands import Served
from pipeline.targets.vllm.elsewhere import kv_cache_bytes
from pipeline.targets.vllm.measure import MeasuredElsewhere

from .test_effort import estimated, facts_of, recipe_of

EIGHT = facts_of("llama-3.1-8b")
GB = 10**9
# Three bytes for each of 5.68 GB of weights: INT4 in groups of 128, and two tables in 16 bits.
WEIGHTS = 3 * 5.68 * GB
# Keys and values of 32 layers, 8 heads and 128 features, in float32.
TOKEN = 2 * 32 * 8 * 128 * 4
# The libraries, and what there is beside them.
ALONE = 570e6


def on(length: int, batch: int, target: str = "openvino", **sections: Any) -> Recipe:
    sizes = {"max_seq_len": length, "max_batch_size": batch, "max_input_len": 512}
    compiled = {"target": target, **sizes, **sections.pop("compile", {})}
    return recipe_of(
        compile=compiled,
        evaluate={"engine_tokens": 20000, **sections.pop("evaluate", {})},
        **sections,
    )


def evaluation_of(recipe: Recipe) -> EngineEvaluation:
    found = get_target(recipe.compile.target).evaluation(recipe)
    assert not isinstance(found, NotMeasured)
    return found


def peaks(recipe: Recipe, **options: Any) -> tuple[int, int]:
    """The most that fidelity takes, and what both models take without an engine."""
    found = estimated(recipe, EIGHT, stages=("evaluate", "fidelity"), **options)
    return found["fidelity"].memory.likely, found["evaluate"].memory.likely


@pytest.mark.parametrize(("length", "batch"), [(1000, 2), (8192, 8), (8192, 1)])
@pytest.mark.parametrize(("precision", "value"), [(None, 4), ("f16", 2)])
def test_one_sequence_is_reserved_whatever_the_server_has_room_for(
    length: int, batch: int, precision: str | None, value: int, tmp_path: Path
) -> None:
    options = {"openvino": {"kv_cache_precision": precision}}
    recipe = on(length, batch, compile=options, serve={"max_tokens_in_paged_kv_cache": 50_000})
    reserved = evaluation_of(recipe).kv_cache(EIGHT).reserved
    # 1000 tokens are 32 blocks of 32.
    assert reserved == {1000: 1024, 8192: 8192}[length] * 2 * 32 * 8 * 128 * value
    config = {
        "build_config": build_config(recipe),
        "runtime": runtime_properties(recipe),
        "pretrained_config": {
            "vocab_size": 128256, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "head_size": 128, "quantization": {"quant_algo": "W4A16_AWQ"},
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = measure._settings(tmp_path)
    assert settings.properties["KV_CACHE_PRECISION"] == {4: "f32", 2: "f16"}[value]
    assert settings.num_kv_blocks * 32 * TOKEN * value // 4 == reserved


def test_an_engine_is_open_while_both_models_are_scored() -> None:
    for batch in (1, 8):
        whole, models = peaks(on(8192, batch))
        # The graph has the keys and values of the window that it computes, of 512 tokens.
        assert whole - models == pytest.approx(WEIGHTS + 512 * TOKEN, rel=0.01)
    # A question of 8,000 tokens is computed at once, too.
    task = {"name": "t", "file": "none.jsonl", "layout": "mmlu"}
    asked = on(8192, 1, evaluate={"tasks": [task]})
    whole, models = peaks(asked, asking=lambda _task: Seen((8000,)))
    assert whole - models == pytest.approx(WEIGHTS + 8000 * TOKEN, rel=0.01)
    # The file read back to float32, which keeps nothing of a token.
    whole, models = peaks(on(8192, 8, "llamacpp"))
    assert whole - models == pytest.approx(4 * 8.03 * GB, rel=0.01)


def test_what_is_reserved_is_there_when_both_models_are_gone() -> None:
    whole, models = peaks(on(131072, 1))
    assert models < 131072 * TOKEN
    assert whole == pytest.approx(ALONE + WEIGHTS + 131072 * TOKEN, rel=0.01)


def test_vllm_comes_behind_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = on(1024, 2, "vllm")
    elsewhere = MeasuredElsewhere("python", "1", Served.of(recipe), {}, 1023)
    target = get_target("vllm")
    monkeypatch.setattr(type(target), "evaluation", lambda _self, _recipe: elsewhere)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    # 1 GiB of cache unless the environment says another number.
    whole, models = peaks(recipe)
    assert whole == pytest.approx(max(models, ALONE + WEIGHTS + (1 << 30)), rel=0.01)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert peaks(recipe)[0] - whole == 3 << 30
    assert kv_cache_bytes({"VLLM_CPU_KVCACHE_SPACE": "a lot"}) == 0
