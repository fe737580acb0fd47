"""Limits against figures that were worked out by hand from the sample's load test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnsupportedError, UsageError
from pipeline.monitoring.observed import Observed, observe
from pipeline.monitoring.thresholds import LATENCY_BOUNDS_MS

from ...conftest import PROJECT
from .sample import LEVEL, deployed, report


def limits(observed: Observed) -> dict[str, float | None]:
    found = {}
    for name, limit in vars(observed.limits).items():
        found[name] = limit and limit.value
    return found


def test_every_limit_is_what_the_load_test_gives_by_hand(cpu: Observed) -> None:
    assert limits(cpu) == {
        # p99 of 110 ms, four times as many streams: 440 ms, and 500 is the next bound.
        "ttft": 500,
        # 4 ms, four times as many: 16 ms.
        "itl": 20,
        # 10 requests/s for the 400 ms between p95 and 500 ms.
        "waiting": 4,
        # 300 + 84 tokens are 12 blocks of 32; two of 32 requests are a twentieth, rounded up.
        "free_blocks": 24,
        "full_blocks": 12 * 32,
        # None of 100 failed: 3/100.
        "errors": 0.03,
        # Ten times 500 ms are less than four scrapes of 15 s.
        "stall_s": 60,
        "quiet": pytest.approx(7 / 600),
        "resumes": 32,
        "busy": 0.7,
        # 512 tokens of 20 ms are 11 s, less than Kubernetes' own 5 minutes.
        "down_s": 300,
    }


def test_every_limit_says_its_figure_and_its_formula(cpu: Observed) -> None:
    whys = {name: limit.why for name, limit in vars(cpu.limits).items()}
    assert all(whys.values())
    for name, figures in {
        "ttft": ("p99 110", "times 4,", "440 ms", "8 streams", "report.json"),
        "itl": ("p99 4", "16 ms"),
        "waiting": ("10 requests/s", "400 ms", "500 ms"),
        "free_blocks": ("300 tokens in", "84 out", "12 KV blocks of 32"),
        "full_blocks": ("12 KV blocks", "max_batch_size 32"),
        "errors": ("0 of 100", "3/100"),
        "down_s": ("max_seq_len 512", "20 ms"),
    }.items():
        for figure in figures:
            assert figure in whys[name], whys[name]


def test_objectives_are_the_operators_before_the_recipes(folder: Path) -> None:
    own = {"max_time_to_first_token_ms": 250.0, "max_inter_token_latency_ms": None}
    recipe = {**report()["recipe"], "constraints": own}
    asked = observe(deployed(folder / "a", report(recipe=recipe)))
    assert asked.limits.ttft
    assert (asked.limits.ttft.value, asked.limits.ttft.quantile) == (250, "p50")
    # What is left after the median measured, as the objective is the median's: 200 ms.
    assert asked.limits.waiting.value == 2
    chosen = {"timeToFirstTokenMs": 1100, "timePerOutputTokenMs": 3500}
    told = observe(deployed(folder / "b", report(recipe=recipe), monitoring=chosen))
    assert told.limits.ttft
    assert (told.limits.ttft.value, told.limits.ttft.quantile) == (1100, "p95")
    assert told.limits.waiting.value == 10
    # 512 tokens of 3.5 s are 1792 s.
    assert told.limits.down_s.value == 1792


@pytest.mark.parametrize(
    ("changed", "name", "value"),
    [
        # More streams than a batch takes: nothing is multiplied.
        ({"concurrency": 64}, "ttft", 200),
        ({"requests_per_second": 1000.0}, "waiting", 128),  # half the queue
        ({"requests_per_second": 0.1}, "waiting", 1),
        ({"requests": 10, "input_tokens": 3000, "output_tokens": 840}, "errors", 0.05),
        ({"requests": 1000, "input_tokens": 300_000, "output_tokens": 84_000}, "errors", 0.01),
        ({"requests": 900, "failed": 100, "input_tokens": 1, "output_tokens": 1}, "errors", 0.05),
        ({"ttft_ms": {"p50": 1e4, "p95": 2e4, "p99": 3e4}}, "ttft", 10_000),
        ({"ttft_ms": {"p50": 1e4, "p95": 2e4, "p99": 3e4}}, "stall_s", 100),
        ({"ttft_ms": {"p50": 1e4, "p95": 2e4, "p99": 3e4}}, "waiting", 1),
        ({"input_tokens": 100, "output_tokens": 100}, "full_blocks", 32),
    ],
)
def test_a_figure_moves_its_limit(
    folder: Path, changed: dict[str, Any], name: str, value: float
) -> None:
    load = {"measurements": [{**LEVEL, **changed}]}
    assert limits(observe(deployed(folder, report(load=load))))[name] == value


def test_a_model_that_answers_once_has_no_limit_of_first_tokens(folder: Path) -> None:
    load = {"measurements": [{**LEVEL, "ttft_ms": None, "itl_ms": None}]}
    observed = observe(deployed(folder, report(load=load)))
    assert observed.limits.ttft is observed.limits.itl is None
    assert observed.limits.waiting.value == 10  # a second of what it answers
    assert {"TrtllmFirstTokenSlow", "TrtllmTokensSlow"}.isdisjoint(
        alert.name for alert, _ in observed.alerts
    )


def test_a_load_test_of_bench_replaces_that_of_the_run(folder: Path) -> None:
    # Of an open load Little's law says how many were there together: 20/s of 0.4 s are 8.
    faster = {**LEVEL, "concurrency": None, "rate": 20.0, "requests_per_second": 20.0}
    faster["latency_ms"] = {"mean": 400.0}
    file = folder / "measured.json"
    file.write_text(json.dumps({"measurements": [faster]}))
    chosen = {"loadTest": str(file)}
    observed = observe(deployed(folder, report(), monitoring=chosen))
    assert observed.limits.waiting.value == 8
    assert "20.0 requests/s" in observed.limits.waiting.why or "20 requests/s" in (
        observed.limits.waiting.why
    )
    assert "measured.json" in observed.limits.waiting.why
    assert observed.limits.ttft
    assert observed.limits.ttft.value == 500


@pytest.mark.parametrize("content", ['{"measurements": {}}', "[]", "{", '{"measurements": [{}]}'])
def test_what_is_no_load_test_is_refused(folder: Path, content: str) -> None:
    file = folder / "measured.json"
    file.write_text(content)
    found = deployed(folder, report(), monitoring={"loadTest": str(file)})
    with pytest.raises(UsageError, match=r"measured\.json: (this is not|a measurement)"):
        observe(found)


def test_without_a_report_or_a_load_test_nothing_is_guessed(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="there is none of it"):
        observe(deployed(folder / "a", None))
    with pytest.raises(UnsupportedError, match="this build has none"):
        observe(deployed(folder / "b", report(load=None)))


def test_bounds_are_those_that_the_engine_publishes() -> None:
    """The page's list is compared with a server's by tests/e2e/test_metrics.py."""
    page = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if "inter_token_latency_ms_bucket` |" in line)
    listed = re.findall(r"`([0-9]+|\+Inf)`", row)
    assert [*map(str, LATENCY_BOUNDS_MS), "+Inf"] == listed


@pytest.mark.parametrize(
    "constraints", [{"max_inter_token_latency_ms": []}, {"max_time_to_first_token_ms": "soon"}, [1]]
)
def test_a_report_that_was_edited_by_hand_is_refused_in_words(
    folder: Path, constraints: Any
) -> None:
    changed = report()
    changed["recipe"]["constraints"] = constraints
    with pytest.raises(UnsupportedError, match="does not say the sizes of its engine"):
        observe(deployed(folder, changed))
