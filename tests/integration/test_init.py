"""``init`` on models with weights: its numbers, and runs of what it writes without a change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import api
from pipeline.cli.main import app
from pipeline.models.facts import ModelFacts
from pipeline.scaffold.draft import parameters
from tests.conftest import PROJECT
from tests.integration.quantize_support import ARCHITECTURES
from tests.integration.random_models import broken_characters, one_token, words


def init(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["init", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("make", [words, one_token])
@pytest.mark.parametrize("gpu", [None, "L4"])
def test_plan_takes_what_is_written(
    architecture: str, make: Any, gpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    make(architecture, tmp_path / "source")
    made = init("source", *(("--gpu", gpu) if gpu else ()))
    recipe = api.load_recipe(made["recipe"])
    found = api.plan(recipe)
    assert found.exit_code == 0
    assert recipe.quantize.format == "int4_awq"
    # Mistral's window, and the positions of the others.
    assert recipe.compile.max_seq_len == (64 if architecture == "Mistral" else 256)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("make", [words, one_token])
def test_parameters_are_those_of_transformers(architecture: str, make: Any, tmp_path: Path) -> None:
    import transformers

    make(architecture, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert parameters(ModelFacts.from_directory(tmp_path)) == model.num_parameters()


def measure(folder: Path, recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run says in the end, and what evaluation measured."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline", "run", recipe, "--until", "evaluate", "--json"),
            *("--set", "evaluate.tokens=4000"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)
    # What a format costs a model is its own; nothing else may stop the run.
    assert said.get("error") in (None, "QualityGateError"), done.stderr
    (measured,) = (folder / "build" / "store" / "evaluate").glob("*/evaluation.json")
    return said, json.loads(measured.read_text())


@pytest.mark.slow
def test_a_random_model_is_run_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated and measured on the bundled text, with the model's own tokenizer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    broken_characters("Llama", tmp_path / "source")
    _, measured = measure(tmp_path, init("source")["recipe"])
    assert measured["tokens"] > 3000
    # Random weights know nothing of any text, in either precision.
    assert abs(measured["perplexity_increase"]["value"]) < 0.02


@pytest.mark.slow
def test_a_trained_model_is_run_without_a_change(
    stories_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = init(str(stories_model), "--format", "float16")
    said, measured = measure(tmp_path, made["recipe"])
    assert "error" not in said
    assert measured["top1_agreement"]["low"] > 0.95
    # 5.5 nats would be a model that finds each of its 512 tokens alike.
    assert measured["source_perplexity"] < 100
