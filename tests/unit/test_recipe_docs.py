"""The recipe's page and schema: complete, as generated, and of one mind with the recipe itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import RecipeError
from pipeline.recipe.compile import CompileSection
from pipeline.recipe.docs import page_text, recipe_keys, recipe_schema, schema_text
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import ReadBy, attributes
from pipeline.recipe.tensorrt import DraftSection
from pipeline.targets import TARGETS, get_target

from ..conftest import PROJECT

CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))
# Numbers that count nothing.
PURE_NUMBERS = {"schema", "quantize.smoothquant_alpha", "quantize.calibration.seed"}

LEAST = """\
schema: 1
name: test
model: {source: some/model}
quantize: {format: int4_awq, calibration: {text: calibration.jsonl}}
evaluate: {text: heldout.jsonl}
"""


def leaves(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{place}.{name}" if place else name
        if isinstance(value, dict):
            yield from leaves(value, key)
        else:
            yield key, value


@pytest.fixture
def least(tmp_path: Path) -> Recipe:
    """A recipe in which every section is there and no key that has a default."""
    path = tmp_path / "recipe.yaml"
    path.write_text(LEAST)
    sections = ("quantize.search", "compile.tensorrt.lookahead", "compile.tensorrt.lora")
    recipe = load_recipe(path, [f"{name}={{}}" for name in sections])
    # No recipe may have it beside lookahead.
    tensorrt = recipe.compile.tensorrt.model_copy(update={"draft": DraftSection()})
    section = recipe.compile.model_copy(update={"tensorrt": tensorrt})
    return recipe.model_copy(update={"compile": section})


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    ("name", "text"), [("recipe.md", page_text), ("recipe.schema.json", schema_text)]
)
def test_the_files_are_what_the_models_say(name: str, text: Any) -> None:
    written = (PROJECT / "docs" / name).read_text(encoding="utf-8")
    assert written == text(), "the recipe changed: run 'make docs'"


def test_every_key_is_there_with_its_default(least: Recipe) -> None:
    """The independent side is the recipe itself, as pydantic writes it out."""
    given = {"name", "model.source", "quantize.format", "quantize.calibration.text"}
    given |= {"evaluate.text"}
    documented = {key.name: key for key in recipe_keys() if not key.section}
    values = dict(leaves(least.model_dump(by_alias=True)))
    assert documented.keys() == values.keys()
    assert {name for name, key in documented.items() if key.required} == given
    for name in documented.keys() - given:
        assert documented[name].default == values[name], name


def test_every_key_has_a_meaning_and_every_number_its_unit() -> None:
    silent = [key.name for key in recipe_keys() if not key.meaning.endswith(".")]
    assert not silent, "not in the Attributes of the model, or no sentence"
    numbers = [key for key in recipe_keys() if not key.section and _is_number(key.schema)]
    assert len(numbers) > 25
    assert {key.name for key in numbers if not key.unit} == PURE_NUMBERS


def _is_number(schema: Any) -> bool:
    kinds = [schema.get("type"), *(choice.get("type") for choice in schema.get("anyOf", ()))]
    items = schema.get("items", {}).get("type")
    return not {"integer", "number"}.isdisjoint([*kinds, items])


def test_no_meaning_is_left_of_a_key_that_is_gone() -> None:
    for model in {key.parent for key in recipe_keys()}:
        assert attributes(model).keys() == model.model_fields.keys(), model.__name__


# Every target's, although the engine's bytes do not depend on them: the checkpoint is cut for the
# ranks, workers only says how many are built at a time, and python only what measures the folder.
NOT_IN_THE_KEY = {
    ("llamacpp", "compile.tensor_parallel"),
    ("llamacpp", "compile.pipeline_parallel"),
    ("ollama", "compile.tensor_parallel"),
    ("ollama", "compile.pipeline_parallel"),
    ("openvino", "compile.tensor_parallel"),
    ("openvino", "compile.pipeline_parallel"),
    ("tensorrt", "compile.tensorrt.workers"),
    ("vllm", "compile.vllm.python"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_reads_what_the_page_says(target: str, least: Recipe) -> None:
    """The independent side is the target's own section, on which its cache key depends."""
    section = get_target(target).section(least)
    read = {name for name, _ in leaves(section) if name.startswith("compile.")}
    documented = {
        key.name
        for key in recipe_keys()
        if key.name.startswith("compile.")
        and not key.section
        and (not key.targets or target in key.targets)
    }
    absent = {name for name in documented if (target, name) in NOT_IN_THE_KEY}
    assert documented - absent == read


