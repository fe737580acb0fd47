"""The trend over runs: what is flagged, and what is noise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.ladder.trend import remarks, table_of, trend
from pipeline.report.history import line

from .support import est, level, report


def run(key: str, speed: float = 1700.0, **changes: Any) -> dict[str, Any]:
    content = report("t", "int4_awq", **changes)
    content["load"]["measurements"] = [level(8, speed)]
    made = line(content)
    assert made is not None
    return {**made, "key": key}


def history(tmp_path: Path, *runs: dict[str, Any]) -> dict[str, Any]:
    text = "".join(f"{json.dumps(one)}\n" for one in runs)
    (tmp_path / "history.jsonl").write_text(text, encoding="utf-8")
    return trend(tmp_path)


def flagged(found: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(change["measure"], change["worse"]) for change in found["runs"][-1]["changes"]]


def test_identical_runs_and_noise_are_not_flagged(tmp_path: Path) -> None:
    # The interval of a speed reaches 3 % to each side.
    found = history(tmp_path, run("a" * 64), run("b" * 64), run("c" * 64, speed=1740.0))
    assert [one["changes"] for one in found["runs"]] == [[], [], []]
    assert remarks(found) == ["No change is outside its interval."]


def test_a_slower_server_is_flagged(tmp_path: Path) -> None:
    found = history(tmp_path, run("a" * 64), run("b" * 64, speed=1500.0))
    assert flagged(found) == [("tokens_per_second.8", True)]
    assert remarks(found) == [
        "bbbbbbbb: worse: tokens/s at 8 streams from 1,700 [1,649, 1,751] to 1,500 [1,455, 1,545]"
    ]
    assert flagged(history(tmp_path, run("a" * 64), run("b" * 64, speed=1900.0))) == [
        ("tokens_per_second.8", False)
    ]


def test_worse_quality_is_flagged(tmp_path: Path) -> None:
    worse = {
        "perplexity_increase": est(0.02, 0.018, 0.022),
        "top1_agreement": est(0.90, 0.89, 0.91),
        "kl_divergence": est(0.0005, 0.0004, 0.0006),
    }
    found = history(tmp_path, run("a" * 64), run("b" * 64, **worse))
    assert flagged(found) == [
        ("perplexity_increase", True),
        ("kl_divergence", False),
        ("top1_agreement", True),
    ]


def test_a_change_is_held_against_the_last_run_that_it_can_be_compared_with(
    tmp_path: Path,
) -> None:
    other_text = run("b" * 64, source_perplexity=5.1, perplexity_increase=est(0.3, 0.2, 0.4))
    other_machine = copy.deepcopy(run("c" * 64, speed=90.0))
    other_machine["machine"]["processor"] = "a slower one"
    found = history(tmp_path, run("a" * 64), other_text, other_machine, run("d" * 64, speed=1500.0))
    assert [len(one["changes"]) for one in found["runs"]] == [0, 0, 0, 1]
    assert flagged(found) == [("tokens_per_second.8", True)]


def test_a_wide_interval_hides_a_change_that_a_narrow_one_shows(tmp_path: Path) -> None:
    wide, narrow = est(0.01, -0.01, 0.03), est(0.01, 0.009, 0.011)
    first = run("a" * 64)
    assert flagged(history(tmp_path, first, run("b" * 64, perplexity_increase=wide))) == []
    assert flagged(history(tmp_path, first, run("b" * 64, perplexity_increase=narrow))) == [
        ("perplexity_increase", True)
    ]


def test_runs_without_numbers_are_shown_and_not_compared(tmp_path: Path) -> None:
    failed = report("t", "int4_awq", quality=None, load=None)
    failed["verdict"] |= {"verdict": "FAILED", "headline": "verify failed"}
    made = line(failed)
    assert made
    found = history(tmp_path, run("a" * 64), {**made, "key": "b" * 64}, run("c" * 64, speed=1500.0))
    assert flagged(found) == [("tokens_per_second.8", True)]
    columns, cells = table_of(found)
    assert dict(zip(columns, cells[1], strict=True)) == {
        "finished (UTC)": "2026-05-01 10:00",
        "key": "bbbbbbbb",
        "verdict": "FAILED",
        "perplexity": "-",
        "perplexity change, %": "-",
        "KL": "-",
        "tokens/s": "-",
        "MiB": "2.646",  # 2,775,000 / 1,048,576
    }


def test_a_run_that_did_not_come_to_a_verdict_has_no_line() -> None:
    unfinished = report("t", "int4_awq")
    unfinished["verdict"]["verdict"] = "UNFINISHED"
    assert line(unfinished) is None


def test_what_was_made_and_what_came_of_it_is_the_key_and_not_what_was_asked() -> None:
    def key(**changes: Any) -> str:
        made = line(report("t", "int4_awq", **changes))
        assert made
        return str(made["key"])

    stages = [{"name": "evaluate", "key": "k", "digest": "another"}]
    closed = {"verdict": "REGRESSION", "headline": "", "status": "failed", "reasons": []}
    price = {"currency": "USD", "price_per_hour": 9.0}
    assert key() == key(cost=price) == key(created="2027-01-01T00:00:00Z")
    assert len({key(), key(stages=stages), key(verdict=closed)}) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"history\.jsonl: there is no history that can be read"),
        ('{"key": "a"}\n{"key": "b", ', r"history\.jsonl:2: this line is not one of a history"),
        ("[]\n", r"history\.jsonl:1: this line"),
        ('{"key": "a"}\n{"key": "b"}\n', r"this history is not one that this version wrote"),
        ("", r"history\.jsonl: this history has no run"),
        ("[" * 100_000, r"history\.jsonl:1: this line is not one of a history"),
    ],
)
def test_a_history_that_cannot_be_read(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "history.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        trend(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"created": None}, r"created: input should be"),
        ({"verdict": 5}, r"verdict: input should be"),
        ({"load": 5}, r"load: input should be"),
        ({"load": [5]}, r"load\.0: input should be"),
        ({"size": "large"}, r"size: input should be"),
        ({"quality": "good"}, r"quality: input should be"),
    ],
)
def test_a_line_that_was_changed_is_named(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=rf"history\.jsonl:2: this history is not one .*{why}"):
        history(tmp_path, run("a" * 64), {**run("b" * 64), **changes})


@pytest.mark.parametrize(
    ("key", "value"),
    [("source_perplexity", 0), ("kl_divergence", {"value": "1", "low": None, "high": None})],
)
def test_a_number_that_was_changed_is_named(tmp_path: Path, key: str, value: Any) -> None:
    changed = run("b" * 64)
    changed["quality"] |= {key: value}
    with pytest.raises(UsageError, match=rf"history\.jsonl:2: .*quality\.{key}.*input should be"):
        history(tmp_path, run("a" * 64), changed)
