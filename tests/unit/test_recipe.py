"""Every mistake in a recipe names file, line, key, reason and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import RecipeError, UsageError
from pipeline.recipe_file import load_recipe

from ..conftest import PROJECT

BASE = """\
schema: 1
name: test
model:
  source: some/model
quantize:
  format: int4_awq
  group_size: 64
  calibration:
    text: calibration.jsonl
compile:
  max_input_len: 100
  max_seq_len: 200
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return path


def test_defaults_and_values_are_read(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    assert recipe.quantize.format == "int4_awq"
    assert recipe.quantize.group_size == 64
    assert recipe.compile.max_seq_len == 200
    assert recipe.compile.target == "openvino"
    assert recipe.serve.max_queue_size == 256


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("group_size: 64", "group_size: 32", r"recipe\.yaml:7: quantize\.group_size.*64 or 128"),
        ("group_size: 64", "group_sise: 64", r"recipe\.yaml:7: .*Did you mean group_size\?"),
        ("group_size: 64", "group_size: '64'", r"recipe\.yaml:7: quantize\.group_size"),
        ("max_input_len: 100", "max_input_len: 300", r"recipe\.yaml:10: .*larger than max_seq_len"),
        ("max_seq_len: 200", "max_seq_len: 0", r"recipe\.yaml:12: .*greater than 0"),
        ("max_seq_len: 200", "max_seq_len: true", r"recipe\.yaml:12: .*valid integer"),
        ("format: int4_awq", "format: int8_wo", r"recipe\.yaml:6: .*int8_wo is refused"),
        ("format: int4_awq", "format: int3", r"recipe\.yaml:6: .*'int3' is not one of"),
        ("name: test", "name: ../evil", r"recipe\.yaml:2: name"),
        ("name: test", "nome: test", r"(?s)recipe\.yaml.*name is wrong.*required"),
        ("  source: some/model", "  source: ''", r"recipe\.yaml:4: model\.source"),
        ("schema: 1", "schema: 2", r"recipe\.yaml:1: schema is wrong"),
        (
            "  calibration:\n    text: calibration.jsonl\n",
            "",
            r"recipe\.yaml:5: quantize.*needs quantize\.calibration\.text",
        ),
        (
            "  source: some/model",
            "  source: some/model\n  trust_remote_code: true\n  revision: main",
            r"recipe\.yaml:3: model.*commit hash of 40 digits",
        ),
        ("max_seq_len: 200", "tokens_per_block: 64", r"blocks of 32 tokens"),
    ],
)
def test_a_wrong_value_names_its_place(
    recipe_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in BASE
    recipe_path.write_text(BASE.replace(old, new))
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(recipe_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [unclosed", r"recipe\.yaml:\d+: the recipe is not valid YAML"),
        ("a: 1\na: 2\n", r"recipe\.yaml:2: .*given twice"),
        ("", "empty or not a mapping"),
        ("- a\n- b\n", "empty or not a mapping"),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused(recipe_path: Path, text: str, expected: str) -> None:
    recipe_path.write_text(text)
    with pytest.raises(RecipeError, match=expected):
        load_recipe(recipe_path)


def test_a_missing_file_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "binary.yaml")


def test_set_overrides_before_validation(recipe_path: Path) -> None:
    recipe = load_recipe(
        recipe_path, ["compile.max_seq_len=300", "quantize.calibration.samples=8", "name=other"]
    )
    assert recipe.compile.max_seq_len == 300
    assert recipe.quantize.calibration is not None
    assert recipe.quantize.calibration.samples == 8
    assert recipe.name == "other"


@pytest.mark.parametrize(
    ("override", "error", "expected"),
    [
        ("compile.max_seq_len", UsageError, "not an assignment"),
        ("=3", UsageError, "not an assignment"),
        ("name.x=3", UsageError, "name is not a section"),
        ("compile.max_seq_len=[", UsageError, "not valid YAML"),
        ("compile.max_seq_len=50", RecipeError, "larger than max_seq_len"),
        ("compile.max_sequence_len=50", RecipeError, r"Did you mean max_seq_len\?"),
    ],
)
def test_a_wrong_override_is_named(
    recipe_path: Path, override: str, error: type[UsageError], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        load_recipe(recipe_path, [override])


@pytest.mark.parametrize(
    ("alias", "name"),
    [("awq", "int4_awq"), ("int8_smoothquant", "int8_sq"), ("W4A16_AWQ", "int4_awq")],
)
def test_format_aliases_store_one_name(recipe_path: Path, alias: str, name: str) -> None:
    assert load_recipe(recipe_path, [f"quantize.format={alias}"]).quantize.format == name


def test_place_falls_back_to_the_enclosing_section(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["compile.max_batch_size=4"])
    assert recipe.place("quantize.group_size").endswith("recipe.yaml:7 (quantize.group_size)")
    assert recipe.place("compile.max_num_tokens").endswith(":10 (compile.max_num_tokens)")
    assert recipe.place("compile.max_batch_size").startswith("--set compile.max_batch_size=4")


def test_an_unquantized_format_and_another_dtype_contradict(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"quantize\.format bfloat16 contradicts model\.dtype"):
        load_recipe(recipe_path, ["quantize.format=bfloat16", "model.dtype=float16"])
    assert load_recipe(recipe_path, ["quantize.format=bfloat16"]).quantize.format == "bfloat16"


def test_a_kv_cache_needs_a_quantized_format(recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match="kv_cache needs a quantized format"):
        load_recipe(recipe_path, ["quantize.format=float16", "quantize.kv_cache=int8"])


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.evaluate is not None
    assert recipe.evaluate.text != (recipe.quantize.calibration or recipe.evaluate).text or (
        recipe.quantize.calibration is None
    )
