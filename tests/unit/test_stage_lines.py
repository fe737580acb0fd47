"""What is printed of a stage, on facts and lines written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.stage_lines import RESULTS, result_words, stage_dict, stage_line
from pipeline.running.planner import STAGES, PlannedStage, Status
from pipeline.store.artifact import Artifact

KEY = "0123456789abcdef" * 4
BY_NAME = {stage.name: stage for stage in STAGES}


def _planned(
    name: str, facts: dict[str, Any] | None = None, *, status: Status = "run", reason: str = ""
) -> PlannedStage:
    artifact = None if facts is None else Artifact(name, KEY, "d", Path("store/x"), facts)
    return PlannedStage(BY_NAME[name], status, reason, KEY, artifact)


def test_every_stage_has_a_row() -> None:
    assert list(RESULTS) == [stage.name for stage in STAGES]


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        (
            "source",
            {"architecture": "LlamaForCausalLM", "parameters": 8_030_261_248, "bytes": 16 << 30},
            "LlamaForCausalLM, 8.0 B parameters, 16.0 GiB",
        ),
        ("quantize", {"quant_algo": None, "bytes": 1536, "ranks": 1}, "1.5 KiB"),
        ("quantize", {"quant_algo": "FP8", "bytes": 3 << 20, "ranks": 2}, "FP8, 3.0 MiB, 2 ranks"),
        (
            "evaluate",
            {"perplexity_increase": {"value": 0.0123}, "top1_agreement": {"value": 0.95}},
            "perplexity +1.23 %, agreement 95.00 %",
        ),
        ("evaluate", {"perplexity_increase": {"value": None}}, "perplexity is no finite number"),
        (
            "fidelity",
            {"against_checkpoint": {"perplexity_increase": {"value": -0.001}}},
            "against the checkpoint perplexity -0.10 %",
        ),
        ("fidelity", {"against_checkpoint": None}, ""),
        ("repository", {"models": ["a", "b"], "bytes": 2048}, "2 models, 2.0 KiB"),
        ("verify", {"passed": 25, "failed": 0, "skipped": 1}, "25 passed, 1 skipped"),
        ("verify", {"passed": 0, "failed": 2, "skipped": 0}, "2 failed"),
        (
            "bench",
            {
                "measurements": [
                    {"concurrency": 8, "tokens_per_second": {"value": 1514.6}},
                    {"concurrency": 1, "tokens_per_second": {"value": 741.3}},
                ]
            },
            "1,515 tokens/s at 8 streams",
        ),
        ("bench", {"measurements": []}, ""),
        ("report", {"name": "x"}, ""),
    ],
)
def test_what_came_of_a_stage(name: str, facts: dict[str, Any], said: str) -> None:
    assert result_words(_planned(name, facts)) == said


def test_a_line_has_the_reason_before_and_the_result_after() -> None:
    facts = {"quant_algo": "FP8", "bytes": 3 << 20, "ranks": 1}
    before = stage_line(_planned("quantize", reason="never ran"))
    after = stage_line(_planned("quantize", facts, reason="never ran"), 16.04)
    cached = stage_line(_planned("quantize", facts, status="cached"), 0.01)
    assert before == "quantize    run     0123456789ab  never ran"
    assert after == "quantize    done    0123456789ab    16.0 s  FP8, 3.0 MiB"
    assert cached == "quantize    cached  0123456789ab"
    assert stage_line(_planned("quantize", facts, status="cached"), 0.01, verbose=True) == (
        f"quantize    cached  {KEY}  FP8, 3.0 MiB\n  store/x"
    )
    assert stage_dict(_planned("quantize", facts, reason="forced"), 16.04)["reason"] == "forced"
