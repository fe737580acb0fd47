"""The functions for programs: what they return and raise, and that importing them costs nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline
from pipeline.errors import QualityGateError, RecipeError, SourceError, UsageError
from pipeline.recipe.schema import Recipe
from pipeline.running import planner
from trtllm_client import InvalidRequest

from ..conftest import PROJECT
from .test_run import House

DEMO = PROJECT / "configs" / "demo.yaml"
STAGES = [
    *("source", "quantize", "evaluate", "compile", "fidelity"),
    *("repository", "verify", "bench", "report"),
]


def printed(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(PROJECT)
    return pipeline.load_recipe(str(DEMO))


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import pipeline"
    code += "; print(*sorted(m for m in set(sys.modules) - before if not m.startswith('_')))"
    loaded = printed(code).split()
    assert [name for name in loaded if name.startswith("pipeline")] == [
        "pipeline",
        "pipeline._version",
    ]
    assert not {"pydantic", "yaml", "typer"} & set(loaded)


def test_the_functions_stay_functions_whatever_is_imported() -> None:
    """A module of that name would take its place."""
    code = "import pipeline.cli.main, pipeline.api, pipeline.running.planner, pipeline"
    code += ", pipeline.running.runner; from pipeline import load_recipe, plan, run, serve"
    code += "; print(load_recipe.__name__, plan.__name__, run.__name__, callable(pipeline.run))"
    assert printed(code) == "load_recipe plan run True"


def test_the_package_has_its_names_and_no_others() -> None:
    assert dir(pipeline) == ["__version__", "load_recipe", "plan", "run", "serve"]
    with pytest.raises(AttributeError, match="'pipeline' has no attribute 'bake'"):
        pipeline.bake  # noqa: B018


def test_a_recipe_is_read_with_overrides() -> None:
    recipe = pipeline.load_recipe(str(DEMO), ["compile.max_batch_size=16"])
    assert recipe.compile.max_batch_size == 16
    assert recipe.compile.max_seq_len == 512
    with pytest.raises(
        RecipeError, match=r"unknown key compile\.max_batch\. Did you mean max_batch_size\?"
    ):
        pipeline.load_recipe(DEMO, ["compile.max_batch=16"])
    with pytest.raises(UsageError, match=r"--set compile\.max_batch_size") as caught:
        pipeline.load_recipe(DEMO, ["compile.max_batch_size"])
    assert caught.value.exit_code == 2


def test_a_plan_says_what_a_run_would_do(demo: Recipe, tmp_path: Path) -> None:
    plan = pipeline.plan(demo, tmp_path)
    assert [planned.stage.name for planned in plan.stages] == STAGES
    assert [planned.status for planned in plan.stages] == ["run", *["waits"] * 8]
    assert plan.stages[0].reason == "never ran"
    ends = json.loads((PROJECT / demo.model.source / "generation_config.json").read_text())
    assert plan.end_ids is not None
    assert plan.end_ids.ids == [ends["eos_token_id"]]
    assert plan.obstacle is None
    assert not (tmp_path / demo.name).exists()


def test_a_plan_names_what_would_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    recipe = pipeline.load_recipe(DEMO, ["evaluate.text=nowhere.txt"])
    obstacle = pipeline.plan(recipe, tmp_path).obstacle
    assert isinstance(obstacle, RecipeError)
    assert "nowhere.txt" in str(obstacle)
    with pytest.raises(RecipeError, match=r"nowhere\.txt"):
        pipeline.run(recipe, tmp_path)


def test_a_load_that_the_server_refuses_stops_a_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorrt_llm_bls of this repository refuses the request after max_concurrent_requests."""
    monkeypatch.chdir(PROJECT)
    sizes = ["compile.max_batch_size=2", "serve.max_queue_size=3"]
    fits = pipeline.load_recipe(DEMO, [*sizes, "bench.concurrency=[1,5]"])
    assert pipeline.plan(fits, tmp_path).obstacle is None
    recipe = pipeline.load_recipe(DEMO, [*sizes, "bench.concurrency=[1,6]"])
    words = r"bench\.concurrency.*6 streams are more than the server takes\. It takes 5 requests"
    assert re.search(words, str(pipeline.plan(recipe, tmp_path).obstacle))
    with pytest.raises(RecipeError, match=words):
        pipeline.run(recipe, tmp_path)
    assert not (tmp_path / recipe.name).exists()


