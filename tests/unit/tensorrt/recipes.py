"""Recipes and models for the pre-flight tests; the config.json files are the public ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.models.facts import ModelFacts
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.tensorrt.plan.preview import EnginePreview, preview_engine

from ...conftest import PROJECT

DATA = PROJECT / "tests" / "data"
TEXT = """\
schema: 1
name: t
model: {source: m}
quantize:
  format: int4_awq
  calibration: {text: c.txt}
evaluate: {text: h.txt}
compile:
  target: tensorrt
  max_batch_size: 64
  max_input_len: 4096
  max_seq_len: 8192
  max_num_tokens: 8192
"""


def model(name: str, **changes: Any) -> ModelFacts:
    """The facts of a public model, with some of config.json changed."""
    config = json.loads((DATA / f"{name}.json").read_text())
    return ModelFacts.from_config(config | changes, f"{name}.json")


def recipe(folder: Path, *overrides: str) -> Recipe:
    """The recipe above with ``--set`` overrides."""
    path = folder / "recipe.yaml"
    path.write_text(TEXT)
    return load_recipe(path, overrides)


def preview(folder: Path, *overrides: str, of: str | ModelFacts = "llama-3.1-8b") -> EnginePreview:
    """The pre-flight of that recipe for a model."""
    facts = model(of) if isinstance(of, str) else of
    return preview_engine(recipe(folder, *overrides), facts)


def found(result: EnginePreview, what: str) -> Finding:
    """The one finding whose text contains ``what``."""
    (finding,) = [f for f in result.effective.findings if what in f.what]
    return finding
