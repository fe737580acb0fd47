"""The last lines of a run, from the dictionary that the page is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.recipe.evaluate import Gates
from pipeline.verdict.closing import closing_lines
from pipeline.verdict.gates import checkpoint_gates, engine_gates

from .samples import WRITTEN_TEXT, estimate, evaluation, fidelity, report


def asked(measured: dict[str, Any], engine: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    limits = Gates(perplexity_increase=0.02, top1_agreement=0.93)
    gates = checkpoint_gates(limits, measured, 3_673_344, 4)
    gates += engine_gates(limits, engine, 3_673_344, 4) if engine else []
    return [gate.as_dict() for gate in gates]


def test_a_good_run_in_eight_lines() -> None:
    found = report(gates=asked(evaluation()))
    page, repository = Path("build/tiny/report.html"), Path("build/my tiny/repository")
    assert closing_lines(found, page=page, repository=repository) == [
        "verdict:     INT4 AWQ: ships. 2.7x smaller than 16 bit",
        "size:        2.60 MiB, 2.7x smaller than 16 bit (7.00 MiB)",
        (
            "quality:     perplexity +0.01 % [-0.09 %, +0.11 %] of at most 2 %, "
            "agreement 96.70 % [96.30 %, 97.10 %] of at least 93 %"
        ),
        "conformance: 25 passed, 1 skipped",
        "speed:       2,156 [2,050, 2,260] tokens/s at 8 streams",
        "time:        41.2 s of work in 2 stages",
        "report:      build/tiny/report.html",
        "next:        trtllm-pipeline serve 'build/my tiny/repository'",
    ]


def test_the_engine_has_its_own_line() -> None:
    lines = closing_lines(report(gates=asked(evaluation(), fidelity())))
    (line,) = (line for line in lines if line.startswith("compiled:"))
    assert line == (
        "compiled:    against the checkpoint perplexity 0.00 % [-0.01 %, +0.01 %] of at most 1 %, "
        "agreement 99.90 % [99.80 %, 100.00 %] of at least 98 %"
    )
    lost = fidelity(perplexity_increase=estimate(0.05, 0.04, 0.06))
    (line,) = (
        line
        for line in closing_lines(report(gates=asked(evaluation(), lost)))
        if line.startswith("compiled:")
    )
    assert line.endswith(
        "; against the source perplexity +5.00 % [+4.00 %, +6.00 %] of at most 2 % REGRESSION"
    )


def test_what_was_not_reached_is_named() -> None:
    worse = evaluation(
        perplexity_increase=estimate(0.05, 0.04, 0.06),
        kl_divergence=estimate(0.2, 0.18, 0.22),
    )
    found = report(
        gates=asked(worse), quality=worse, load=None, conformance=None, size=None, fidelity=None
    )
    lines = closing_lines(found)
    assert lines[1:] == [
        "size:        not reached",
        (
            "quality:     perplexity +5.00 % [+4.00 %, +6.00 %] of at most 2 % REGRESSION, "
            "agreement 96.70 % [96.30 %, 97.10 %] of at least 93 %, "
            "KL divergence 0.2 [0.18, 0.22] of at most 0.05 REGRESSION"
        ),
        "conformance: not reached",
        "speed:       not reached",
        "time:        41.2 s of work in 2 stages",
    ]


def test_numbers_without_gates_stand_alone() -> None:
    (line,) = (line for line in closing_lines(report()) if line.startswith("quality:"))
    assert line == (
        "quality:     perplexity +0.01 % [-0.09 %, +0.11 %], agreement 96.70 % [96.30 %, 97.10 %]"
    )
    lines = closing_lines(report(quality=None))
    assert "quality:     not measured" in lines
    # The one gate that is asked is about something else, and open.
    one = [gate for gate in asked(evaluation()) if gate["name"] == "kl_divergence"]
    assert line in closing_lines(report(gates=one))


def test_an_interval_narrower_than_the_digits_is_left_out() -> None:
    same = evaluation(perplexity_increase=estimate(1e-9, -1e-8, 1e-8))
    (line,) = (
        line for line in closing_lines(report(gates=asked(same))) if line.startswith("quality:")
    )
    assert line.startswith("quality:     perplexity 0.00 % of at most 2 %, agreement 96.70 % [")


def test_a_broken_text_is_in_the_verdict_and_not_in_the_numbers() -> None:
    silent = evaluation(
        completions=[{"prompt": "Once", "source": WRITTEN_TEXT, "written": "", "tokens": 0}]
    )
    gates = asked(silent)
    assert "ANOMALOUS" in {gate["verdict"] for gate in gates}
    (line,) = (line for line in closing_lines(report(gates=gates)) if line.startswith("quality:"))
    assert "ANOMALOUS" not in line


def test_a_size_that_is_no_smaller() -> None:
    size = {"bytes_16bit": 1000, "checkpoint_bytes": 1010, "engine_bytes": None, "share": 1.01}
    assert "as large as 16 bit" in closing_lines(report(size=size))[1]
    size |= {"checkpoint_bytes": 2000, "share": 2.0}
    assert "2.0x larger than 16 bit" in closing_lines(report(size=size))[1]
