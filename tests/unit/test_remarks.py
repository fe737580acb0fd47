"""What plan has to say of a model; the config.json files are the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.models.facts import ModelFacts
from pipeline.preflight.remarks import remarks, source_dtype
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe

from ..conftest import PROJECT
from .test_source import safetensors_bytes

DATA = PROJECT / "tests" / "data"
PUBLISHED = sorted(
    path for path in (PROJECT / "configs").glob("*.yaml") if not path.name.startswith("demo")
)


def _facts(name: str, **changes: object) -> ModelFacts:
    config = json.loads((DATA / f"{name}.json").read_text())
    return ModelFacts.from_config({**config, **changes}, name)


def _recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "schema: 1\nname: t\nmodel: {source: m}\n"
        "quantize: {format: int4_awq, calibration: {text: c.txt}}\n"
        "compile: {target: tensorrt, gpu: L4, max_seq_len: 4096}\n"
    )
    return load_recipe(path, overrides)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipes_keep_the_dtype_that_the_model_was_published_in(path: Path) -> None:
    model = next(data for data in DATA.glob("*.json") if path.name.startswith(data.stem))
    published = json.loads(model.read_text())["torch_dtype"]
    assert yaml.safe_load(path.read_text())["model"]["dtype"] == published
    assert remarks(load_recipe(path), _facts(model.stem), None) == ()


@pytest.mark.parametrize(
    ("override", "severity", "key"),
    [
        ("model.dtype=float16", "warning", "model.dtype"),
        ("quantize.format=float16", "warning", "quantize.format"),
        ("compile.target=openvino", "note", "model.dtype"),
    ],
)
def test_float16_of_a_bfloat16_model_is_warned_of(
    tmp_path: Path, override: str, severity: str, key: str
) -> None:
    (found,) = remarks(_recipe(tmp_path, override), _facts("qwen2.5-7b"), None)
    assert (found.severity, found.key) == (severity, key)
    assert "65504" in found.why
    assert found.remedy.startswith(f"Set {key} to bfloat16")


@pytest.mark.parametrize("override", ["model.dtype=bfloat16", "quantize.format=bfloat16"])
def test_a_recipe_in_the_models_dtype_has_nothing_to_hear(tmp_path: Path, override: str) -> None:
    assert remarks(_recipe(tmp_path, override), _facts("qwen2.5-7b"), None) == ()
    float16 = _facts("qwen2.5-7b", torch_dtype="float16")
    assert remarks(_recipe(tmp_path, "model.dtype=float16"), float16, None) == ()


@pytest.mark.parametrize(
    ("stored", "said", "dtype"),
    [
        ("BF16", None, "bfloat16"),
        ("BF16", "float16", "bfloat16"),
        # Trained in bfloat16, saved in float32.
        ("F32", "bfloat16", "bfloat16"),
        ("F32", None, "float32"),
        (None, "bfloat16", "bfloat16"),
        (None, None, None),
    ],
)
def test_the_files_know_the_dtype_better_than_config_json(
    tmp_path: Path, stored: str | None, said: str | None, dtype: str | None
) -> None:
    if stored:
        (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(dtype=stored))
    facts = _facts("qwen2.5-7b", torch_dtype=said)
    assert source_dtype(facts, tmp_path) == dtype
    # transformers 5 renamed the key.
    assert _facts("qwen2.5-7b", torch_dtype=None, dtype=said).dtype == said


def test_linear_rope_has_two_conventions(tmp_path: Path) -> None:
    """deepseek-coder-6.7b: 16384 positions, a factor of 4, and a window of 16 K in its README."""
    rope = {"type": "linear", "factor": 4.0}
    facts = _facts("llama-3.1-8b", max_position_embeddings=16384, rope_scaling=rope)
    bfloat16 = "model.dtype=bfloat16"
    (found,) = remarks(_recipe(tmp_path, bfloat16), facts, None)
    assert found.severity == "note"
    assert "65536 positions" in found.what
    (found,) = remarks(_recipe(tmp_path, bfloat16, "compile.max_seq_len=20000"), facts, None)
    assert found.severity == "warning"
    assert "keep compile.max_seq_len at 16384" in found.remedy
    said = rope | {"original_max_position_embeddings": 4096}
    facts = _facts("llama-3.1-8b", max_position_embeddings=16384, rope_scaling=said)
    assert facts.longest_sequence == 16384
    assert remarks(_recipe(tmp_path, bfloat16), facts, None) == ()


def test_keys_that_nobody_reads_are_a_note_beside_what_counts(tmp_path: Path) -> None:
    # SmolLM2's file as it is published, with keys of the tools that trained and converted it.
    published = json.loads((DATA / "published-configs.json").read_text())
    entry = next(entry for name, entry in published.items() if "SmolLM2" in name)
    strays = ["is_llama_config", "rope_interleaved", "transformers.js_config"]
    assert set(strays) <= entry["config"].keys()
    facts = ModelFacts.from_config(entry["config"], "config.json")
    (tmp_path / "config.json").write_text(json.dumps(entry["config"]))
    recipe = _recipe(tmp_path, "model.dtype=bfloat16")
    (note,) = remarks(recipe, facts, tmp_path)
    assert note.severity == "note"
    assert note.what.endswith(f": {', '.join(strays)}")
    assert remarks(recipe, facts, None) == ()
