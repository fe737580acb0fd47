"""docs/sizes.md and the heads of the large recipes say what their formulas give."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.effort.disk import Snapshot
from pipeline.effort.stages import efforts
from pipeline.models.facts import ModelFacts
from pipeline.recipe.file import load_recipe
from pipeline.targets.tensorrt.plan.lines import preview_lines
from pipeline.targets.tensorrt.plan.preview import preview_engine

from ..conftest import PROJECT

PAGE = (PROJECT / "docs" / "sizes.md").read_text(encoding="utf-8")
LARGE = [p for p in sorted((PROJECT / "configs").glob("*.yaml")) if not p.name.startswith("demo")]


def config_of(recipe: str) -> dict[str, Any]:
    data = PROJECT / "tests" / "data"
    (found,) = [file for file in data.glob("*.json") if recipe.startswith(file.stem)]
    return dict(json.loads(found.read_text()))


def billions(config: dict[str, Any]) -> float:
    """Elements of the matrices; norms and biases are too few to count."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    attention = 2 * hidden * width * (heads + config["num_key_value_heads"])
    layer = attention + 3 * hidden * config["intermediate_size"]
    tables = 1 if config["tie_word_embeddings"] else 2
    return (config["num_hidden_layers"] * layer + tables * config["vocab_size"] * hidden) / 1e9


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of a section's table by the first one."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {
        re.sub(r"\[(.*)\].*", r"\1", first.strip()): [cell.strip() for cell in others]
        for first, *others in cells[2:]
    }


def number(cell: str) -> float:
    return float(cell.split(maxsplit=1)[0])


def peaks(recipe: str, **model: str) -> dict[str, float]:
    """GB of each stage of a large recipe, as plan says them; its texts are not there."""
    loaded = load_recipe(PROJECT / "configs" / f"{recipe}.yaml")
    loaded = loaded.model_copy(update={"model": loaded.model.model_copy(update=model)})
    facts = ModelFacts.from_config(config_of(recipe), recipe)
    stages = ("quantize", "evaluate")
    found = efforts(loaded, facts, stages, snapshot=Snapshot(None, Path("build")), rates=None)
    return {stage.stage: stage.memory.likely / 1e9 for stage in found if stage.memory}


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_a_recipe_says_how_much_memory_it_wants(path: Path) -> None:
    said = re.search(
        r"about (\d+) GB of RAM to quantize and (\d+) GB to evaluate", path.read_text()
    )
    assert said
    found = peaks(path.stem)
    # Rounded up: who has that much has enough.
    assert int(said[1]) == math.ceil(found["quantize"])
    assert int(said[2]) == math.ceil(found["evaluate"])


def test_the_page_says_what_plan_says_of_memory() -> None:
    told = rows("Memory of the machine")
    assert told
    for name, cells in told.items():
        layers, whole = peaks(name), peaks(name, at_once="model")
        said = [layers["quantize"], layers["evaluate"], whole["quantize"], whole["evaluate"]]
        for cell, found in zip(cells, said, strict=True):
            assert number(cell) == pytest.approx(found, abs=0.51 if found > 10 else 0.06), name


@pytest.mark.parametrize("name", rows("Memory of the GPU"))
def test_the_page_says_what_plan_says(name: str) -> None:
    recipe = load_recipe(PROJECT / "configs" / f"{name}.yaml")
    facts = ModelFacts.from_config(config_of(name), name)
    text = "\n".join(preview_lines(preview_engine(recipe, facts)))
    gpus, weights, left, sequences = rows("Memory of the GPU")[name]
    assert f"{gpus} (SM" in text
    assert re.search(rf"^  weights +{weights}$", text, re.MULTILINE)
    assert re.search(rf"^  left for KV cache +{left} ", text, re.MULTILINE)
    fitting, _, longest, _ = sequences.split()
    assert re.search(rf"^  sequences +{fitting} ", text, re.MULTILINE)
    assert f"max_seq_len {longest}" in text
    # Disk: all ranks' weights, and two bytes for each parameter of the model.
    model, checkpoint, engine, together = map(number, rows("Disk")[name])
    ranks = recipe.compile.tensor_parallel
    assert checkpoint == engine == pytest.approx(number(weights) * ranks * 1.0737, rel=0.01)
    assert model == pytest.approx(2 * billions(config_of(name)), rel=0.01)
    assert together == pytest.approx(model + 2 * checkpoint, abs=1)
