"""The table of targets, and a target that only exports: its chain of stages ends at compile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline import api, targets
from pipeline.cli.main import app
from pipeline.dependencies import Requirements
from pipeline.errors import QualityGateError, UnsupportedError, UsageError
from pipeline.ladder.climb import finished
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress, Silent
from pipeline.recipe.compile import CompileSection
from pipeline.recipe.evaluate import EvaluateSection
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import ReadBy, section_of
from pipeline.running import planner
from pipeline.running.planner import build_plan, stages_for
from pipeline.running.runner import run_recipe
from pipeline.stages.base import Stage, StageContext
from pipeline.store.build_dir import BuildDir
from pipeline.store.deployed import find_repository
from pipeline.store.lock import read_lock
from pipeline.targets import get_target
from pipeline.targets.base import GivenEngine, NotMeasured, Target
from pipeline.targets.exported import ExportedTarget
from pipeline.triton.running import ServerOptions
from tests.conftest import DEMO_MODEL, PROJECT

SERVED = ["repository", "verify", "bench"]


class ExportTarget(ExportedTarget):
    """Writes one file that another program runs; Triton has no part in it."""

    name = "export"
    program = "Abacus"
    rounds_activations = False
    takes_zero_points = False
    takes_input_order = False

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        return ()

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        pass

    def section(self, recipe: Recipe) -> dict[str, Any]:
        return {"compile": recipe.section("compile")}

    def tools(self) -> Mapping[str, str]:
        return {"exporter": "7"}

    def compile(
        self,
        checkpoint: Path,  # noqa: ARG002
        recipe: Recipe,  # noqa: ARG002
        output: Path,
        progress: Progress,  # noqa: ARG002
        source: Path | None = None,
    ) -> dict[str, Any]:
        assert source is not None, "whoever exports gets the tokenizer and more"
        assert (source / "tokenizer.json").is_file()
        (output / "model.export").write_bytes(b"x" * 1000)
        return {"files": 1}

    def next_steps(self, recipe: Recipe, folder: Path) -> list[str]:  # noqa: ARG002
        return [f"abacus load {folder / 'model.export'}", "abacus count"]


def quantize(context: StageContext) -> dict[str, Any]:
    """Stands in for ModelOpt, which takes seconds."""
    (context.output / "config.json").write_text("{}")
    return {"quant_algo": None, "bytes": 2}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> Recipe:
    monkeypatch.setitem(
        targets.TARGETS,  # type: ignore[arg-type]
        "export",
        f"{__name__}:ExportTarget",
    )
    stages = tuple(
        replace(stage, run=quantize, needs=lambda _recipe: ())
        if stage.name == "quantize"
        else stage
        for stage in planner.STAGES
    )
    monkeypatch.setattr(planner, "STAGES", stages)
    wanted = Recipe.model_validate(
        {"name": "t", "model": {"source": str(demo_model)}, "quantize": {"format": "float16"}}
    )
    # The recipe's own list of targets is another matter; here is one that it accepts.
    compiled = wanted.compile.model_copy(update={"target": "export"})
    return wanted.model_copy(update={"compile": compiled})


def names(stages: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in stages]


def test_every_target_is_where_the_table_says() -> None:
    for name in targets.TARGETS:
        assert get_target(name).name == name


def test_the_recipe_lists_the_targets_of_the_table() -> None:
    """And each has its options, if it has any, in the module that is called like it."""
    fields = CompileSection.model_fields
    assert set(get_args(fields["target"].annotation)) == targets.TARGETS.keys()
    for name in targets.TARGETS.keys() & fields.keys():
        section = section_of(fields[name])
        assert section is not None
        assert section.__module__ == f"pipeline.recipe.{name}"
        (read,) = (one for one in fields[name].metadata if isinstance(one, ReadBy))
        assert name in read.targets


def test_a_target_that_does_not_exist() -> None:
    names = ", ".join(targets.TARGETS)
    with pytest.raises(UnsupportedError, match=rf"no compile target abacus.*Targets: {names}"):
        get_target("abacus")


def test_the_protocol_has_no_more_than_an_export_needs() -> None:
    target: Target = ExportTarget()
    members = {name for name in vars(Target) if not name.startswith("_")}
    assert members <= set(dir(target))


def test_an_exported_engine_is_not_served(recipe: Recipe) -> None:
    served = recipe.compile.model_copy(update={"target": "openvino"})
    every = names(stages_for(recipe.model_copy(update={"compile": served})))
    assert names(stages_for(recipe)) == [name for name in every if name not in SERVED]
    assert set(SERVED) <= set(every)


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_an_engine_that_is_not_measured_here_is_said_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fails for it, and the stage does not vanish without a word."""
    evaluate = EvaluateSection(text=str(DEMO_MODEL.parent / "data" / "heldout.jsonl"))
    measured = recipe.model_copy(update={"evaluate": evaluate})
    on_cpu = measured.compile.model_copy(update={"target": "openvino"})
    known = names(stages_for(measured.model_copy(update={"compile": on_cpu})))
    assert known[known.index("compile") + 1] == "fidelity"
    assert "evaluate" in names(stages_for(measured))
    assert "fidelity" not in names(stages_for(measured))
    (finding,) = api.plan(measured, tmp_path).findings
    assert "the compiled engine is not measured on this machine" in finding.what
    assert (finding.why, finding.severity) == (
        "It is for Abacus, which the pipeline does not run",
        "note",
    )
    progress = Notes()
    run_recipe(measured, BuildDir(tmp_path), progress, until="source")
    assert any("does not run. Measure it in Abacus" in note for note in progress.notes)
    # Without held-out text nothing is measured, which the recipe says itself.
    assert api.plan(recipe, tmp_path).findings == ()
    progress = Notes()
    run_recipe(recipe, BuildDir(tmp_path), progress, until="source")
    assert not any("not measured" in note for note in progress.notes)


