"""The table of formats: whole, without contradictions, and the only thing that its readers need."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from model_repo.tensorrt_llm.settings import __file__ as settings_file
from pipeline.errors import RecipeError, UnsupportedError
from pipeline.formats import (
    ALGOS,
    DEFAULT_GROUP_SIZE,
    FORMATS,
    KV_CACHES,
    REFUSED,
    Format,
    FormatName,
    GroupSize,
    KvCacheName,
    either,
)
from pipeline.preflight.model_checks import check_model
from pipeline.quantize.formats import quantization_section
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.stages import evaluate, quantize
from tests.conftest import PROJECT

ROWS = list(FORMATS.values())
NAMES = [row.name for row in ROWS]
# What checkpoints of released versions were cached under.
RECORDED = json.loads((PROJECT / "tests/golden/quantize_keys.json").read_text(encoding="utf-8"))
# Llama-2-7B's dimensions: 11008 is 86 x 128, and 43 x 256.
LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


def recipe(path: Path, *overrides: str) -> Recipe:
    path.write_text(
        "schema: 1\nname: t\nmodel: {source: m}\n"
        "quantize: {format: int4_awq, calibration: {text: c.txt}}\n"
    )
    return load_recipe(path, overrides)


def test_every_name_of_the_recipe_has_its_row() -> None:
    assert get_args(FormatName) == tuple(FORMATS)
    assert [row.name for row in ROWS] == list(FORMATS)
    assert get_args(KvCacheName) == tuple(KV_CACHES)
    sizes = {size for row in ROWS for size in row.group_sizes}
    assert set(get_args(GroupSize)) == sizes


def test_a_spelling_means_one_thing() -> None:
    spellings = [*NAMES, *(alias for row in ROWS for alias in row.aliases)]
    spellings += [name for row in REFUSED for name in row.names]
    assert len(set(spellings)) == len(spellings)
    assert [name for name in spellings if name != name.strip().lower()] == []


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_the_numbers_are_those_that_nvidias_name_says(row: Format) -> None:
    # W4A16: weights of 4 bits, activations of 16.
    said = re.match(r"W(\d+)A(\d+)", row.quant_algo)
    if said is None:
        # Ours and FP8 have no such name; what each is stands in its own.
        said = re.match(
            r"(\d+) (\d+)",
            {"FP8": "8 8", "NF4": "4 16", "INT8_WO": "8 16"}.get(
                row.quant_algo, "32 32" if row.name == "float32" else "16 16"
            ),
        )
    assert said is not None
    assert (row.weight_bits, row.activation_bits) == (int(said[1]), int(said[2]))


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_row_is_whole(row: Format) -> None:
    assert (row.dtype is None) == row.quantizes
    calibrated = row.quantizes and not row.own
    assert (row.preset is not None) == calibrated
    assert (row.calibration is not None) == calibrated
    assert (row.scales is not None) == row.quantizes
    assert (bool(row.group_sizes) or row.block is not None) == (row.scales == "group")
    assert not (row.group_sizes and row.block)
    assert row.group_sizes == () or DEFAULT_GROUP_SIZE in row.group_sizes
    assert list(row.group_sizes) == sorted(row.group_sizes)
    needs_another = row.multiple > 1 or not row.repeats_kv_heads
    assert bool(row.instead) == needs_another
    assert row.name not in row.instead


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_formats_of_one_quant_algo_differ_in_the_recipe_alone(row: Format) -> None:
    of_recipe: dict[str, Any] = {
        key: getattr(row, key)
        for key in (
            *("name", "aliases", "near", "dtype", "preset"),
            *("remedies", "instead", "calibration"),
        )
    }
    assert replace(ALGOS[row.quant_algo], **of_recipe) == row


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_remedies_name_formats_and_keys_that_exist(row: Format, tmp_path: Path) -> None:
    assert set(row.instead) <= set(NAMES)
    for name in re.findall(r"format (\S+)", row.remedy()):
        assert name in NAMES
    for key, value in re.findall(r"(quantize\.\w+): (\S+)", row.remedy()):
        recipe(tmp_path / "recipe.yaml", f"quantize.format={row.name}", f"{key}={value}")


@pytest.mark.parametrize("name", [name for name in RECORDED if name.endswith(".yaml")])
def test_checkpoints_of_shipped_recipes_stay_cached(name: str) -> None:
    found = load_recipe(PROJECT / "configs" / name, [])
    assert quantize.section(found) == RECORDED[name]["key"]


@pytest.mark.parametrize("name", [name for name in RECORDED if not name.endswith(".yaml")])
def test_each_format_keeps_its_key_and_its_section(name: str, tmp_path: Path) -> None:
    found = recipe(tmp_path / "recipe.yaml", f"quantize.format={name}")
    assert quantize.section(found) == RECORDED[name]["key"]
    assert quantization_section(found.quantize) == RECORDED[name]["checkpoint"]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_what_is_computed_otherwise_is_measured_again(row: Format, tmp_path: Path) -> None:
    """A checkpoint whose bytes stay the same keeps its digest, and evaluation its input."""
    overrides = (f"quantize.format={row.name}", "evaluate={text: h.txt}")
    section = evaluate.section(recipe(tmp_path / "recipe.yaml", *overrides))
    assert section.get("scales") == (2 if row.name == "w4a8_awq" else None)


def test_a_group_size_that_the_format_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(FORMATS, "int4_awq", replace(FORMATS["int4_awq"], group_sizes=(64,)))
    recipe(tmp_path / "recipe.yaml", "quantize.group_size=64")
    with pytest.raises(RecipeError, match="int4_awq has groups of 64, not group_size 128"):
        recipe(tmp_path / "recipe.yaml")


def test_a_multiple_binds_formats_without_groups_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = replace(FORMATS["fp8"], multiple=256, instead=("int8_sq",))
    monkeypatch.setitem(FORMATS, "fp8", row)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA2_7B))
    fp8 = ["quantize.format=fp8", "compile.target=tensorrt"]
    check_model(recipe(tmp_path / "recipe.yaml", *fp8), tmp_path)
    with pytest.raises(
        UnsupportedError,
        match=r"\(quantize\.format\): out_features 11008 of mlp\.fc is not a multiple of 512\. "
        r"fp8 with tensor_parallel 2 needs multiples of 256 x 2\. Choose a "
        r"tensor_parallel of 1, or set quantize\.format to int8_sq or float16\.",
    ):
        check_model(recipe(tmp_path / "recipe.yaml", *fp8, "compile.tensor_parallel=2"), tmp_path)


def test_the_engine_front_knows_which_formats_multiply_integers() -> None:
    (prefix,) = re.findall(r'startswith\("(W\w+)"\)', Path(settings_file).read_text())
    integers = {row.quant_algo for row in ROWS if row.activations == "int8"}
    assert {algo for algo in ALGOS if algo.startswith(prefix)} == integers


def test_a_name_of_our_own_is_none_of_nvidias() -> None:
    """TensorRT-LLM 1.2's ``QuantAlgo`` (tensorrt_llm/quantization/mode.py), all of it."""
    upstream = [
        "W8A16",
        "W4A16",
        "W4A16_AWQ",
        "W4A8_AWQ",
        "W8A16_GPTQ",
        "W4A16_GPTQ",
        "W8A8_SQ_PER_CHANNEL",
        "W8A8_SQ_PER_TENSOR_PLUGIN",
        "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
        "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
        "W4A8_QSERVE_PER_GROUP",
        "W4A8_QSERVE_PER_CHANNEL",
        "FP8",
        "FP8_PER_CHANNEL_PER_TOKEN",
        "FP8_BLOCK_SCALES",
        "INT8",
        "MIXED_PRECISION",
        "NVFP4",
        "W4A8_NVFP4_FP8",
        "W4A8_MXFP4_FP8",
        "W4A8_MXFP4_MXFP8",
        "W4A16_MXFP4",
        "NO_QUANT",
    ]
    for row in ROWS:
        assert (row.quant_algo in upstream) != row.own


def test_formats_are_listed_as_a_sentence_does() -> None:
    awq, smooth, half = (FORMATS[name] for name in ("int4_awq", "int8_sq", "float16"))
    assert either([half, smooth, awq]) == "int4_awq, int8_sq or float16"
    assert either([smooth, awq]) == "int4_awq or int8_sq"
    assert either([half]) == "float16"
