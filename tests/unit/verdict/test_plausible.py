"""What no working chain measures: a source below guessing, a linear beyond rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import QualityGateError
from pipeline.recipe.evaluate import Gates
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.verdict.checks import check_checkpoint, check_engine
from pipeline.verdict.decision import decide
from pipeline.verdict.gate import GateResult
from pipeline.verdict.gates import checkpoint_gates, engine_gates

from .samples import evaluation, fidelity

RECIPE = {
    "name": "t",
    "model": {"source": "my/model"},
    "quantize": {"format": "int4_awq", "calibration": {"text": "c.txt"}},
    "evaluate": {"text": "heldout.jsonl"},
}
TINY, SMALL = 3_673_344, 8_030_261_248


def found(name: str, bits: int = 4, parameters: int = TINY, **changes: Any) -> GateResult | None:
    limits = changes.pop("gates", {})
    gates = checkpoint_gates(Gates(**limits), evaluation(**changes), parameters, bits)
    return next((gate for gate in gates if gate.name == name), None)


def gate(name: str, *given: int, **changes: Any) -> GateResult:
    result = found(name, *given, **changes)
    assert result
    return result


def linear(name: str, db: float | None) -> dict[str, Any]:
    return {"linear": name, "db": db, "exact": False}


@pytest.mark.parametrize(
    ("perplexity", "verdict"),
    [
        (1.4, "ACCEPT"),
        # Random weights: 1 and a little more of the vocabulary, which has 1024 tokens.
        (1020.0, "ACCEPT"),
        (1520.0, "ACCEPT"),
        (2049.0, "ANOMALOUS"),
        (1.2e6, "ANOMALOUS"),
        (None, "ANOMALOUS"),
    ],
)
def test_a_source_that_predicts_worse_than_guessing(perplexity: float | None, verdict: str) -> None:
    assert gate("source_perplexity", source_perplexity=perplexity).verdict == verdict
    assert found("source_perplexity", source_perplexity=perplexity, gates=off()) is None


def off() -> dict[str, None]:
    return {"source_perplexity": None, "signal_to_noise": None}


def test_a_source_has_the_perplexity_that_its_owner_knows() -> None:
    own = {"gates": {"source_perplexity": 5.0}}
    assert gate("source_perplexity", source_perplexity=4.9, **own).verdict == "ACCEPT"
    assert gate("source_perplexity", source_perplexity=5.1, **own).verdict == "ANOMALOUS"


@pytest.mark.parametrize(
    ("db", "bits", "parameters", "verdict"),
    [
        (15.6, 4, TINY, "ACCEPT"),
        (12.0, 4, TINY, "ACCEPT"),
        (11.4, 4, TINY, "ANOMALOUS"),
        (10.0, 8, TINY, "ANOMALOUS"),
        (10.0, 8, SMALL, "ACCEPT"),
        # 20 log10(1 / 0.5): a half too much.
        (6.02, 4, SMALL, "ANOMALOUS"),
        (52.0, 16, SMALL, "ACCEPT"),
        (21.0, 16, SMALL, "ANOMALOUS"),
        (None, 4, TINY, "ANOMALOUS"),
    ],
)
def test_a_linear_that_rounding_does_not_explain(
    db: float | None, bits: int, parameters: int, verdict: str
) -> None:
    linears = [linear("mlp.up", db), linear("mlp.down", 60.0)]
    result = gate("signal_to_noise", bits, parameters, signal_to_noise=linears)
    assert result.verdict == verdict, result.evidence
    assert result.estimate.value == db
    assert "mlp.up" in result.evidence
    assert found("signal_to_noise", signal_to_noise=linears, gates=off()) is None


def test_norms_and_embeddings_are_held_to_sixteen_bits_in_every_format() -> None:
    parts = [
        {"part": "model.norm", "db": 25.0, "exact": False},
        {"part": "model.embed_tokens", "db": None, "exact": True},
    ]
    result = gate("signal_to_noise", signal_to_noise_of_others=parts)
    assert result.verdict == "ANOMALOUS"
    assert result.evidence == (
        "signal to noise 25.0 dB of at least 30 dB, in model.norm: rounding to 16 bits leaves "
        "30 dB and more, so what was written is not that part of the source"
    )
    parts[0]["db"] = 54.0
    assert gate("signal_to_noise", signal_to_noise_of_others=parts).verdict == "ACCEPT"


def test_a_limit_of_the_recipe_is_about_quality_until_it_is_damage() -> None:
    own = {"gates": {"signal_to_noise": 20.0}}
    for db, verdict in ((20.5, "ACCEPT"), (19.0, "REGRESSION"), (6.0, "ANOMALOUS")):
        linears = [linear("a", db), linear("b", 25.0)]
        assert gate("signal_to_noise", signal_to_noise=linears, **own).verdict == verdict
    # One that is loose lets pass what is below rounding, as its owner wants it.
    loose = {"gates": {"signal_to_noise": 5.0}}
    assert gate("signal_to_noise", signal_to_noise=[linear("a", 6.0)], **loose).verdict == "ACCEPT"


def test_nothing_is_said_of_parts_that_are_exact() -> None:
    exact = [{"linear": "a", "db": None, "exact": True}]
    others = [{"part": "b", "db": None, "exact": True}]
    assert found("signal_to_noise", signal_to_noise=exact, signal_to_noise_of_others=others) is None


@pytest.mark.parametrize(
    ("changes", "key", "fix"),
    [
        (
            {"source_perplexity": 1.2e6},
            "source_perplexity",
            "Look whether the tokenizer in my/model is the model's own",
        ),
        (
            {"signal_to_noise": [linear("mlp.up", 5.9), linear("mlp.down", 5.8)]},
            "signal_to_noise",
            "Look at signal_to_noise in that file",
        ),
    ],
)
def test_an_anomaly_says_what_to_do(changes: dict[str, Any], key: str, fix: str) -> None:
    recipe = Recipe.model_validate(RECIPE)
    with pytest.raises(QualityGateError, match=rf"evaluate\.gates\.{key}") as caught:
        check_checkpoint(recipe, Artifact("e", "k", "d", Path("store"), evaluation(**changes)))
    assert caught.value.exit_code == 4
    assert fix in str(caught.value.fix)
    gates = [GateResult.from_dict(one) for one in caught.value.found["gates"]]
    assert decide(gates, None, None).verdict == "ANOMALOUS"
    if key == "signal_to_noise":
        assert "5.8 dB of at least 12 dB, in mlp.down and 1 more" in caught.value.what
    else:
        assert "worse than a guess among all 1,024 tokens" in caught.value.what


def test_a_closed_gate_says_where_its_limit_is_from() -> None:
    recipe = Recipe.model_validate(RECIPE)
    norm = [{"part": "model.norm", "db": 6.0, "exact": False}]
    for changes, words in (
        ({"signal_to_noise": [linear("a", 6.0)]}, "its 4 bits: the worst linear of stories260K"),
        ({"signal_to_noise_of_others": norm}, "its 16 bits: 16 bit: the worst linear, norm or"),
        ({"source_perplexity": 1e6}, "the vocabulary, of 1,024 tokens"),
    ):
        with pytest.raises(QualityGateError, match="cannot be right") as caught:
            check_checkpoint(recipe, Artifact("e", "k", "d", Path("store"), evaluation(**changes)))
        assert words in str(caught.value.why)


@pytest.mark.parametrize(
    ("engine", "checkpoint", "differ"),
    [
        ("W4A16_AWQ", "W4A16_AWQ", False),
        ("NO_QUANT", "W8A8_SQ_PER_CHANNEL", True),
        ("W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", True),
        (None, "W4A16_AWQ", False),
    ],
)
def test_an_engine_of_another_format_has_all_the_quality_and_is_refused(
    engine: str | None, checkpoint: str, differ: bool, tmp_path: Path
) -> None:
    measured = fidelity() | {"quant_algo": {"engine": engine, "checkpoint": checkpoint}}
    first = engine_gates(Gates(), measured, TINY, 4)[0]
    assert (first.name == "engine_format") == differ
    if not differ:
        return
    assert first.verdict == "ANOMALOUS"
    artifact = Artifact("fidelity", "k", "d", tmp_path, {**measured, "parameters": TINY})
    words = f"compiled from a checkpoint in {engine}, and this one is {checkpoint}"
    with pytest.raises(QualityGateError, match=words) as refused:
        check_engine(Recipe.model_validate(RECIPE), artifact)
    assert refused.value.fix == "Compile the checkpoint again: add --force compile"
    assert "quantize.format" in str(refused.value.where)