def test_a_run_of_an_export_ends_with_a_report(recipe: Recipe, tmp_path: Path) -> None:
    build = BuildDir(tmp_path)
    result = run_recipe(recipe, build, Silent())
    assert list(result.stages) == ["source", "quantize", "compile", "report"]
    assert sorted(path.name for path in result.outputs.iterdir()) == [
        "export",
        "history.jsonl",
        "lock.json",
        "report.html",
        "report.json",
        "report.md",
    ]
    report = json.loads((result.outputs / "report.json").read_text())
    assert report["engine"]["target"] == "export"
    assert report["load"] is report["conformance"] is report["machine"] is None
    assert report["tools"]["exporter"] == "7"
    # Nothing was served, so what serves had no part in it.
    assert report["tools"].keys().isdisjoint(("nvidia-pytriton", "tritonclient", "grpcio"))
    assert [stage["name"] for stage in report["stages"]] == ["source", "quantize", "compile"]
    for page in ("report.md", "report.html"):
        text = (result.outputs / page).read_text()
        assert "compiled for export" in text
        for word in ("riton", "onformance", "Load", "tokens/s", "measured on"):
            assert word not in text, (page, word)
    (row,) = finished([result.outputs / "report.json"])["rungs"]
    assert (row["format"], row["load"], row["memory_bytes"]) == ("float16", [], None)

    planned = build_plan(recipe, build.store, read_lock(result.outputs / "lock.json"))
    assert [(line.stage.name, line.status) for line in planned] == [
        (name, "cached") for name in result.stages
    ]


