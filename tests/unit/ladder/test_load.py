"""Which load counts as measured already; the measuring itself runs end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.ladder.load import Settings, measured_before
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.stages import bench
from pipeline.store.artifact import Artifact
from tests.conftest import PROJECT

from .support import level, rung


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(PROJECT)
    return load_recipe(PROJECT / "configs" / "demo.yaml")


def served(**digests: str) -> dict[str, Artifact]:
    return {
        name: Artifact("repository", "k", digest, Path(), {}) for name, digest in digests.items()
    }


def test_whatever_decides_the_numbers_is_in_the_key(recipe: Recipe) -> None:
    settings, both = Settings(), served(a="1", b="2")
    key = settings.key(recipe, both, "a")
    assert settings.key(recipe, dict(reversed(both.items())), "a") == key
    # A gate, a price and a constraint decide nothing that was measured.
    gates = ["evaluate.gates.top1_agreement=0.5", "cost.price_per_hour=3", "bench.requests=9"]
    path = PROJECT / "configs" / "demo.yaml"
    assert settings.key(load_recipe(path, gates), both, "a") == key
    others = {
        settings.key(recipe, served(a="1", b="3"), "a"),
        settings.key(recipe, served(a="1"), "a"),
        settings.key(recipe, both, "b"),
        replace(settings, seconds=31.0).key(recipe, both, "a"),
        settings.with_level(4).key(recipe, both, "a"),
        settings.key(load_recipe(path, ["bench.output_tokens=33"]), both, "a"),
        settings.key(load_recipe(path, ["compile.max_input_len=64"]), both, "a"),
    }
    assert len({key, *others}) == 8


def test_code_that_makes_the_bench_stage_measure_again_makes_the_ladder_too(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, material = [], []
    for version in ("1", "2"):

        def digest(*rooms: object, version: str = version) -> str:
            return version if "triton" in rooms else "same"

        monkeypatch.setattr(bench, "code_digest", digest)
        keys.append(Settings().key(recipe, served(a="1"), "a"))
        material.append(bench.material(recipe))
    assert material[0] != material[1]
    assert keys[0] != keys[1]


def test_the_level_that_the_constraints_are_about_is_measured() -> None:
    assert Settings((1, 8)).with_level(4).concurrency == (1, 4, 8)
    assert Settings((1, 8)).with_level(8).concurrency == (1, 8)
    assert Settings((1, 8)).with_level(None).concurrency == (1, 8)


def test_only_the_same_key_is_found_and_a_cut_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    assert measured_before(path, "k", ["t-float16"]) is None
    load = {
        "key": "k",
        "created": "2026-05-01T10:00:00Z",
        "machine": {"cpus": 2},
        "concurrency": [8],
        "seconds": 30.0,
        "rounds": 5,
    }
    rungs = [rung("float16", [level(8, 10.0)]), rung("fp8")]
    text = json.dumps({"load": load, "rungs": rungs})
    path.write_text(text)
    found = measured_before(path, "k", ["t-float16"])
    assert found
    assert found.reused
    assert list(found.servers) == ["t-float16"]
    assert found.servers["t-float16"]["measurements"][0]["tokens_per_second"]["value"] == 10.0
    assert measured_before(path, "other", ["t-float16"]) is None
    for cut in (text[: len(text) // 2], "[]", "{}", '{"load": null, "rungs": []}'):
        path.write_text(cut)
        assert measured_before(path, "k", ["t-float16"]) is None


@pytest.mark.parametrize(
    "levels", [[], [5], [{**level(8, 10.0), "concurrency": "8"}], [{"concurrency": 8}]]
)
def test_a_load_that_was_changed_is_measured_again(tmp_path: Path, levels: list[Any]) -> None:
    path = tmp_path / "compare.json"
    load = {
        "key": "k",
        "created": "2026-05-01T10:00:00Z",
        "machine": {"cpus": 2},
        "concurrency": [8],
        "seconds": 30.0,
        "rounds": 5,
    }
    rungs = [rung("float16", [level(8, 10.0)]), rung("int8_sq", [level(8, 12.0)])]
    names = [row["name"] for row in rungs]
    path.write_text(json.dumps({"load": load, "rungs": rungs}))
    assert measured_before(path, "k", names)
    changed = [rungs[0], {**rungs[1], "load": levels}]
    path.write_text(json.dumps({"load": load, "rungs": changed}))
    assert measured_before(path, "k", names) is None