def test_a_key_is_of_a_target_that_there_is() -> None:
    assert {target for key in recipe_keys() for target in key.targets} == TARGETS.keys()


def test_a_key_that_several_targets_read_names_each(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ReadBy("tensorrt", "third")
    field = CompileSection.model_fields["gpu"]
    monkeypatch.setattr(field, "metadata", [own])
    key = next(key for key in recipe_keys() if key.name == "compile.gpu")
    assert key.description.endswith(" Read by the tensorrt and third targets only.")
    line = next(line for line in page_text().splitlines() if line.startswith("| `gpu` |"))
    assert line.endswith(" | tensorrt, third |")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_takes_every_recipe_of_the_project(path: Path, validator: Any) -> None:
    text = path.read_text(encoding="utf-8")
    validator.validate(yaml.safe_load(text))
    first = text.partition("\n")[0]
    head, _, place = first.partition("$schema=")
    assert head == "# yaml-language-server: "
    assert (path.parent / place).resolve() == PROJECT / "docs" / "recipe.schema.json"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("evaluate:", "evalute:"),
        ("name: test", "name: ../evil"),
        ("schema: 1", "schema: 2"),
        ("source: some/model", "revision: main"),
        ("source: some/model", "source: ''"),
        ("int4_awq,", "int3,"),
        ("int4_awq,", "int4_awq, group_sise: 64,"),
        ("int4_awq,", "int4_awq, group_size: 32,"),
        ("int4_awq,", "int4_awq, group_size: '64',"),
        ("int4_awq,", "int4_awq, smoothquant_alpha: 1.5,"),
        ("schema: 1", "compile: {max_seq_len: 0}"),
        ("schema: 1", "compile: {max_seq_len: true}"),
        ("schema: 1", "compile: {openvino: {inference_precision: fp16}}"),
        ("schema: 1", "compile: {tensorrt: {plugin_config: {gemm_plugins: auto}}}"),
        ("schema: 1", "serve: {decoupled: sometimes}"),
        ("schema: 1", "serve: {kv_cache_free_gpu_mem_fraction: 0}"),
        ("schema: 1", "bench: {concurrency: []}"),
        ("schema: 1", "model: null"),
    ],
)
def test_schema_and_recipe_refuse_the_same(
    old: str, new: str, tmp_path: Path, validator: Any
) -> None:
    text = LEAST.replace(old, new)
    assert text != LEAST
    if new.startswith("model"):
        text = text.replace("model: {source: some/model}\n", "")
    assert not validator.is_valid(yaml.safe_load(text))
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema: 1", ""),
        ("int4_awq,", "awq,"),
        ("int4_awq,", "int4_awq, kv_cache: null,"),
        ("int4_awq,", "int4_awq, smoothquant_alpha: 1,"),
        ("schema: 1", "compile:"),
        ("schema: 1", "compile: {tensorrt: {plugin_config: }}"),
        ("evaluate: {text: heldout.jsonl}", "evaluate:"),
        ("heldout.jsonl}", "heldout.jsonl, gates: {perplexity_increase: null}}"),
        ("schema: 1", "serve: {decoupled: both}"),
        ("schema: 1", "serve: {decoupled: false}"),
    ],
)
def test_schema_and_recipe_take_the_same(
    old: str, new: str, tmp_path: Path, validator: Any
) -> None:
    text = LEAST.replace(old, new)
    assert text != LEAST
    validator.validate(yaml.safe_load(text))
    (tmp_path / "recipe.yaml").write_text(text)
    load_recipe(tmp_path / "recipe.yaml")
