"""The source stage: only a whole safetensors checkpoint gets through."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError, SourceError
from pipeline.progress import Silent
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.stages import source
from pipeline.stages.base import StageContext

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


def safetensors_bytes(names: tuple[str, ...] = ("a",)) -> bytes:
    """A valid file of 2 x 2 float32 tensors, by the format's own definition."""
    header = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * i, 16 * i + 16]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16 * len(names))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors_bytes())
    return directory


def _recipe(tmp_path: Path, model: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"schema: 1\nname: t\nmodel: {{source: '{model}'}}\nquantize: {{format: fp16}}\n"
    )
    return load_recipe(path)


def _run(tmp_path: Path, model: Path) -> tuple[dict[str, Any], list[str]]:
    output = tmp_path / "output"
    output.mkdir()
    recipe = _recipe(tmp_path, str(model))
    facts = source.run(StageContext(recipe, {}, output, Silent()))
    return facts, sorted(path.name for path in output.iterdir())


def test_a_snapshot_is_copied_without_strangers(tmp_path: Path, model: Path) -> None:
    for stranger in ("optimizer.pt", "notes.txt", "modeling_evil.py", "pytorch_model.bin"):
        (model / stranger).write_text("x")
    facts, names = _run(tmp_path, model)
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert facts["parameters"] == 4
    assert facts["dtypes"] == ["F32"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_with_the_reason(
    tmp_path: Path, model: Path, name: str
) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(SourceError, match=f"{name}, which is refused.*run any code.*Convert"):
        _run(tmp_path, model)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:-3], "should have"),
        (lambda data: data + b"x", "should have"),
        (lambda data: data[:20], "header claims"),
        (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "header claims"),
        (lambda data: data[:8] + b"!" + data[9:], "damaged"),
        (lambda _data: b"", "damaged"),
    ],
)
def test_damaged_weights_are_found_before_any_work(
    tmp_path: Path, model: Path, damage, expected: str
) -> None:
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=expected) as caught:
        _run(tmp_path, model)
    assert "model.safetensors" in str(caught.value)


def test_a_file_without_read_permission_is_named(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root reads everything, so the refusal of the kernel is played.
    def refused(_source: Path, _target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source.shutil, "copyfile", refused)
    with pytest.raises(SourceError, match=r"config\.json: a model file cannot be read.*permission"):
        _run(tmp_path, model)


def test_a_missing_shard_is_named(tmp_path: Path, model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="1 tensors of the index are in no file, the first is b"):
        _run(tmp_path, model)


def test_a_missing_tokenizer_and_an_empty_directory(tmp_path: Path, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"there is no tokenizer\.json"):
        _run(tmp_path, model)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="not a Hugging Face checkpoint"):
        source.run(StageContext(_recipe(tmp_path, str(empty)), {}, tmp_path, Silent()))


def test_a_path_that_does_not_exist_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:3 \(model\.source\).*does not exist"):
        source.material(_recipe(tmp_path, "./no/such/model"))


def test_a_file_instead_of_a_directory(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RecipeError, match="is a file"):
        source.material(_recipe(tmp_path, str(model / "config.json")))


def test_a_pinned_hub_id_needs_no_network_to_plan(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "org/name")
    pinned = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"revision": "0" * 40})}
    )
    assert source.material(pinned) == {"hub": "org/name", "commit": "0" * 40}


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"org/name cannot be fetched.*local directory"):
        source.material(_recipe(tmp_path, "org/name"))


def test_touching_a_file_changes_the_key_only(tmp_path: Path, model: Path) -> None:
    recipe = _recipe(tmp_path, str(model))
    before = source.material(recipe)
    (model / "tokenizer.json").write_text("{}  ")
    assert source.material(recipe) != before