def test_the_command_says_where_the_export_is_and_how_it_is_run(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(api, "load_recipe", lambda _path, _overrides: recipe)
    app(["run", "recipe.yaml", f"--build-dir={tmp_path}"], standalone_mode=False)
    last = capsys.readouterr().out.splitlines()[-3:]
    place = tmp_path / "t" / "export"
    assert last == [
        f"export:      {place}",
        f"next:        abacus load {place}/model.export",
        "             abacus count",
    ]
    assert (place / "model.export").stat().st_size == 1000
    # In the folder, which may be moved, the same without a place.
    assert "\nabacus load model.export\nabacus count\n" in (place / "README.md").read_text()
    for page in (tmp_path / "t" / "report.md", tmp_path / "t" / "report.html"):
        assert "not served here" in page.read_text()

    app(["run", "recipe.yaml", f"--build-dir={tmp_path}", "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert said["deployed"]["compile"] == str(place)
    assert said["next_steps"] == [f"abacus load {place}/model.export", "abacus count"]

    app(["plan", "recipe.yaml", f"--build-dir={tmp_path}"], standalone_mode=False)
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["source", "quantize", "compile", "report"]

    with pytest.raises(UsageError, match=r"no stage verify\. Stages: source, quantize, compile"):
        app(["run", "recipe.yaml", "--until=verify"], standalone_mode=False)


def test_an_export_that_its_own_numbers_speak_against_is_put_aside(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by its target, it goes into the build's folder behind the gates alone."""

    def refused(_recipe: Recipe, _artifact: Any) -> None:
        raise QualityGateError("the engine does not follow its checkpoint")

    def measured(context: StageContext) -> dict[str, Any]:
        (context.output / "fidelity.json").write_text("{}")
        return {}

    stages = tuple(
        replace(
            stage,
            run=measured,
            inputs=("compile",),
            check=refused,
            needs=lambda _recipe: (),
            section=lambda _recipe: {},
            material=lambda _recipe: {},
        )
        if stage.name == "fidelity"
        else stage
        for stage in planner.STAGES
        if stage.name != "evaluate"
    )
    monkeypatch.setattr(planner, "STAGES", stages)
    monkeypatch.setattr(planner, "engine_not_measured", lambda _recipe: None)
    evaluate = EvaluateSection(text=str(DEMO_MODEL.parent / "data" / "heldout.jsonl"))
    wanted = recipe.model_copy(update={"evaluate": evaluate})
    with pytest.raises(QualityGateError, match="does not follow"):
        run_recipe(wanted, BuildDir(tmp_path), Silent())
    assert (tmp_path / "t" / "export.failed" / "model.export").is_file()
    assert not (tmp_path / "t" / "export").exists()


def test_what_an_export_refuses(recipe: Recipe, tmp_path: Path) -> None:
    target = ExportTarget()
    given = GivenEngine(tmp_path, {})
    with pytest.raises(UnsupportedError, match=r"no build script for the files that Abacus runs"):
        target.build_script(None, recipe)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"that Abacus runs cannot be taken in"):
        target.given_files(tmp_path)
    with pytest.raises(UnsupportedError, match=r"cannot be taken in.*Leave --engine out"):
        target.adopt(given, tmp_path, recipe, tmp_path, Silent())
    for ask in (
        lambda: target.server(tmp_path, tmp_path / "log", ServerOptions()),
        lambda: target.serve_command(tmp_path, ServerOptions()),
        lambda: target.compose(tmp_path, ServerOptions()),
        lambda: target.contained(tmp_path, "30"),
    ):
        with pytest.raises(UnsupportedError, match=r"is for Abacus, and .* does not serve it"):
            ask()
    (problem,) = target.engine_problems(None, tmp_path, {})  # type: ignore[arg-type]
    assert "files for Abacus" in problem
    found = target.evaluation(recipe)
    assert isinstance(found, NotMeasured)
    assert "It is for Abacus" in found.why
    assert "tensor_parallel" not in ExportedTarget.section(target, recipe)["compile"]


def test_serving_an_export_says_how_it_is_run(recipe: Recipe, tmp_path: Path) -> None:
    result = run_recipe(recipe, BuildDir(tmp_path), Silent())
    with pytest.raises(UsageError, match=r"for another program to run.*export/README\.md says"):
        find_repository(result.outputs)


def test_a_target_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys, pipeline.running.planner, pipeline.preflight.model_checks\n"
        "from pipeline.targets import TARGETS, get_target\n"
        "loaded = lambda: {n for n in TARGETS if f'pipeline.targets.{n}' in sys.modules}\n"
        "assert loaded() == set(), loaded()\n"
        "get_target('openvino')\n"
        "assert loaded() == {'openvino'}, loaded()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
