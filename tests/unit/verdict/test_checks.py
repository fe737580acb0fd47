"""What a closed gate tells whoever started the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import QualityGateError
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.verdict.checks import check_checkpoint, check_engine, gates_of

from .samples import completion, estimate, evaluation, fidelity, task

RECIPE = """\
schema: 1
name: t
model: {source: my/model}
quantize: {format: int4_awq, calibration: {text: c.txt}}
evaluate:
  text: heldout.jsonl
  tokens: 20000
  gates:
    perplexity_increase: 0.02
    top1_agreement: 0.93
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    # Where the file is, so that errors name its text as it does.
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(path)


def stopped(recipe: Recipe, measured: dict[str, Any]) -> QualityGateError:
    check = check_engine if "against_checkpoint" in measured else check_checkpoint
    artifact = Artifact("measured", "key", "digest", Path("store/measured/key"), measured)
    with pytest.raises(QualityGateError, match=r"evaluate\.gates\.") as caught:
        check(recipe, artifact)
    assert caught.value.exit_code == 4
    return caught.value


def test_open_gates_stop_nothing(recipe: Recipe, tmp_path: Path) -> None:
    check_checkpoint(recipe, Artifact("evaluate", "k", "d", tmp_path, evaluation()))
    check_engine(recipe, Artifact("fidelity", "k", "d", tmp_path, fidelity()))


def test_a_regression_has_the_formats_remedy(recipe: Recipe, tmp_path: Path) -> None:
    measured = evaluation(perplexity_increase=estimate(0.05, 0.04, 0.06))
    error = stopped(recipe, measured)
    assert str(error) == (
        f"{tmp_path}/recipe.yaml:9 (evaluate.gates.perplexity_increase): the checkpoint is worse "
        "than the recipe allows: perplexity +5.00 % [+4.00 %, +6.00 %] of at most 2 %. Every "
        "number is in store/measured/key/evaluation.json. Try quantize.group_size: 64 or format "
        "int4_gptq or format int8_sq, calibrate on more text, or loosen the gate."
    )
    assert error.found["verdict"] == "REGRESSION"
    assert error.found["gates"] == [gate.as_dict() for gate in gates_of(recipe, measured)]
    assert error.as_dict()["gates"] == error.found["gates"]


@pytest.mark.parametrize(
    ("quantize", "remedy"),
    [
        ("format: int4_awq, group_size: 64, ", "Try format int4_gptq or format int8_sq, calibrate"),
        ("format: int4_gptq, act_order: true, ", "Try quantize.group_size: 64 or format int8_sq, "),
        ("format: int8_sq, ", "Try quantize.search: {} or format int4_awq, calibrate"),
        ("format: int8_sq, search: {}, ", "Try format int4_awq, calibrate"),
    ],
)
def test_what_the_recipe_has_already_is_no_remedy(
    tmp_path: Path, quantize: str, remedy: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("format: int4_awq, ", quantize))
    error = stopped(load_recipe(path), evaluation(perplexity_increase=estimate(0.05, 0.04, 0.06)))
    assert str(error.fix).startswith(remedy)


def test_what_cannot_be_told_says_how_much_text_would(recipe: Recipe) -> None:
    measured = evaluation(top1_agreement=estimate(0.938, 0.928, 0.948))
    error = stopped(recipe, measured)
    # (0.01 / 0.008)^2 * 2.0431 * 20000 = 63847 by hand, to two digits.
    assert error.fix == (
        "Set evaluate.tokens to 64000; where heldout.jsonl is shorter, add text to it. If it is "
        "good enough as it is, set evaluate.gates.top1_agreement to 0.928, which the whole "
        "interval keeps"
    )
    assert "whether the checkpoint is as good as the recipe asks cannot be told yet" in error.what
    # All text was scored, so the number alone would change nothing.
    short = stopped(recipe, measured | {"tokens": 5000})
    assert str(short.fix).startswith("Add text to heldout.jsonl, of which every token was scored")
    near = stopped(recipe, evaluation(top1_agreement=estimate(0.9301, 0.92, 0.94)))
    assert str(near.fix).startswith("Set a limit that is clear of what was measured")
    engine = fidelity({"top1_agreement": estimate(0.975, 0.965, 0.985)}, tokens=4000)
    # (0.01 / 0.005)^2 * 2.0431 * 4000 = 32690.
    assert stopped(recipe, engine).fix == (
        "Set evaluate.engine_tokens to 33000 and evaluate.tokens to 33000; where heldout.jsonl is "
        "shorter, add text to it. If it is good enough as it is, set "
        "evaluate.gates.engine_top1_agreement to 0.965, which the whole interval keeps"
    )
    most = stopped(recipe, evaluation(perplexity_increase=estimate(0.018, 0.0151, 0.02091)))
    assert str(most.fix).endswith(
        "set evaluate.gates.perplexity_increase to 0.021, which the whole interval keeps"
    )
    rows = evaluation(tasks=[task(accuracy_change=estimate(-0.04, -0.08, 0.0))])
    assert "more questions of the task (rows in evaluate.tasks)" in str(stopped(recipe, rows).fix)
    assert "null reports the accuracy" in str(stopped(recipe, rows).fix)


