"""The recommendation, on rungs whose numbers are small enough to decide by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.ladder.recommend import deciding_level, recommend
from pipeline.recipe.schema import ConstraintsSection

from .support import est, level, rung

FULL = {"bytes_16bit": 8_000_000, "checkpoint_bytes": 8_000_000, "engine_bytes": 1, "share": 1.0}
HALF = {**FULL, "checkpoint_bytes": 4_000_000, "share": 0.5}
QUARTER = {**FULL, "checkpoint_bytes": 2_000_000, "share": 0.25}
# Four rounds each, with the same disturbances: paired they differ by exactly 10 %, alone they
# scatter by more than that.
NOISE = (1.0, 1.3, 0.8, 1.1)


def rounds(speed: float) -> list[float]:
    return [speed * noise for noise in NOISE]


def ladder(fast: float = 1100.0, **changes: Any) -> list[dict[str, Any]]:
    """16 bit at 1000 tokens/s, and int4_awq at ``fast`` with ``changes``."""
    ratio = fast / 1000.0
    return [
        rung("float16", [level(8, 1000.0, rounds=rounds(1000.0))], size=FULL),
        rung(
            "int4_awq",
            [
                level(
                    8,
                    fast,
                    ratio=est(ratio, ratio, ratio),
                    difference=ratio != 1.0,
                    rounds=rounds(fast),
                )
            ],
            size=QUARTER,
            **changes,
        ),
    ]


def chosen(rows: list[dict[str, Any]], **limits: Any) -> dict[str, Any]:
    return recommend(rows, ConstraintsSection(**limits), 8, "t-float16")


def test_the_fastest_that_keeps_all_is_taken_and_the_reason_has_its_numbers() -> None:
    found = chosen(ladder())
    assert found["format"] == "int4_awq"
    for words in ("1,100 tokens/s at 8 streams", "1.10 times float16", "25 % of 16 bit"):
        assert words in found["reason"]
    assert chosen(ladder(900.0))["format"] == "float16"


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    rows = ladder()
    rows[1]["perplexity_increase"] = est(-0.00003, -0.0001, 0.0001)
    assert "perplexity 0.00 % against the source" in chosen(rows)["reason"]


def test_of_equal_speeds_the_smallest_on_disk_is_taken() -> None:
    found = chosen(ladder(1000.0))
    assert found["format"] == "int4_awq"
    assert "no faster or slower than float16" in found["reason"]


def test_speeds_are_compared_round_by_round() -> None:
    rows = ladder(1010.0)
    # 1 % apart in every round: the intervals of the speeds overlap, that of the ratio excludes 1.
    rows[0]["checkpoint_bytes"] = 1
    assert chosen(rows)["format"] == "int4_awq"
    # The rounds of one of them in another order: now nothing tells them apart.
    rows[1]["load"][0]["by_round"] = rounds(1010.0)[::-1]
    assert chosen(rows)["format"] == "float16"


def test_a_closed_gate_takes_a_rung_out_with_the_gates_own_words() -> None:
    gate = {
        "name": "top1_agreement",
        "measured": 0.9,
        "low": 0.89,
        "high": 0.91,
        "limit": 0.95,
        "verdict": "REGRESSION",
        "evidence": "top-1 agreement is 90 %, required is at least 95 %",
    }
    closed = {"verdict": "REGRESSION", "headline": "No", "reasons": [], "status": "failed"}
    found = chosen(ladder(verdict=closed, gates=[gate]))
    assert found["format"] == "float16"
    (miss,) = found["misses"]["t-int4_awq"]
    assert miss["words"] == gate["evidence"]
    assert miss["excess"] == pytest.approx(0.05 / 0.95)


@pytest.mark.parametrize(
    ("limits", "changes", "words"),
    [
        (
            {"max_perplexity_increase": 0.02},
            {"perplexity_increase": est(0.025, 0.024, 0.026)},
            "the increase of perplexity is 2.5 %, 0.6 % over max_perplexity_increase 2 %",
        ),
        # Inside by its value, but the interval is not.
        (
            {"max_perplexity_increase": 0.02},
            {"perplexity_increase": est(0.018, 0.015, 0.021)},
            "is 1.8 % and may be 2.1 %, 0.1 % over max_perplexity_increase 2 %",
        ),
        (
            {"max_accuracy_loss": 0.02},
            {},
            "the loss of accuracy in hellaswag is 1 % and may be 3 %, 1 % over max_accuracy_loss",
        ),
        (
            {"max_accuracy_loss": 0.02},
            {"tasks": []},
            "the loss of accuracy in any task was not measured (max_accuracy_loss)",
        ),
        (
            {"min_tokens_per_second": 2000.0},
            {},
            "the throughput at 8 streams is 1,100 tokens/s, 933 under min_tokens_per_second 2,000",
        ),
        (
            {"max_time_to_first_token_ms": 10.0},
            {},
            "the median wait for a first token at 8 streams is 20 ms, 10 ms over",
        ),
        (
            {"max_inter_token_latency_ms": 2.0},
            {},
            "the median time between tokens at 8 streams is 2.5 ms, 0.5 ms over",
        ),
        (
            {"max_perplexity_increase": 0.02},
            {"perplexity_increase": est(None)},
            "the increase of perplexity was not measured",
        ),
    ],
)
def test_each_constraint_is_held_against_the_worse_end(
    limits: dict[str, float], changes: dict[str, Any], words: str
) -> None:
    found = chosen(ladder(**changes), **limits)
    assert words in "; ".join(miss["words"] for miss in found["misses"]["t-int4_awq"])


def test_a_constraint_that_is_kept_is_no_miss() -> None:
    limits = {
        "max_perplexity_increase": 0.0006,
        "max_accuracy_loss": 0.03,
        "min_tokens_per_second": 1067.0,
        "max_time_to_first_token_ms": 20.0,
        "max_inter_token_latency_ms": 2.5,
    }
    assert chosen(ladder(), **limits)["misses"]["t-int4_awq"] == []


def test_when_none_qualifies_the_nearest_miss_is_named_with_how_much() -> None:
    # 16 bit is 970 at worst, 30 below; int4_awq is 1067 at worst, 133 below 1200.
    found = chosen(ladder(), min_tokens_per_second=1200.0)
    assert found["name"] is None
    assert found["nearest"] == "t-int4_awq"
    assert found["reason"] == (
        "None qualifies. Nearest is int4_awq: the throughput at 8 streams is 1,100 tokens/s, "
        "133 under min_tokens_per_second 1,200."
    )


def test_what_was_refused_or_not_measured_is_never_the_nearest() -> None:
    rows = ladder()
    rows[1] |= {"verdict": "REFUSED", "headline": "the CPU has no such kernels"}
    found = chosen(rows, min_tokens_per_second=1200.0)
    assert found["nearest"] == "t-float16"
    assert found["misses"]["t-int4_awq"] == [
        {"name": "verdict", "words": "REFUSED: the CPU has no such kernels", "excess": None}
    ]


def test_without_a_load_the_smallest_is_taken() -> None:
    rows = [rung("float16", size=FULL), rung("int8_sq", size=HALF), rung("int4_awq", size=QUARTER)]
    found = recommend(rows, ConstraintsSection(), deciding_level(rows, None), None)
    assert found["format"] == "int4_awq"
    assert "tokens/s" not in found["reason"]


def test_speed_counts_at_the_level_that_the_recipe_names_or_at_the_largest() -> None:
    rows = [rung("float16", [level(1, 10.0), level(32, 20.0)])]
    assert deciding_level(rows, None) == 32
    assert deciding_level(rows, 1) == 1
    assert deciding_level([], None) is None


def test_when_nothing_was_finished_the_reason_is_short() -> None:
    rows = ladder()
    for row in rows:
        row |= {
            "verdict": "UNFINISHED",
            "headline": "there is no GPU. Copy this command and that one",
            "reasons": ["there is no GPU"],
        }
    assert chosen(rows)["reason"] == (
        "None qualifies. Nearest is float16: UNFINISHED: there is no GPU."
    )


def test_a_rung_without_measured_quality_says_so() -> None:
    rows = ladder(quality=None)
    assert "its quality was not measured" in chosen(rows)["reason"]


def test_a_change_that_is_nothing_has_no_sign() -> None:
    rows = [rung("float16", [level(8, 100.0)], perplexity_increase=est(-1e-6, -2e-6, 1e-6))]
    found = recommend(rows, ConstraintsSection(), 8, None)
    assert "perplexity 0.00 % against the source" in found["reason"]
