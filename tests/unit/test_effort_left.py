"""What an earlier run did is taken from the time, against sums done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.effort.seconds import Seconds
from pipeline.effort.stages import Earlier
from pipeline.layers.left import WalkLeft
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import PlannedStage
from pipeline.running.room import effort_left
from pipeline.stages import quantize
from pipeline.store.build_dir import BuildDir

from .test_effort import FAST, estimated, facts_of, recipe_of

EIGHT = facts_of("llama-3.1-8b")


def seconds(recipe: Recipe, stage: str, *walks: WalkLeft) -> Seconds:
    options: dict[str, Any] = {"left": {stage: Earlier(0, walks)}} if walks else {}
    found: Seconds = estimated(recipe, EIGHT, FAST, **options)[stage].seconds
    return found


def test_layers_that_are_quantized_are_not_computed_read_or_written_again() -> None:
    recipe = recipe_of(quantize={"format": "int8_sq"})
    whole = seconds(recipe, "quantize")
    left = seconds(recipe, "quantize", WalkLeft(28, 1))
    # Of 16384 tokens through 6.98 billion weights at 4 TFLOP/s, and packing, an eighth; the start
    # of 8 s as it was.
    assert left.computing == pytest.approx(8 + (57.2 + 0.55 + 42) / 8, rel=0.02)
    assert whole.disk is not None
    assert left.disk == pytest.approx(whole.disk / 8)
    # A whole model begins anew.
    at_once = recipe_of(quantize={"format": "int8_sq"}, model={"at_once": "model"})
    assert seconds(at_once, "quantize", WalkLeft(28, 1)) == seconds(at_once, "quantize")


def test_walks_of_scoring_are_shared_by_their_tokens() -> None:
    recipe = recipe_of()
    whole = seconds(recipe, "evaluate").computing
    walks = WalkLeft(32, 20_000 * 4096 * 4), WalkLeft(8, 10_000 * 4096 * 4)
    # 20,000 tokens are through 6.98 billion weights, and 10,000 through a quarter of them: at 1
    # TFLOP/s.
    less = whole - seconds(recipe, "evaluate", *walks).computing
    assert less == pytest.approx(2 * 22_500 * 6.98e9 / 1e12, rel=0.01)
    # There are 20,001 + 77 x 256 tokens in both models; the heads are computed again.
    every = WalkLeft(99, 10**12)
    less = whole - seconds(recipe, "evaluate", every).computing
    assert less == pytest.approx(2 * 2 * (20_001 + 77 * 256) * 6.98e9 / 1e12, rel=0.01)


def test_plan_finds_what_a_killed_run_left(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from pipeline.layers.state import State, computing
    from pipeline.quantize.resuming import state_in

    build, recipe = BuildDir(tmp_path), recipe_of(model={"source": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    lines = [PlannedStage(quantize.STAGE, "run", key="k")]
    (before,) = effort_left(recipe, EIGHT, build, lines).stages
    folder = build.store.unfinished.path("quantize", "k")
    folder.mkdir(parents=True)
    state_in(folder).save(24, [torch.zeros(2)])
    State(folder / "other.part", computing()).save(32, [torch.zeros(2)])
    (after,) = effort_left(recipe, EIGHT, build, lines).stages
    assert before.seconds is not None
    assert after.seconds is not None
    # A quarter of the layers, beside 8 s of the start.
    assert after.seconds.computing - 8 == pytest.approx((before.seconds.computing - 8) / 4)
