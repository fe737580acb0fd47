"""The roofline, against sums done by hand and the classic example."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import api
from pipeline.economics import rates
from pipeline.economics.bounds import lines, roofline, with_reached
from pipeline.economics.hardware import Hardware, Setting
from pipeline.economics.roofline import Load, decode_bound, float32_load, load_of
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import CostSection, Recipe
from pipeline.targets.tensorrt.gpus import GPUS
from tests.conftest import PROJECT

A100 = Hardware("A100", "a data sheet", 2e12, {"float32": 19.5e12, "float16": 312e12}, 80 * 10**9)
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def _llama() -> ModelFacts:
    return ModelFacts.from_config(LLAMA_2_7B, "config.json")


def _recipe(**sections: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": "m"},
            "quantize": {"format": "float16"},
            "compile": {"max_seq_len": 1000, "max_batch_size": 8, "max_input_len": 500},
            **sections,
        }
    )


def test_seven_billion_parameters_in_float32_take_an_a100_14_ms_a_token() -> None:
    """28 GB over 2 TB/s, as every introduction to the subject has it."""
    load = Load(28 * 10**9, 28 * 10**9, "float32", 7 * 10**9, 0, 0)
    bound = decode_bound(load, A100, batch=1, context=0)
    assert bound.seconds == pytest.approx(14e-3)
    assert bound.tokens_per_second == pytest.approx(71.43, abs=0.01)
    assert bound.by == "memory"


def test_the_same_model_from_its_config() -> None:
    # 6,738,415,616 parameters, as published; the embedding of 32000 x 4096 is not read whole.
    load = float32_load(_llama(), 0, FORMATS["float16"])
    assert load.weights == 6_738_415_616 * 4
    assert load.read == (6_738_415_616 - 32000 * 4096) * 4


def test_weights_of_the_demo_model_are_those_of_its_file() -> None:
    directory = PROJECT / "examples/tiny_llama/model"
    facts = ModelFacts.from_directory(directory)
    data = (directory / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    parameters = sum(math.prod(tensor["shape"]) for tensor in header.values())
    assert not facts.tie_word_embeddings
    assert load_of(facts, FORMATS["float16"], 0).weights == 2 * parameters


def test_a_large_batch_is_bound_by_arithmetic() -> None:
    # 2 operations x 1000 x 10^9 weights over 312 T: 6.4 ms; 2 GB over 2 TB/s: 1 ms.
    load = Load(2 * 10**9, 2 * 10**9, "float16", 10**9, 0, 0)
    bound = decode_bound(load, A100, batch=1000, context=0)
    assert bound.by == "arithmetic"
    assert bound.seconds == pytest.approx(2 * 1000 * 1e9 / 312e12)


def test_contexts_are_read_for_every_sequence() -> None:
    load = Load(0, 1000, "float16", 1, 0, kv_bytes=10)
    assert decode_bound(load, A100, batch=4, context=50).bytes == 1000 + 4 * 50 * 10


def test_two_devices_halve_the_time() -> None:
    load = Load(10**9, 10**9, "float16", 10**9, 0, 0)
    one, two = (decode_bound(load, replace(A100, devices=n), 1, 0).seconds for n in (1, 2))
    assert one == pytest.approx(2 * two)


def test_what_the_machine_cannot_compute_is_left_out_and_what_is_not_known_is_not() -> None:
    setting = Setting(A100, kv_bytes_per_token=1000)
    names = [row.format for row in roofline(_recipe(), _llama(), setting).formats]
    assert names == ["float32", "float16", "int4_awq", "int4_gptq"]
    unknown = replace(A100, operations={"float16": 312e12, "int8": None})
    found = roofline(_recipe(), _llama(), replace(setting, hardware=unknown))
    assert "int8_sq" in [row.format for row in found.formats]
    assert any("How fast int8 is multiplied is not known" in line for line in lines(found, COST))


COST = CostSection()


def test_as_many_sequences_as_fit_and_no_more_than_the_engine_takes() -> None:
    # Weights of 13.48 GB leave 66.52 GB, of which a tenth is for keys and values of 1 MB a token:
    # 6652 tokens, six sequences of 1000.
    setting = Setting(A100, kv_bytes_per_token=10**6, kv_share=0.1)
    (row,) = [r for r in roofline(_recipe(), _llama(), setting).formats if r.planned]
    assert (row.kv_tokens, row.sequences) == (6652, 6)
    room = replace(setting, kv_share=1.0)
    (row,) = [r for r in roofline(_recipe(), _llama(), room).formats if r.planned]
    assert (row.kv_tokens, row.sequences) == (66523, 8)


def test_a_model_that_does_not_fit_says_so_and_has_no_price() -> None:
    small = replace(A100, memory=10**9)
    recipe = _recipe(cost={"price_per_hour": 1.5})
    found = roofline(recipe, _llama(), Setting(small, 10**6))
    (row,) = [r for r in found.formats if r.planned]
    assert (row.sequences, row.together, row.cost_per_million) == (0, None, None)
    assert any("does not fit" in line for line in lines(found, recipe.cost))


def test_the_price_is_that_of_the_bound_at_the_stated_utilization() -> None:
    recipe = _recipe(cost={"price_per_hour": 1.5, "utilization": 0.25})
    (row,) = [r for r in roofline(recipe, _llama(), Setting(A100, 10**5)).formats if r.planned]
    assert row.together
    assert row.cost_per_million == pytest.approx(1.5 / (row.together * 3600 * 0.25) * 1e6)


def test_what_a_load_test_reached_is_compared_at_its_own_contexts() -> None:
    recipe, setting = _recipe(), Setting(A100, kv_bytes_per_token=10**6)
    measured = {
        "concurrency": 8,
        "requests": 16,
        "input_tokens": 1600,
        "output_tokens": 320,
        "tokens_per_second": {"value": 500.0, "low": 490.0, "high": 510.0},
    }
    (level,) = with_reached(
        roofline(recipe, _llama(), setting), recipe, _llama(), [measured]
    ).reached
    # 100 tokens of prompt and half of 20 generated, for each of 8 streams.
    read = (6_738_415_616 - 32000 * 4096) * 2 + 8 * 110 * 10**6
    assert level.bound == pytest.approx(8 / (read / 2e12))
    assert level.share == pytest.approx(500 / level.bound)


@pytest.mark.parametrize(
    "name",
    ["A100-40GB", "A100-80GB", "A10", "L4", "L40S", "H100-80GB", "H200", "B200", "RTX-4090"],
)
def test_the_gpus_that_people_rent_have_rates_with_their_source(name: str) -> None:
    found = GPUS[name].rates
    assert found
    assert found.source.startswith("NVIDIA")
    # Tensor cores are faster the fewer bits there are, and always faster than plain ones.
    assert found.float32 < found.float16 < (found.int8 or 0)
    assert (found.fp8 is None) == (GPUS[name].sm < 89)


def test_plan_shows_a_table_for_a_named_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B))
    monkeypatch.chdir(PROJECT)
    recipe = api.load_recipe(
        "configs/llama-3.1-8b-int4-awq.yaml",
        [
            f"model.source={tmp_path}",
            "compile.gpu=A100-80GB",
            "compile.max_seq_len=4096",
            "cost.price_per_hour=1.5",
        ],
    )
    found = api.plan(recipe, tmp_path / "build").roofline
    assert found
    shown = "\n".join(lines(found, recipe.cost))
    # Its table in float32: 26.4 GB over 2039 GB/s, with half of 4096 tokens of keys and values.
    values = 2 * 32 * 4096 * 2 * 2048
    by_hand = 2039e9 / ((6_738_415_616 - 32000 * 4096) * 4 + values)
    assert found.formats[0].alone == pytest.approx(by_hand)
    assert "2,039 GB/s" in shown
    assert "NVIDIA A100 data sheet" in shown
    assert "* int4_awq" in shown
    assert "USD/million" in shown
    assert "at 1.5 USD an hour and busy 50 % of the time" in shown
    _, _, *table = lines(found, recipe.cost)
    assert max(map(len, table[: 2 + len(found.formats)])) <= 80


def test_a_gpu_without_rates_and_a_recipe_without_a_gpu_have_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B))
    monkeypatch.chdir(PROJECT)
    for gpu in ("RTX-A6000", "null"):
        recipe = api.load_recipe(
            "configs/llama-3.1-8b-int4-awq.yaml",
            [f"model.source={tmp_path}", f"compile.gpu={gpu}", "compile.max_seq_len=4096"],
        )
        assert api.plan(recipe, tmp_path / "build").roofline is None


def test_the_rates_of_this_processor_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpy")
    first = rates.processor(tmp_path, None)
    assert first
    # No processor reads less than a gigabyte a second or multiplies less than a billion numbers.
    assert first.bandwidth > 1e9
    assert (first.operations["float32"] or 0) > 1e9
    assert rates.processor(tmp_path, None) == first
    monkeypatch.setattr(rates, "processor_name", lambda: "another")
    other = rates.processor(tmp_path, None)
    assert other
    assert "another" in other.name


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"processor": 1}', "null"])
def test_a_torn_file_of_rates_is_measured_again(torn: str, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    (tmp_path / rates.NAME).write_text(torn)
    assert rates.processor(tmp_path, None)
    assert json.loads((tmp_path / rates.NAME).read_text())["bytes_per_second"] > 0


@pytest.mark.parametrize("key", ["bytes_per_second", "float32_operations_per_second"])
@pytest.mark.parametrize("rate", ["1e400", "NaN", "0", "-5", '"fast"', "null", "true"])
def test_a_rate_that_is_none_is_measured_again(key: str, rate: str, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    rates.processor(tmp_path, None)
    path = tmp_path / rates.NAME
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, key: "RATE"}).replace('"RATE"', rate))
    found = rates.processor(tmp_path, None)
    assert found
    assert 1e9 < found.bandwidth < 1e15
    assert 1e9 < (found.operations["float32"] or 0) < 1e18


def test_rates_nested_too_deep_are_measured_again(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    (tmp_path / rates.NAME).write_text("[" * 100_000)
    assert rates.processor(tmp_path, None)


def test_more_than_the_bound_is_explained() -> None:
    recipe, setting = _recipe(), Setting(A100, kv_bytes_per_token=10**6)
    measured = {"concurrency": 1, "requests": 1, "input_tokens": 10, "output_tokens": 1}

    def text(speed: float) -> str:
        row = {**measured, "tokens_per_second": {"value": speed}}
        found = with_reached(roofline(recipe, _llama(), setting), recipe, _llama(), [row])
        return "\n".join(lines(found, recipe.cost))

    assert "More was reached than this allows" in text(1e6)
    assert "More was reached" not in text(1.0)


def test_a_plan_leaves_no_folder_behind(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    rates.processor(tmp_path / "absent", None)
    assert not (tmp_path / "absent").exists()
