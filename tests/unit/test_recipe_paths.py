"""Where the paths of a recipe begin, seen from several folders with files made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe.file import load_recipe
from pipeline.recipe.paths import names_file
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import Section
from pipeline.recipe.tree import below, named_fields
from pipeline.stages import repository

from ..conftest import DEMO_MODEL, PROJECT

TEXT = """\
schema: 1
name: t
model:
  source: {source}
  dtype: bfloat16
quantize:
  format: int8_sq
  calibration:
    text: {text}
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with recipe and data beside each other, and the current folder elsewhere."""
    for folder in ("project/recipes", "project/data", "elsewhere/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project/data/c.txt").write_text("Once upon a time.")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def _recipe(places: Path, source: str = "Org/Name", text: str = "../data/c.txt") -> Path:
    path = places / "project/recipes/r.yaml"
    path.write_text(TEXT.format(source=source, text=text))
    return path


def _text(recipe: Recipe) -> str:
    assert recipe.quantize.calibration
    return recipe.quantize.calibration.text


def test_a_relative_path_begins_at_the_recipe(places: Path) -> None:
    recipe = load_recipe(_recipe(places))
    assert Path(_text(recipe)).samefile(places / "project/data/c.txt")
    assert recipe.notices == ()


@pytest.mark.parametrize("here", ["project", "project/recipes", "elsewhere"])
def test_one_file_is_called_the_same_however_the_recipe_is(
    places: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    path = _recipe(places)
    monkeypatch.chdir(places / here)
    names = {
        os.path.abspath(_text(load_recipe(Path(spelling))))  # noqa: PTH100
        for spelling in (str(path), os.path.relpath(path))
    }
    assert names == {str(places / "project/data/c.txt")}
    if here == "project":
        assert (
            _text(load_recipe(path)) == _text(load_recipe(Path("recipes/r.yaml"))) == "data/c.txt"
        )


def test_a_link_in_front_of_two_dots_leads_where_the_system_goes(places: Path) -> None:
    (places / "link").symlink_to(places / "project/recipes")
    _recipe(places)
    assert Path(_text(load_recipe(places / "link/r.yaml"))).read_text() == "Once upon a time."


def test_what_only_the_current_directory_has_is_taken_with_a_notice(places: Path) -> None:
    (places / "elsewhere/data/old.txt").write_text("old")
    path = _recipe(places, text="data/old.txt")
    recipe = load_recipe(path)
    assert Path(_text(recipe)).read_text() == "old"
    (notice,) = recipe.notices
    assert notice.endswith("Write quantize.calibration.text: ../../elsewhere/data/old.txt")
    # What lies beside the recipe wins, and nothing is to be said.
    (path.parent / "data").mkdir()
    (path.parent / "data/old.txt").write_text("new")
    recipe = load_recipe(path)
    assert Path(_text(recipe)).read_text() == "new"
    assert recipe.notices == ()


def test_paths_of_the_command_line_begin_where_it_runs(places: Path) -> None:
    (places / "elsewhere/c.txt").write_text("here")
    (places / "project/recipes/c.txt").write_text("there")
    path = _recipe(places)
    recipe = load_recipe(path, ["quantize.calibration.text=c.txt"])
    assert (_text(recipe), recipe.notices) == ("c.txt", ())
    recipe = load_recipe(path, ["quantize.calibration={text: c.txt}"])
    assert _text(recipe) == "c.txt"
    recipe = load_recipe(path, ["quantize.calibration.samples=3"])
    assert Path(_text(recipe)).samefile(places / "project/data/c.txt")


def test_a_name_on_the_hub_is_none_of_a_path(places: Path) -> None:
    assert load_recipe(_recipe(places)).model.source == "Org/Name"
    (places / "project/recipes/Org/Name").mkdir(parents=True)
    source = load_recipe(_recipe(places)).model.source
    assert Path(source).samefile(places / "project/recipes/Org/Name")
    # What is not there must not become a name on the Hub by being spelt another way.
    for text in ("./absent", "../absent", "sub/../absent", "absent"):
        assert Path(load_recipe(_recipe(places, source=text)).model.source).is_absolute()


def test_home_and_variables_are_expanded(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(places / "project"))
    monkeypatch.setenv("DATA", "data")
    for text in ("~/data/c.txt", "../$DATA/c.txt", "../${DATA}/c.txt", "$HOME/${DATA}/c.txt"):
        path = _recipe(places, text=text)
        assert Path(_text(load_recipe(path))).samefile(places / "project/data/c.txt")
    (places / "project/data/a$b.txt").write_text("x")
    assert Path(_text(load_recipe(_recipe(places, text="../data/a$$b.txt")))).read_text() == "x"
    monkeypatch.delenv("DATA")
    path = _recipe(places, text="$DATA/c.txt")
    words = (
        r"r\.yaml:9:5: quantize\.calibration\.text names the environment variable DATA, which is"
    )
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_every_key_that_names_a_file_is_known() -> None:
    assert set(_files(Recipe, "")) == {
        "model.source",
        "quantize.calibration.text",
        "evaluate.text",
        "compile.vllm.python",
        "evaluate.reference",
        "evaluate.tasks.file",
        "evaluate.tasks.shots_file",
        "serve.lora_adapters",
        "serve.draft_repository",
        "verify.prompts",
    }


def _files(section: type[Section], prefix: str) -> list[str]:
    found = []
    for name, field in named_fields(section).items():
        if inner := below(field):
            found += _files(inner, f"{prefix}{name}.")
        elif names_file(field):
            found.append(f"{prefix}{name}")
    return found


def test_lists_are_resolved_element_by_element(places: Path) -> None:
    path = _recipe(places)
    (places / "project/recipes/lora").mkdir()
    path.write_text(
        path.read_text()
        + "serve: {lora_adapters: [lora, /abs, ../data]}\n"
        + "evaluate:\n  text: ../data/c.txt\n"
        + "  tasks: [{name: q, layout: mmlu, file: ../data, shots: 1, shots_file: lora}]\n"
    )
    recipe = load_recipe(path)
    lora, absolute, data = recipe.serve.lora_adapters
    assert absolute == "/abs"
    assert Path(lora).samefile(places / "project/recipes/lora")
    assert Path(data).samefile(places / "project/data")
    assert recipe.evaluate
    (task,) = recipe.evaluate.tasks
    assert Path(task.file).samefile(places / "project/data")
    assert task.shots_file
    assert Path(task.shots_file).samefile(places / "project/recipes/lora")


def test_no_key_depends_on_the_spelling_of_a_path(places: Path) -> None:
    path = _recipe(places)
    (places / "project/recipes/lora").mkdir()
    (places / "project/recipes/lora/adapter_config.json").write_text("{}")
    gpu = ["compile.target=tensorrt", "compile.gpu=L4", "compile.tensorrt.lora={}"]
    spellings = ("../project/recipes/lora", str(places / "project/recipes/lora"))
    made = [load_recipe(path, [*gpu, f"serve.lora_adapters=[{name}]"]) for name in spellings]
    assert made[0].serve.lora_adapters != made[1].serve.lora_adapters
    assert repository.section(made[0]) == repository.section(made[1])


def test_a_set_without_a_value_gives_the_default_back(places: Path) -> None:
    path = _recipe(places)
    recipe = load_recipe(path, ["model.dtype="])
    assert recipe.model.dtype == "float16"
    assert recipe.place("model.dtype") == "--set model.dtype= (model.dtype)"
    # In a section that the file does not have there is nothing to take away.
    assert load_recipe(path, ["evaluate.tokens="]).evaluate is None
    assert load_recipe(path, ["model.revision=main", "model.revision="]).model.revision is None
    plain = load_recipe(path, ["quantize.calibration=", "quantize.format=float16"])
    assert plain.quantize.calibration is None
    with pytest.raises(RecipeError, match=r"--set name=: missing key: name\."):
        load_recipe(path, ["name="])
    with pytest.raises(RecipeError, match=r"unknown key model\.dtyp\. Did you mean dtype\?"):
        load_recipe(path, ["model.dtyp="])
    with pytest.raises(RecipeError, match="at least 1 character"):
        load_recipe(path, ['quantize.calibration.text=""'])


def test_a_format_of_the_command_line_wins_over_the_dtype_of_the_file(places: Path) -> None:
    path = _recipe(places)
    recipe = load_recipe(path, ["quantize.format=fp16"])
    assert (recipe.quantize.format, recipe.dtype) == ("float16", "float16")
    assert recipe.notices == (
        f"--set quantize.format=fp16 wins over model.dtype: bfloat16 of {path}:5",
    )
    assert load_recipe(path, ["quantize.format=bfloat16"]).notices == ()
    assert load_recipe(path, ["quantize.format=int4_awq"]).dtype == "bfloat16"
    with pytest.raises(RecipeError, match="contradicts"):
        load_recipe(path, ["quantize.format=float16", "model.dtype=bfloat16"])


def _cli(command: str, here: Path, *words: str) -> tuple[dict[str, Any], str]:
    line = [sys.executable, "-m", "pipeline", command, *words, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        line, cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_shipped_recipe_works_from_anywhere_and_its_source_keeps_its_key(
    tmp_path: Path,
) -> None:
    build = ("--build-dir", str(tmp_path / "build"))
    shipped = PROJECT / "configs/demo-float16.yaml"
    former = tmp_path / "former.yaml"
    former.write_text(shipped.read_text().replace("../examples", "examples"))
    keys = set()
    for here, *words in (
        (PROJECT, "configs/demo-float16.yaml"),
        (PROJECT / "configs", "demo-float16.yaml"),
        (tmp_path, str(shipped)),
        (tmp_path, "configs/demo-float16.yaml", "-C", str(PROJECT)),
        (tmp_path, "--directory", str(PROJECT / "configs"), "demo-float16.yaml"),
    ):
        plan, told = _cli("plan", here, *words, *build)
        assert told == ""
        keys.add(plan["stages"][0]["key"])
    plan, told = _cli("plan", PROJECT, str(former), *build)
    assert told.startswith(f"note: relative paths begin at the folder of {former} now; ")
    assert told.count("\n") == 1
    keys.add(plan["stages"][0]["key"])
    assert len(keys) == 1
    assert DEMO_MODEL.is_dir()


def test_the_directory_comes_before_the_build_directory(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    recipe = str(PROJECT / "configs/demo-float16.yaml")
    _cli("run", tmp_path, "-C", "there", recipe, "--build-dir", "b", "--until", "source")
    assert (tmp_path / "there/b/store").is_dir()
    assert not (tmp_path / "b").exists()
    loaded = load_recipe(Path(recipe)).within(Path("a b"))
    assert loaded.arguments == f"{recipe} --directory 'a b'"
    failed = subprocess.run(
        [sys.executable, "-m", "pipeline", "plan", "-C", "nowhere", "r.yaml"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode == 2
    assert "--directory nowhere: this folder cannot be worked in. No such file" in failed.stderr
