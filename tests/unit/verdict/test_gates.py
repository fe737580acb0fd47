"""Gates on numbers whose verdict is plain by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.recipe.evaluate import Gates
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.gate import GateResult
from pipeline.verdict.gates import checkpoint_gates, engine_gates, more_to_settle
from pipeline.verdict.words import points

from .samples import completion, estimate, evaluation, fidelity, task

TINY, SMALL, LARGE = 3_673_344, 8_030_261_248, 70_553_706_496


def only(gates: list[GateResult], name: str) -> GateResult:
    (found,) = (gate for gate in gates if gate.name == name)
    return found


def checkpoint(measured: dict[str, Any], name: str, **limits: Any) -> GateResult:
    return only(checkpoint_gates(Gates(**limits), measured, TINY, 4), name)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.01, 0.005, 0.015, "ACCEPT"),
        (0.01, 0.000, 0.020, "ACCEPT"),
        (0.03, 0.025, 0.035, "REGRESSION"),
        (0.03, 0.020, 0.040, "INCONCLUSIVE"),
        (0.015, 0.005, 0.025, "INCONCLUSIVE"),
        (-0.06, -0.08, -0.051, "ANOMALOUS"),
        # A gain that may be one of 3 % is a good one.
        (-0.06, -0.09, -0.03, "ACCEPT"),
        (None, None, None, "ANOMALOUS"),
        (float("nan"), None, None, "ANOMALOUS"),
        (float("inf"), 0.1, float("inf"), "ANOMALOUS"),
        # One document has no interval.
        (0.02, None, None, "ACCEPT"),
        (0.0201, None, None, "REGRESSION"),
        (-0.0501, None, None, "ANOMALOUS"),
    ],
)
def test_a_limit_that_may_not_be_passed(
    value: float | None, low: float | None, high: float | None, verdict: str
) -> None:
    measured = evaluation(perplexity_increase=estimate(value, low, high))
    gate = checkpoint(measured, "perplexity_increase", perplexity_increase=0.02)
    assert gate.verdict == verdict, gate.evidence
    assert gate.subject == "checkpoint"
    assert gate.limit == 0.02


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.96, 0.95, 0.97, "ACCEPT"),
        (0.96, 0.949, 0.97, "INCONCLUSIVE"),
        (0.94, 0.93, 0.951, "INCONCLUSIVE"),
        (0.94, 0.93, 0.95, "INCONCLUSIVE"),
        (0.94, 0.93, 0.949, "REGRESSION"),
        (1.0, 1.0, 1.0, "ACCEPT"),
        (0.95, None, None, "ACCEPT"),
        (0.949, None, None, "REGRESSION"),
        (None, None, None, "ANOMALOUS"),
    ],
)
def test_a_limit_that_must_be_reached(
    value: float | None, low: float | None, high: float | None, verdict: str
) -> None:
    measured = evaluation(top1_agreement=estimate(value, low, high))
    gate = checkpoint(measured, "top1_agreement", top1_agreement=0.95)
    assert gate.verdict == verdict, gate.evidence


def test_the_evidence_has_the_numbers_as_people_write_them() -> None:
    gates = checkpoint_gates(Gates(), evaluation(), TINY, 4)
    assert [(gate.name, gate.verdict) for gate in gates] == [
        ("perplexity_increase", "ACCEPT"),
        ("top1_agreement", "ACCEPT"),
        ("kl_divergence", "ACCEPT"),
        ("source_perplexity", "ACCEPT"),
        ("signal_to_noise", "ACCEPT"),
        ("empty_completions", "ACCEPT"),
        ("repeated_tokens", "ACCEPT"),
    ]
    assert gates[0].evidence == "perplexity +0.01 % [-0.09 %, +0.11 %] of at most 2 %"
    assert gates[1].evidence == "agreement 96.70 % [96.30 %, 97.10 %] of at least 90 %"
    assert gates[2].evidence == "KL divergence 0.0011 [0.0009, 0.0013] of at most 0.05"
    assert gates[0].as_dict() == {
        "name": "perplexity_increase",
        "subject": "checkpoint",
        "measured": 0.0001,
        "low": -0.0009,
        "high": 0.0011,
        "limit": 0.02,
        "verdict": "ACCEPT",
        "evidence": gates[0].evidence,
        "more_tokens": None,
    }
    assert [GateResult.from_dict(gate.as_dict()) for gate in gates] == gates


def test_a_number_without_an_interval_says_so() -> None:
    measured = evaluation(perplexity_increase=estimate(0.03))
    gate = checkpoint(measured, "perplexity_increase", perplexity_increase=0.02)
    assert gate.evidence == (
        "perplexity +3.00 % of at most 2 %: one number without an interval, which alone decides"
    )


def test_a_change_beyond_all_measure_stays_readable() -> None:
    measured = evaluation(perplexity_increase=estimate(2477635.3507, 9.5, 3550903.3934))
    gate = checkpoint(measured, "perplexity_increase", perplexity_increase=0.02)
    assert gate.evidence == ("perplexity +247,763,535 % [+950.00 %, +355,090,339 %] of at most 2 %")


def test_more_tokens_by_hand() -> None:
    # The half-width 0.01 is to be 0.005: four times the text, and (1 + 0.8416 / 1.96)^2 times that
    # for four chances of five: 4 * 2.0431 * 20000 = 163446 in all.
    measured = evaluation(perplexity_increase=estimate(0.015, 0.005, 0.025))
    gate = checkpoint(measured, "perplexity_increase", perplexity_increase=0.02)
    assert gate.more_tokens == pytest.approx(143446, abs=10)
    assert gate.evidence.endswith("about 150,000 more tokens would probably settle it")


def test_what_no_text_can_settle_is_said_in_words() -> None:
    measured = evaluation(perplexity_increase=estimate(0.01999, 0.01, 0.03))
    gate = checkpoint(measured, "perplexity_increase", perplexity_increase=0.02)
    assert gate.verdict == "INCONCLUSIVE"
    assert gate.more_tokens is None
    assert "so near to what was measured that more tokens would hardly settle it" in gate.evidence
    exactly = evaluation(perplexity_increase=estimate(0.02, 0.01, 0.03))
    assert checkpoint(exactly, "perplexity_increase", perplexity_increase=0.02).more_tokens is None


@pytest.mark.parametrize(("rate", "limit"), [(0.96, 0.95), (0.94, 0.95), (0.991, 0.99)])
def test_that_many_tokens_do_settle_it_four_times_of_five(rate: float, limit: float) -> None:
    """Agreements drawn by numpy, with intervals of the normal approximation."""
    random, count = np.random.default_rng(7), 1000

    def ends(share: Any, n: int) -> tuple[Any, Any]:
        half = 1.959964 * np.sqrt(share * (1 - share) / n)
        return share - half, share + half

    low, high = ends(rate, count)
    more = more_to_settle(Estimate(rate, float(low), float(high)), limit, count)
    assert more is not None

    def settled(total: int) -> float:
        low, high = ends(random.binomial(total, rate, 20000) / total, total)
        return float(np.mean(low >= limit if rate > limit else high < limit))

    assert settled(count) < 0.5
    assert settled(count + more) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(
    ("change", "limit", "verdict"),
    [
        ((-0.01, -0.02, 0.0), 0.02, "ACCEPT"),
        ((-0.05, -0.06, -0.04), 0.02, "REGRESSION"),
        ((-0.015, -0.04, 0.01), 0.02, "INCONCLUSIVE"),
        ((0.08, 0.06, 0.1), 0.02, "ANOMALOUS"),
        ((0.08, 0.01, 0.15), 0.02, "ACCEPT"),
    ],
)
def test_a_loss_of_accuracy(change: tuple[float, float, float], limit: float, verdict: str) -> None:
    measured = evaluation(tasks=[task(accuracy_change=estimate(*change))])
    gate = checkpoint(measured, "accuracy_loss", accuracy_loss=limit)
    assert gate.verdict == verdict, gate.evidence
    assert gate.evidence.startswith("hellaswag: loss of accuracy ")
    assert gate.estimate.value == -change[0]
    # Rows of a task are no tokens of the text.
    assert gate.more_tokens is None
    assert ("more rows would probably settle it" in gate.evidence) == (verdict == "INCONCLUSIVE")


def test_every_task_has_its_gate() -> None:
    lost = task(name="mmlu", accuracy_change=estimate(-0.2, -0.25, -0.15))
    gates = checkpoint_gates(Gates(), evaluation(tasks=[task(), lost]), SMALL, 4)
    found = [gate for gate in gates if gate.name == "accuracy_loss"]
    assert [gate.verdict for gate in found] == ["ACCEPT", "REGRESSION"]
    assert found[1].evidence == (
        "mmlu: loss of accuracy 20.0 points [15.0, 25.0] of at most 5 points"
    )


def test_null_checks_nothing_but_what_cannot_be() -> None:
    limits = ("perplexity_increase", "top1_agreement", "kl_divergence")
    none = dict.fromkeys((*limits, "source_perplexity", "signal_to_noise"))
    bad = evaluation(
        perplexity_increase=estimate(9.0, 8.0, 10.0), top1_agreement=estimate(0.1, 0.1, 0.1)
    )
    assert checkpoint_gates(Gates(**none, completions=False), bad, TINY, 4) == []
    gain = evaluation(perplexity_increase=estimate(-0.3, -0.4, -0.2), kl_divergence=estimate(None))
    gates = checkpoint_gates(Gates(**none, completions=False), gain, TINY, 4)
    assert [(gate.name, gate.verdict) for gate in gates] == [
        ("perplexity_increase", "ANOMALOUS"),
        ("kl_divergence", "ANOMALOUS"),
    ]
    assert "a gain of more than 5 % is implausible" in gates[0].evidence
    assert gates[1].evidence == "KL divergence is no finite number"


@pytest.mark.parametrize(
    ("parameters", "bits", "increase", "verdict"),
    [
        # What the AWQ paper and llama.cpp publish for 4 bit of 7B and 8B, and 8 bit of any size.
        (SMALL, 4, 0.028, "ACCEPT"),
        (SMALL, 4, 0.07, "REGRESSION"),
        (SMALL, 8, 0.028, "REGRESSION"),
        (SMALL, 8, 0.0195, "ACCEPT"),
        (SMALL, 16, 0.03, "REGRESSION"),
        (LARGE, 4, 0.027, "ACCEPT"),
        (LARGE, 4, 0.035, "REGRESSION"),
        (TINY, 4, 0.028, "REGRESSION"),
        (TINY, 4, 0.019, "ACCEPT"),
    ],
)
def test_auto_depends_on_size_and_bits(
    parameters: int, bits: int, increase: float, verdict: str
) -> None:
    measured = evaluation(
        perplexity_increase=estimate(increase, increase - 0.0005, increase + 0.0005)
    )
    gates = checkpoint_gates(Gates(), measured, parameters, bits)
    assert only(gates, "perplexity_increase").verdict == verdict
    # A number of the recipe holds whatever the size.
    gates = checkpoint_gates(Gates(perplexity_increase=0.5), measured, parameters, bits)
    assert only(gates, "perplexity_increase").verdict == "ACCEPT"


def test_the_published_loss_of_accuracy_passes_at_its_size_alone() -> None:
    # ModelOpt's benchmark.md: 5.66 % of 68.2 points for Llama-3.1-8B, 1.07 % of 82.4 for 70B.
    eight, seventy = 0.0566 * 0.682, 0.0107 * 0.824
    for parameters, loss, verdict in (
        (SMALL, eight, "ACCEPT"),
        (LARGE, seventy, "ACCEPT"),
        (LARGE, eight, "REGRESSION"),
    ):
        change = estimate(-loss, -loss - 0.003, -loss + 0.003)
        gates = checkpoint_gates(
            Gates(), evaluation(tasks=[task(accuracy_change=change)]), parameters, 4
        )
        assert only(gates, "accuracy_loss").verdict == verdict


STORY = " in a little village. His favourite drawing was the snail on the roof."
LOOP = " A A A A A A A A A A A A A A A A A A A A A A A A"


@pytest.mark.parametrize(
    ("pairs", "empty", "repeated"),
    [
        ([(STORY, STORY)], "ACCEPT", "ACCEPT"),
        ([(STORY, "")], "ANOMALOUS", "ACCEPT"),
        ([(STORY, " \n")], "ANOMALOUS", "ACCEPT"),
        ([(STORY, LOOP)], "ACCEPT", "ANOMALOUS"),
        # The source does the same, so nothing was lost.
        ([(LOOP, LOOP), (STORY, STORY)], "ACCEPT", "ACCEPT"),
        ([("", ""), (STORY, STORY)], "ACCEPT", "ACCEPT"),
        # One of several may be chance, most of them not.
        ([(STORY, LOOP), (STORY, STORY)], "ACCEPT", "ACCEPT"),
        ([(STORY, LOOP), (STORY, LOOP), (STORY, STORY)], "ACCEPT", "ANOMALOUS"),
        ([(STORY, LOOP), (LOOP, STORY)], "ACCEPT", "ANOMALOUS"),
    ],
)
def test_texts_that_broke_down(pairs: list[tuple[str, str]], empty: str, repeated: str) -> None:
    measured = evaluation(completions=[completion(*pair) for pair in pairs])
    assert checkpoint(measured, "empty_completions").verdict == empty
    gate = checkpoint(measured, "repeated_tokens")
    assert gate.verdict == repeated
    if repeated == "ANOMALOUS":
        assert "'Once there was a girl' goes on as ' A A A" in gate.evidence


def test_sources_that_break_down_themselves_say_nothing() -> None:
    measured = evaluation(completions=[completion(LOOP, LOOP)])
    names = [gate.name for gate in checkpoint_gates(Gates(), measured, TINY, 4)]
    assert "empty_completions" in names
    assert "repeated_tokens" not in names
    assert "empty_completions" not in [
        gate.name for gate in checkpoint_gates(Gates(), evaluation(completions=[]), TINY, 4)
    ]


def engine(measured: dict[str, Any], bits: int = 4, **limits: Any) -> dict[str, GateResult]:
    return {gate.name: gate for gate in engine_gates(Gates(**limits), measured, TINY, bits)}


def test_an_engine_like_its_checkpoint_is_accepted() -> None:
    gates = engine(fidelity())
    assert {gate.verdict for gate in gates.values()} == {"ACCEPT"}
    assert {gate.subject for gate in gates.values()} == {"engine"}
    assert list(gates) == [
        "engine_perplexity_increase",
        "engine_top1_agreement",
        "engine_kl_divergence",
        "perplexity_increase",
        "top1_agreement",
        "kl_divergence",
    ]
    assert gates["engine_kl_divergence"].evidence == (
        "KL divergence of the engine against the checkpoint 1e-05 [9e-06, 1.2e-05] of at most 0.002"
    )
    assert gates["perplexity_increase"].evidence.startswith("perplexity of the engine +0.01 %")


def test_int8_may_round_ties_the_other_way_and_floating_point_may_not() -> None:
    # stories260K-h128 in INT8 SmoothQuant on OpenVINO, measured on 1,280 tokens.
    ties = {
        "perplexity_increase": estimate(-9.4e-4, -0.002, 0.0005),
        "kl_divergence": estimate(5.9e-4, 4e-4, 8e-4),
        "top1_agreement": estimate(0.981, 0.972, 0.989),
    }
    assert {gate.verdict for gate in engine(fidelity(ties), bits=8).values()} == {"ACCEPT"}
    assert engine(fidelity(ties), bits=4)["engine_top1_agreement"].verdict == "INCONCLUSIVE"


def test_few_tokens_that_do_not_tell_are_settled_by_those_against_the_checkpoint() -> None:
    unsure = {"top1_agreement": estimate(0.905, 0.895, 0.915), "tokens": 4000}
    gate = engine(fidelity(**unsure))["top1_agreement"]
    assert gate.verdict == "ACCEPT"
    assert gate.more_tokens is None
    assert "the limit lies inside the interval" in gate.evidence
    assert gate.evidence.endswith(
        "; the engine follows the checkpoint, which is held to the same limit on more of them"
    )
    # Not where nothing says that it follows: a gate is off, or is not open.
    assert engine(fidelity(**unsure), engine_kl_divergence=None)["top1_agreement"].verdict == (
        "INCONCLUSIVE"
    )
    parted = fidelity({"kl_divergence": estimate(0.01, 0.009, 0.011)}, **unsure)
    assert engine(parted)["top1_agreement"].verdict == "INCONCLUSIVE"
    # And never where more text would not help.
    lost = fidelity(top1_agreement=estimate(0.85, 0.84, 0.86))
    assert engine(lost)["top1_agreement"].verdict == "REGRESSION"


def test_what_float32_cannot_tell_from_nothing_is_nothing() -> None:
    noise = fidelity({"kl_divergence": estimate(7.4e-11, -5e-10, 6e-10)})
    assert engine(noise)["engine_kl_divergence"].evidence == (
        "KL divergence of the engine against the checkpoint 0 of at most 0.002"
    )


def test_compilation_that_broke_it_is_told_from_quantization_that_lost_it() -> None:
    lost = {"perplexity_increase": estimate(0.2, 0.18, 0.22)}
    broken = {"kl_divergence": estimate(0.3, 0.28, 0.32), "top1_agreement": estimate(0.6, 0.5, 0.7)}
    quantization = engine(fidelity(**lost))["perplexity_increase"]
    assert quantization.verdict == "REGRESSION"
    assert quantization.evidence.endswith(
        "; the engine follows the checkpoint, so quantization lost it and not compilation"
    )
    gates = engine(fidelity({**broken, **lost}, **lost))
    for name in ("engine_perplexity_increase", "engine_kl_divergence", "engine_top1_agreement"):
        assert gates[name].verdict == "REGRESSION"
        assert gates[name].evidence.endswith("; compilation changed the model")
    assert gates["perplexity_increase"].evidence.endswith(
        "; the engine does not follow the checkpoint, so compilation has a part in it"
    )
    # An engine of another checkpoint may even be a better model.
    better = engine(fidelity({"perplexity_increase": estimate(-0.2, -0.22, -0.18)}))
    assert better["engine_perplexity_increase"].verdict == "ANOMALOUS"


def test_an_engine_without_logits_is_judged_by_its_perplexity() -> None:
    """What TensorRT-LLM gives: one number for the whole text."""
    against = dict.fromkeys(("kl_divergence", "kl_divergence_p99", "top1_agreement"))
    measured = fidelity(
        {"perplexity_increase": estimate(0.002), **against},
        perplexity_increase=estimate(0.0021),
        kl_divergence=None,
        top1_agreement=None,
    )
    gates = engine(measured)
    assert list(gates) == ["engine_perplexity_increase", "perplexity_increase"]
    assert {gate.verdict for gate in gates.values()} == {"ACCEPT"}
    assert "without an interval" in gates["perplexity_increase"].evidence
    assert engine(measured, engine_perplexity_increase=0.001)[
        "engine_perplexity_increase"
    ].verdict == ("REGRESSION")


@pytest.mark.parametrize(("share", "words"), [(-0.0, "0.0"), (-0.0004, "0.0"), (-0.02, "-2.0")])
def test_nothing_is_not_less_than_nothing(share: float, words: str) -> None:
    assert points(share) == f"{words} points"