@pytest.mark.parametrize(
    ("changes", "key", "look"),
    [
        ({"perplexity_increase": estimate(None)}, "perplexity_increase", "dtype bfloat16"),
        (
            {"perplexity_increase": estimate(-0.2, -0.25, -0.15)},
            "perplexity_increase",
            "heldout.jsonl has texts that the scales were calibrated on, and whether my/model",
        ),
        (
            {"completions": [completion("She had a pet cat called Tom.", "")]},
            "completions",
            "completions and signal_to_noise",
        ),
        (
            {"completions": [completion("She had a pet cat called Tom.", "!" * 40)]},
            "completions",
            "completions and signal_to_noise",
        ),
    ],
)
def test_an_anomaly_says_where_to_look(
    changes: dict[str, Any], key: str, look: str, recipe: Recipe
) -> None:
    error = stopped(recipe, evaluation(**changes))
    assert error.what.startswith("what was measured of the checkpoint cannot be right: ")
    assert f"(evaluate.gates.{key})" in str(error.where)
    assert look in str(error.fix)


def test_what_several_gates_say_alike_is_told_once(recipe: Recipe) -> None:
    lost = fidelity(
        perplexity_increase=estimate(0.2, 0.18, 0.22), top1_agreement=estimate(0.6, 0.5, 0.7)
    )
    error = stopped(recipe, lost)
    cause = "the engine follows the checkpoint, so quantization lost it and not compilation"
    assert error.what.count(cause) == 1
    assert error.what.endswith(
        f"agreement of the engine 60.00 % [50.00 %, 70.00 %] of at least 93 %; {cause}"
    )
    assert "perplexity of the engine +20.00 %" in error.what


def test_the_worst_gate_names_the_error_and_all_are_told(recipe: Recipe) -> None:
    error = stopped(
        recipe,
        evaluation(
            perplexity_increase=estimate(0.05, 0.04, 0.06), kl_divergence=estimate(float("nan"))
        ),
    )
    assert "(evaluate.gates.kl_divergence)" in str(error.where)
    assert error.what.index("KL divergence is no finite number") < error.what.index("+5.00 %")


def test_an_engine_that_does_not_follow_its_checkpoint(recipe: Recipe) -> None:
    error = stopped(recipe, fidelity({"kl_divergence": estimate(0.3, 0.28, 0.32)}))
    assert error.what == (
        "the engine is worse than the recipe allows: KL divergence of the engine against the "
        "checkpoint 0.3 [0.28, 0.32] of at most 0.002; compilation changed the model"
    )
    assert "options of compile.openvino at their defaults" in str(error.fix)
    assert "fidelity.json" in str(error.why)
    # Where the checkpoint lost as much, the format is what to change.
    lost = stopped(recipe, fidelity(perplexity_increase=estimate(0.05, 0.04, 0.06)))
    assert str(lost.fix).startswith("Try quantize.group_size")


def test_a_limit_that_the_recipe_does_not_set_says_where_it_comes_from(
    recipe: Recipe, tmp_path: Path
) -> None:
    error = stopped(recipe, evaluation(kl_divergence=estimate(0.2, 0.18, 0.22)))
    assert error.where == f"{tmp_path}/recipe.yaml:8 (evaluate.gates.kl_divergence)"
    assert "leaves this limit to the size of the model and its 4 bits" in str(error.why)
    large = evaluation(parameters=8_000_000_000, kl_divergence=estimate(0.2, 0.18, 0.22))
    assert "llama.cpp" in str(stopped(recipe, large).why)