def test_a_model_that_cannot_be_used_has_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    recipe = pipeline.load_recipe(DEMO, [f"model.source={tmp_path}"])
    with pytest.raises(SourceError, match=r"config\.json"):
        pipeline.plan(recipe, tmp_path / "build")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """Three small stages in the place of the real ones."""
    from pipeline.running import runner

    house = House(tmp_path)
    monkeypatch.setattr(planner, "STAGES", house.stages())
    monkeypatch.setattr(runner, "check_local_model", lambda _recipe: None)
    return house


def test_a_run_returns_its_artifacts(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = pipeline.load_recipe(house.path)
    told: list[str] = []
    result = pipeline.run(
        recipe,
        str(tmp_path / "build"),
        until="quantize",
        on_stage=lambda planned, _seconds: told.append(f"{planned.stage.name} {planned.status}"),
    )
    assert told == ["source run", "quantize run"]
    assert result.outputs == tmp_path / "build" / "t"
    artifact = result.stages["quantize"].artifact
    assert artifact is not None
    assert artifact.facts == {"name": "quantize"}
    assert (artifact.path / "out").read_text() == "constant"
    assert capsys.readouterr() == ("", "")

    whole = pipeline.run(recipe, tmp_path / "build", force=["source"])
    assert list(whole.stages) == ["source", "quantize", "compile"]
    assert house.calls == ["source", "quantize", "source", "compile"]


def test_a_stage_that_does_not_exist_is_named_before_anything_runs(
    house: House, tmp_path: Path
) -> None:
    recipe = pipeline.load_recipe(house.path)
    for wrong in ({"until": "quantise"}, {"force": ["quantise"]}):
        with pytest.raises(UsageError, match=r"no stage quantise.*Stages: source, quantize, comp"):
            pipeline.run(recipe, tmp_path / "build", **wrong)  # type: ignore[arg-type]
    assert house.calls == []


def test_a_failure_is_raised_as_it_is(house: House, tmp_path: Path) -> None:
    house.fail["compile"] = QualityGateError("the engine is worse", fix="Use another format")
    with pytest.raises(QualityGateError, match="the engine is worse") as caught:
        pipeline.run(pipeline.load_recipe(house.path), tmp_path / "build")
    assert (caught.value.exit_code, caught.value.fix) == (4, "Use another format")


def test_serving_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="there is no such repository"),
        pipeline.serve(tmp_path / "none"),
    ):
        pass


def test_serving_a_file_says_that_it_is_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.touch()
    with (
        pytest.raises(UsageError, match=r"this is a file, no repository\. Name build/<name>"),
        pipeline.serve(recipe),
    ):
        pass


def test_an_error_of_the_block_is_not_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program raises while it serves reaches it as it is."""
    seen: dict[str, Any] = {}

    @contextmanager
    def no_server(repository: Path, log: Path, **options: object) -> Iterator[object]:
        seen.update(options, log=log)
        log.write_text("said")
        yield SimpleNamespace(grpc_url="h:1", http_url="http://h:2", metrics_url="http://h:3/m")

    monkeypatch.setattr("pipeline.serving.serving", no_server)

    def program() -> None:
        with pipeline.serve(tmp_path, http_port=7) as server:
            seen["server"], seen["logged"] = server, seen["log"].is_file()
            raise InvalidRequest("wrong")

    with pytest.raises(InvalidRequest, match="wrong"):
        program()
    assert seen["server"] == pipeline.api.Addresses("h:1", "http://h:2", "http://h:3/m")
    assert seen["logged"]
    assert (seen["http_port"], seen["grpc_port"], seen["host"]) == (7, 0, "127.0.0.1")
    assert not seen["log"].exists()
