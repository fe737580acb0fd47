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
import torch

pytest.importorskip("modelopt")

from pipeline.errors import CompileError, UnsupportedError
from pipeline.preflight.remarks import engine_not_measured
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.reference import load_reference
from pipeline.reference.source import load_source
from pipeline.running.planner import stages_for
from pipeline.stages import compile as compile_stage
from pipeline.stages import fidelity
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from tests.doubles.trtllm_build.machine import pretend
from tests.integration.quantize_support import VOCAB, calibration_words, run_stage, write_source
from tests.integration.quantize_support import recipe as quantize_recipe

SIZES = {"max_batch_size": 4, "max_input_len": 12, "max_seq_len": 16, "max_num_tokens": 64}


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
    (folder / "engine").mkdir()
    said = {"pretrained_config": {"quantization": {"quant_algo": None}}}
    (folder / "engine" / "config.json").write_text(json.dumps(said))
    return {
        "source": Artifact("source", "key", "digest", source, {}),
        "quantize": Artifact("quantize", "key", "digest", folder / "checkpoint", {}),
        # The engine that is served gives no logits; only what it says of itself is read.
        "compile": Artifact("compile", "key", "digest", folder / "engine", {}),
    }


def settings(inputs: dict[str, Artifact], **changes: Any) -> Recipe:
    source = inputs["source"].path
    data = quantize_recipe(source, format="float16").model_dump(by_alias=True)
    text = str(source / "heldout.txt")
    data["evaluate"] = {"text": text, "engine_tokens": 100, "sequence_length": 20}
    data["compile"] |= {"target": "tensorrt", **SIZES, **changes}
    return Recipe.model_validate(data)


def run(
    stage: Any, recipe: Recipe, inputs: dict[str, Artifact], folder: Path, progress: Any = None
) -> Artifact:
    output = folder / "tmp" / stage.STAGE.name
    output.mkdir(parents=True)
    context = StageContext(recipe, inputs, output, progress or Silent())
    return Artifact(stage.STAGE.name, "key", "digest", output, stage.STAGE.run(context))


def rows_of_text(tokens: int) -> list[list[int]]:
    """The first paragraphs, cut where that many tokens are predicted."""
    rows: list[list[int]] = []
    for paragraph in calibration_words().split("\n\n"):
        row = [int(word[1:]) for word in paragraph.split()][: tokens + 1]
        rows.append(row)
        tokens -= len(row) - 1
        if not tokens:
            break
    return rows


def loss_by_hand(rows: list[list[int]]) -> float:
    """Mean negative log-likelihood of the double; it looks one token back and no further."""
    logsumexp = math.log(math.exp(2.0) + (VOCAB - 1) * math.exp(0.5))
    losses = [
        logsumexp - (2.0 if after == (3 * before + 1) % VOCAB else 0.5)
        for row in rows
        for before, after in pairwise(row)
    ]
    return math.fsum(losses) / len(losses)


def loss_of(model: Any, rows: list[list[int]], window: int, step: int) -> float:
    """Mean loss of a model that sees windows, each ``step`` tokens on, as a plain loop."""
    total, count = 0.0, 0
    for row in rows:
        for end in range(1, len(row)):
            begin = 0
            if end >= window:
                last = window + ((end - window) // step + 1) * step
                begin = min(last, len(row)) - window
            with torch.inference_mode():
                logits = model(torch.tensor([row[begin:end]])).logits[0, -1].double()
            total -= float(torch.log_softmax(logits, -1)[row[end]])
            count += 1
    return total / count


def test_the_engine_is_measured_on_the_windows_of_both_models(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    progress, recipe = Notes(), settings(inputs)
    artifact = run(fidelity, recipe, inputs, tmp_path / "store", progress)
    facts, rows = artifact.facts, rows_of_text(100)
    assert (facts["tokens"], facts["documents"]) == (100, 4)
    engine = loss_by_hand(rows)
    assert facts["perplexity"]["value"] == pytest.approx(math.exp(engine), rel=1e-5)
    # max_seq_len 16 holds a window and one generated token.
    source = loss_of(load_source(inputs["source"].path), rows, 15, 7)
    written = loss_of(load_reference(inputs["quantize"].path), rows, 15, 7)
    increase = facts["perplexity_increase"]
    assert increase["value"] == pytest.approx(math.expm1(engine - source), rel=1e-4)
    assert increase["low"] < increase["value"] < increase["high"]
    assert facts["against_checkpoint"] == {
        "perplexity_increase": {
            "value": pytest.approx(math.expm1(engine - written), rel=1e-4),
            "low": pytest.approx(increase["low"], abs=0.01),
            "high": pytest.approx(increase["high"], abs=0.01),
        },
        **dict.fromkeys(("kl_divergence", "kl_divergence_p99", "top1_agreement")),
    }
    assert facts["kl_divergence"] is facts["top1_agreement"] is None
    assert facts["tasks"] == []
    assert "gathers context logits" in facts["method"]
    assert any("windows are of 15 tokens, not 20" in note for note in progress.notes)
    assert any("--gather_context_logits" in note for note in progress.notes)
    # Nothing of the engine is published; its timing cache stays in the store.
    assert [path.name for path in artifact.path.iterdir()] == [fidelity.RESULT_NAME]
    assert list((tmp_path / "store" / "timing").glob("*.cache"))
    assert json.loads((artifact.path / fidelity.RESULT_NAME).read_text()) == facts


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({}, ""),
        ({"gpus": "0"}, "It takes a GPU, and this machine has none"),
        ({"programs": (), "tensorrt_llm": None}, "It takes a GPU, and this machine has none"),
        ({"programs": ("nvidia-smi", "docker"), "tensorrt_llm": None}, ""),
        (
            {"programs": ("nvidia-smi",), "tensorrt_llm": None},
            "Neither TensorRT-LLM nor Docker is installed here",
        ),
    ],
)
def test_what_decides_the_measurement_is_in_the_key(
    machine: dict[str, Any],
    why: str,
    inputs: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, tmp_path / "machine", **machine)
    recipe = settings(inputs)
    finding, material = engine_not_measured(recipe), fidelity.material(recipe)
    assert (finding.why if finding else "") == why
    assert ("fidelity" in [stage.name for stage in stages_for(recipe)]) is (not why)
    if why:
        assert material["engine"] is None
        with pytest.raises(UnsupportedError, match="engines are not measured on this machine"):
            run(fidelity, recipe, inputs, tmp_path / "store")
        return
    assert material["engine"]["tools"]["gpu"] == "NVIDIA H100 80GB HBM3"
    assert material != fidelity.material(settings(inputs, max_num_tokens=32))
    # Two ranks run on two GPUs.
    two = engine_not_measured(settings(inputs, tensor_parallel=2))
    assert two
    assert two.why == "It takes 2 GPUs, and this machine has 1"


def test_pipeline_ranks_are_not_measured_and_the_plan_says_so(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path / "machine", gpus="2")
    assert engine_not_measured(settings(inputs, tensor_parallel=2)) is None
    finding = engine_not_measured(settings(inputs, pipeline_parallel=2))
    assert finding
    assert "no context logits with pipeline_parallel 2" in finding.why


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
