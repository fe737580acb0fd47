"""Trying and measuring engines in the stages, with doubles of TensorRT-LLM's two programs.

The double's engine executes nothing: its logit is 2 for the token ``(3 * token + 1) % vocabulary``
and 0.5 for the others, so its perplexity is known by hand.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modelopt")

from pipeline.errors import CompileError, QualityGateError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.stages import compile as compile_stage
from pipeline.stages import evaluate
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from tests.doubles.trtllm_build.machine import pretend
from tests.integration.quantize_support import VOCAB, calibration_words, run_stage, write_source
from tests.integration.quantize_support import recipe as quantize_recipe

SIZES = {"max_batch_size": 4, "max_input_len": 12, "max_seq_len": 16, "max_num_tokens": 64}
ENGINE_KEYS = {"engine_perplexity", "engine_perplexity_difference"}


class Notes(Silent):
    """Keeps what stages say."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Keeps it."""
        self.notes.append(message)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A source and its float16 checkpoint."""
    folder = tmp_path_factory.mktemp("tensorrt-evaluate")
    source = write_source("Qwen2", folder / "source")
    (source / "heldout.txt").write_text(calibration_words())
    run_stage(quantize_recipe(source, format="float16"), source, folder / "checkpoint")
    return {
        "source": Artifact("source", "key", "digest", source, {}),
        "quantize": Artifact("quantize", "key", "digest", folder / "checkpoint", {}),
    }


def settings(inputs: dict[str, Artifact], **changes: Any) -> Recipe:
    source = inputs["source"].path
    data = quantize_recipe(source, format="float16").model_dump(by_alias=True)
    text = str(source / "heldout.txt")
    data["evaluate"] = {"text": text, "tokens": 100, "sequence_length": 20}
    data["compile"] |= {"target": "tensorrt", **SIZES, **changes}
    return Recipe.model_validate(data)


def run(
    stage: Any, recipe: Recipe, inputs: dict[str, Artifact], folder: Path, progress: Any = None
) -> Artifact:
    output = folder / "tmp" / stage.STAGE.name
    output.mkdir(parents=True)
    context = StageContext(recipe, inputs, output, progress or Silent())
    return Artifact(stage.STAGE.name, "key", "digest", output, stage.STAGE.run(context))


def perplexity_by_hand(length: int, tokens: int) -> float:
    """Of the double over the first windows of the held-out text."""
    logsumexp = math.log(math.exp(2.0) + (VOCAB - 1) * math.exp(0.5))
    nll = count = 0.0
    for paragraph in calibration_words().split("\n\n"):
        words = [int(word[1:]) for word in paragraph.split()]
        for start in range(0, len(words), length):
            part = words[start : start + length][: int(tokens - count) + 1]
            for before, after in pairwise(part):
                nll += logsumexp - (2.0 if after == (3 * before + 1) % VOCAB else 0.5)
                count += 1
    assert count == tokens
    return math.exp(nll / count)


def test_the_engine_is_measured_on_the_windows_of_the_reference(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    progress, recipe = Notes(), settings(inputs)
    artifact = run(evaluate, recipe, inputs, tmp_path / "store", progress)
    facts = artifact.facts
    assert facts["tokens"] == 100
    # max_seq_len 16 holds a window and one generated token.
    assert facts["engine_perplexity"] == pytest.approx(perplexity_by_hand(15, 100), rel=1e-5)
    difference = facts["engine_perplexity"] / facts["perplexity"] - 1
    assert facts["engine_perplexity_difference"] == pytest.approx(difference)
    assert any("windows are of 15 tokens, not 20" in note for note in progress.notes)
    assert any("--gather_context_logits" in note for note in progress.notes)
    # Nothing of the engine is published; its timing cache stays in the store.
    assert [path.name for path in artifact.path.iterdir()] == [evaluate.RESULT_NAME]
    assert list((tmp_path / "store" / "timing").glob("*.cache"))
    written = json.loads((artifact.path / evaluate.RESULT_NAME).read_text())
    assert {name: written[name] for name in ENGINE_KEYS} == {
        name: facts[name] for name in ENGINE_KEYS
    }


def test_nothing_changes_on_a_machine_without_a_gpu(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", programs=(), tensorrt_llm=None)
    recipe, cpu = settings(inputs), settings(inputs, target="openvino")
    assert evaluate.material(recipe) == evaluate.material(cpu)
    artifact = run(evaluate, recipe, inputs, tmp_path / "store")
    assert not ENGINE_KEYS & artifact.facts.keys()
    # Windows of 20 and 10, not of 15: 19 + 9 + 19 + 9 + 19 + 9 + 16 predictions.
    assert artifact.facts["windows"] == 7


@pytest.mark.parametrize(
    ("machine", "measured"),
    [
        ({}, True),
        ({"gpus": "0"}, False),
        ({"programs": ("nvidia-smi", "docker"), "tensorrt_llm": None}, True),
        ({"programs": ("nvidia-smi",), "tensorrt_llm": None}, False),
    ],
)
def test_what_decides_the_measurement_is_in_the_key(
    machine: dict[str, Any],
    measured: bool,
    inputs: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, tmp_path / "machine", **machine)
    material = evaluate.material(settings(inputs))
    assert ("engine" in material) is measured
    if measured:
        assert material["engine"]["tools"]["gpu"] == "NVIDIA H100 80GB HBM3"
        assert material != evaluate.material(settings(inputs, max_num_tokens=32))
        # Two ranks run on two GPUs.
        assert "engine" not in evaluate.material(settings(inputs, tensor_parallel=2))


def test_pipeline_ranks_are_not_measured_and_the_run_says_so(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", gpus="2")
    recipe, progress = settings(inputs, pipeline_parallel=2), Notes()
    assert "engine" in evaluate.material(settings(inputs, tensor_parallel=2))
    assert "engine" not in evaluate.material(recipe)
    artifact = run(evaluate, recipe, inputs, tmp_path / "store", progress)
    assert not ENGINE_KEYS & artifact.facts.keys()
    (said,) = [note for note in progress.notes if "not measured" in note]
    assert "no context logits with pipeline_parallel 2" in said


@pytest.mark.parametrize(
    ("perplexity", "engine", "words"),
    [
        (10.0, 10.3, r"the engine is worse .*: the engine's perplexity rose by 3\.00% \(10 to 10"),
        (10.0, math.nan, "the engine is worse .*: the engine's perplexity rose by nan%"),
        (10.4, 10.3, r"the checkpoint is worse .*: perplexity rose by 4\.00%.*; the engine's"),
    ],
)
def test_the_gate_holds_for_the_engine(
    perplexity: float, engine: float, words: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    facts = {
        "source_perplexity": 10.0,
        "perplexity": perplexity,
        "perplexity_increase": perplexity / 10 - 1,
        "top1_agreement": 1.0,
        "kl_divergence": 0.0,
    }
    recipe = settings(inputs)
    evaluate.check(recipe, artifact_of(facts | {"perplexity": 10.0, "perplexity_increase": 0.0}))
    with pytest.raises(QualityGateError, match=words) as caught:
        evaluate.check(recipe, artifact_of({**facts, "engine_perplexity": engine}))
    assert caught.value.exit_code == 4
    assert "evaluate.gates.perplexity_increase" in str(caught.value)


def artifact_of(facts: dict[str, Any]) -> Artifact:
    return Artifact("evaluate", "key", "digest", Path("nowhere"), facts)


def test_an_engine_is_tried_before_it_is_published(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    facts = run(compile_stage, settings(inputs), inputs, tmp_path / "store").facts
    # Half of max_seq_len 16 is generated; the first prompt is 7919 mod 501 = 404.
    assert [len(tokens) for tokens in facts["smoke"]] == [8, 8, 8]
    assert facts["smoke"][0][:2] == [(3 * 404 + 1) % VOCAB, (3 * 211 + 1) % VOCAB]


def test_an_engine_that_generates_nonsense_fails_the_stage(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90", garbage=str(VOCAB + 7))
    with pytest.raises(CompileError, match="does not generate as it should") as caught:
        run(compile_stage, settings(inputs), inputs, tmp_path / "store")
    message = str(caught.value)
    assert f"token {VOCAB + 7}, outside the vocabulary of {VOCAB}" in message
    assert "two different greedy answers" in message
    kept = tmp_path / "store" / "timing" / "failed-build.log"
    assert str(kept) in message
    assert "trtllm-build" in kept.read_text()


def test_with_fewer_gpus_than_ranks_it_is_built_and_said_not_to_be_tried(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inputs["source"].path
    recipe = settings(inputs, tensor_parallel=2)
    run_stage(recipe, source, tmp_path / "checkpoint")
    ranks = {"quantize": Artifact("quantize", "k", "d", tmp_path / "checkpoint", {})}
    for gpus, tried in (("1", False), ("2", True)):
        folder, progress = tmp_path / gpus, Notes()
        with pytest.MonkeyPatch.context() as patch:
            pretend(patch, folder / "machine", sm="90", gpus=gpus)
            facts = run(compile_stage, recipe, ranks, folder / "store", progress).facts
        assert facts["world_size"] == 2
        assert ("smoke" in facts) is tried
        said = any("its 2 ranks need a GPU each, and 1 can be used" in n for n in progress.notes)
        assert said is not tried
