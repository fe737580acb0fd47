"""One word, one line and the reasons, from what realistic runs measured."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import QualityGateError, StageError
from pipeline.recipe.evaluate import Gates
from pipeline.verdict.decision import decide, title_of
from pipeline.verdict.failure import Failure
from pipeline.verdict.gates import checkpoint_gates, engine_gates

from .samples import CONFORMANCE, completion, estimate, evaluation, fidelity

LIMITS = Gates(perplexity_increase=0.02, top1_agreement=0.93)
GOOD: dict[str, Any] = {}
WORSE = {"perplexity_increase": estimate(0.05, 0.04, 0.06)}
UNSURE = {"top1_agreement": estimate(0.935, 0.925, 0.945)}
NO_NUMBER = {"perplexity_increase": estimate(None), "perplexity": estimate(None)}
WRONG_ANSWERS = {
    **CONFORMANCE,
    "passed": 24,
    "failed": 1,
    "checks": [{"name": "end_token", "status": "failed", "reason": "it went on"}],
}
NO_NEEDLE = Failure("compile", False, StageError("the needle broke", why="it was old").as_dict())


def gates(changes: dict[str, Any]) -> list[Any]:
    return checkpoint_gates(LIMITS, evaluation(**changes), 3_673_344, 4)


@pytest.mark.parametrize(
    ("changes", "conformance", "failure", "verdict", "status"),
    [
        (GOOD, CONFORMANCE, None, "ACCEPT", "passed"),
        (GOOD, None, None, "ACCEPT", "passed"),
        (WORSE, None, None, "REGRESSION", "failed"),
        (UNSURE, None, None, "INCONCLUSIVE", "failed"),
        (NO_NUMBER, None, None, "ANOMALOUS", "failed"),
        (WORSE | UNSURE, None, None, "REGRESSION", "failed"),
        (NO_NUMBER | UNSURE, None, None, "ANOMALOUS", "failed"),
        (
            {"completions": [completion("She had a pet cat.", "")]},
            None,
            None,
            "ANOMALOUS",
            "failed",
        ),
        (GOOD, WRONG_ANSWERS, None, "FAILED", "failed"),
        (GOOD, None, NO_NEEDLE, "UNFINISHED", "unfinished"),
        (UNSURE, None, NO_NEEDLE, "INCONCLUSIVE", "failed"),
    ],
)
def test_every_verdict(
    changes: dict[str, Any],
    conformance: dict[str, Any] | None,
    failure: Failure | None,
    verdict: str,
    status: str,
) -> None:
    decision = decide(gates(changes), conformance, failure)
    assert decision.verdict == verdict
    assert decision.status == status
    assert bool(decision.reasons) == (verdict != "ACCEPT")


def test_the_line_that_is_forwarded_when_all_is_well() -> None:
    decision = decide(
        gates(GOOD), CONFORMANCE, None,
        title=title_of("int4_awq"), share=2.6 / 7, tokens_per_second=2156.4,
    )  # fmt: skip
    assert decision.headline == (
        "INT4 AWQ: ships. 2.7x smaller than 16 bit, perplexity +0.01 % [-0.09 %, +0.11 %] of at "
        "most 2 %, 25 of 25 checks, 2,156 tokens/s"
    )
    assert decide(gates(GOOD), None, None).headline == (
        "Ships. Perplexity +0.01 % [-0.09 %, +0.11 %] of at most 2 %, not served here"
    )


def test_nobody_is_told_that_a_model_is_good_which_nobody_measured() -> None:
    assert "No gate was asked about its quality" in decide([], CONFORMANCE, None).headline


def test_the_line_that_is_forwarded_when_it_is_not() -> None:
    worse = decide(gates(WORSE | UNSURE), None, None, title="INT4 AWQ")
    assert worse.headline == (
        "INT4 AWQ: does not ship. Perplexity +5.00 % [+4.00 %, +6.00 %] of at most 2 %, and 1 more"
    )
    assert len(worse.reasons) == 2
    assert worse.reasons[1].startswith("agreement 93.50 % [92.50 %, 94.50 %] of at least 93 %")
    assert decide(gates(NO_NUMBER), None, None).headline == (
        "Does not ship, because something is wrong. Perplexity is no finite number"
    )
    unsure = decide(gates(UNSURE), None, None).headline
    assert unsure.startswith("Undecided. Agreement 93.50 %")
    assert unsure.endswith("more tokens would probably settle it")
    wrong = decide(gates(GOOD), WRONG_ANSWERS, None, title="INT4 AWQ")
    assert wrong.headline == (
        "INT4 AWQ: does not ship. 1 conformance check failed: end_token: it went on"
    )
    assert wrong.reasons == ("end_token: it went on",)
    assert decide(gates(GOOD), None, NO_NEEDLE).headline == (
        "Not finished. compile: the needle broke"
    )
    assert decide(gates(GOOD), None, NO_NEEDLE).reasons == ("the needle broke", "it was old")


def test_a_stage_that_gives_its_own_verdict_fails_the_run() -> None:
    failure = Failure("polish", True, QualityGateError("too rough").as_dict())
    decision = decide([], None, failure)
    assert (decision.verdict, decision.reasons) == ("FAILED", ("too rough",))


def test_the_engine_counts_as_the_checkpoint_does() -> None:
    broken = fidelity({"top1_agreement": estimate(0.5, 0.49, 0.51)})
    both = [*gates(GOOD), *engine_gates(LIMITS, broken, 3_673_344, 4)]
    decision = decide(both, None, None)
    assert decision.verdict == "REGRESSION"
    assert decision.headline.endswith("; compilation changed the model")


@pytest.mark.parametrize(
    ("name", "title"), [("int4_awq", "INT4 AWQ"), ("float16", "float16"), ("fp8", "fp8")]
)
def test_titles(name: str, title: str) -> None:
    assert title_of(name) == title
