"""A stage reads no key of the recipe that its own cache key does not depend on.

The stages really run, on a recipe that notes what is read. Every key that was read is then given
another value, and the stage must get another cache key.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("modelopt")

from pipeline.progress import Silent
from pipeline.recipe.docs import recipe_keys
from pipeline.recipe.evaluate import TaskSection
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.running import planner
from pipeline.running.planner import key_material
from pipeline.running.runner import RunResult, run_recipe
from pipeline.store.artifact import Artifact
from pipeline.store.build_dir import BuildDir
from tests.conftest import NO_GATES, PROJECT
from tests.doubles.trtllm_build.machine import pretend
from tests.recording import changed, recorded

# Read, but without a part in what is written. A line that is not needed fails the test.
ON_CPU: dict[tuple[str, str], str] = {}
ON_GPU = {
    ("compile", "compile.tensorrt.workers"): "how many ranks are built at the same time",
    ("fidelity", "compile.tensorrt.workers"): "likewise, for the engine that is measured",
    ("quantize", "quantize.device"): "without calibration the weights are only copied",
    ("quantize", "quantize.kv_cache"): "a format without calibration has none",
}
# Says how much of a model is in memory, in every stage that has one there. What is written is the
# same, as tests/integration/test_quantize_by_layer.py shows.
AT_ONCE = "model.at_once"
CALIBRATED = ("quantize.calibration.samples=4", "quantize.calibration.sequence_length=64")
SMALL = (
    "evaluate.tokens=200",
    "evaluate.engine_tokens=100",
    NO_GATES,
    "bench.requests=2",
    "bench.output_tokens=4",
    "bench.concurrency=[1]",
)


def run(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *settings: str,
    config: str = "demo",
    until: str | None = None,
) -> tuple[Recipe, RunResult, dict[str, set[str]]]:
    """A run of the demo, and what each stage read."""
    monkeypatch.chdir(PROJECT)
    recipe = load_recipe(PROJECT / "configs" / f"{config}.yaml", [*SMALL, *settings])
    reads: dict[str, set[str]] = {}
    monkeypatch.setattr(planner, "STAGES", [recorded(stage, reads) for stage in planner.STAGES])
    return recipe, run_recipe(recipe, BuildDir(root / "build"), Silent(), until=until), reads


def of_other_targets(target: str) -> set[str]:
    """Keys that this target does not read, as docs/recipe.md says."""
    found = {key.name for key in recipe_keys() if key.targets and target not in key.targets}
    assert found
    return found


def task(path: Path) -> TaskSection:
    """A task of one question."""
    row = {"question": "1 + 1 =", "choices": ["1", "2"], "answer": 1, "subject": "sums"}
    path.write_text(f"{json.dumps(row)}\n")
    return TaskSection(name="sums", file=str(path), layout="mmlu")


def undeclared(
    recipe: Recipe, result: RunResult, reads: dict[str, set[str]], root: Path
) -> set[tuple[str, str]]:
    """What was read without deciding the key, by stage and key."""
    artifacts = {
        name: planned.artifact for name, planned in result.stages.items() if planned.artifact
    }
    # A file counts by its contents and a model's folder by its files.
    (root / "other.txt").write_text("Another text altogether.\n")
    shutil.copytree(PROJECT / "examples/tiny_llama/model", root / "model")
    others = {
        "model.source": str(root / "model"),
        "quantize.calibration.text": str(root / "other.txt"),
        "evaluate.text": str(root / "other.txt"),
        "verify.prompts": str(root / "other.txt"),
        "evaluate.tasks": [task(root / "questions.jsonl")],
        # Known by its manifest, as a repository is.
        "serve.draft_repository": str(artifacts["source"].path),
    }
    found = set()
    for name, keys in reads.items():
        stage = result.stages[name].stage
        inputs: dict[str, Artifact] = {
            before: artifacts[before] for before in stage.inputs if before in artifacts
        }
        material = key_material(stage, recipe, inputs)
        for key in keys - {AT_ONCE}:
            other = changed(recipe, key, others)
            if other is not None and key_material(stage, other, inputs) == material:
                found.add((name, key))
    return found


def test_the_cpu_target_reads_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, result, reads = run(tmp_path, monkeypatch, *CALIBRATED)
    assert reads.keys() == {stage.name for stage in planner.STAGES}
    # The recording sees something, and sees properties and methods through.
    assert {"quantize.format", "quantize.calibration.samples", AT_ONCE} <= reads["quantize"]
    assert {"compile.openvino.inference_precision", "compile.max_seq_len"} <= reads["compile"]
    assert not {key for key in reads["compile"] if "tensorrt" in key or "gpu" in key}
    assert not of_other_targets("openvino") & (reads["compile"] | reads["repository"])
    assert undeclared(recipe, result, reads, tmp_path) == ON_CPU.keys()


def test_the_gpu_target_reads_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double stands in for TensorRT-LLM."""
    pretend(monkeypatch, tmp_path / "machine", sm="90")
    recipe, result, reads = run(
        tmp_path,
        monkeypatch,
        *("compile.target=tensorrt", "compile.gpu=H100-80GB"),
        config="demo-float16",
        until="repository",
    )
    assert {"compile.gpu", "compile.tensorrt.plugin_config.gemm_plugin"} <= reads["compile"]
    assert not of_other_targets("tensorrt") & (reads["compile"] | reads["repository"])
    assert undeclared(recipe, result, reads, tmp_path) == ON_GPU.keys()


def test_the_vllm_target_reads_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, result, reads = run(
        tmp_path, monkeypatch, "compile.target=vllm", config="demo-float16", until="compile"
    )
    assert {"compile.vllm.gpu_memory_utilization", "compile.max_seq_len"} <= reads["compile"]
    assert not of_other_targets("vllm") & reads["compile"]
    found = undeclared(recipe, result, reads, tmp_path)
    assert {key for stage, key in found if stage == "compile"} == set()


def test_smoothquant_reads_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, result, reads = run(
        tmp_path, monkeypatch, *CALIBRATED, config="demo-int8-sq", until="quantize"
    )
    assert "quantize.smoothquant_alpha" in reads["quantize"]
    assert undeclared(recipe, result, reads, tmp_path) == set()


def test_a_search_reads_what_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = "quantize.search={candidates: [0.5, 0.9], tokens: 100}"
    recipe, result, reads = run(
        tmp_path, monkeypatch, *CALIBRATED, search, config="demo-int8-sq", until="quantize"
    )
    assert {"quantize.search.candidates", "quantize.search.tokens"} <= reads["quantize"]
    # What it chooses is not read.
    assert "quantize.smoothquant_alpha" not in reads["quantize"]
    assert undeclared(recipe, result, reads, tmp_path) == set()
