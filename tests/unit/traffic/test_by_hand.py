"""What a round is worth: answers with times that are told, against arithmetic by hand and numpy."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bench.stats import Timeline
from pipeline.bench.traffic import Objectives, write_samples
from pipeline.bench.traffic.rounds import Answer, Round
from pipeline.bench.traffic.samples import sample_rows
from pipeline.bench.traffic.schedule import CLOSED, OPEN, Level, Request
from pipeline.bench.traffic.summary import ratios, summary
from pipeline.bench.traffic.words import Words
from pipeline.errors import UsageError


def closed(number: int, sent: float, *arrivals: tuple[float, int]) -> Answer:
    """An answer of a closed loop; times are seconds after the round's beginning."""
    request = Request(number, None, 10, sum(count for _, count in arrivals))
    return Answer(request, sent, Timeline(sent, arrivals, 12))


def planned(number: int, at: float, late: float, *arrivals: tuple[float, int]) -> Answer:
    """An answer of an open loop."""
    told = {"sent": at + late, "input_tokens": 9, "arrivals": [list(one) for one in arrivals]}
    return Answer.told(Request(number, at, 10, 3), told, streamed=True)


def failed(number: int, at: float | None, kind: str) -> Answer:
    told = {"sent": at or 2.0, "error": [kind, f"{kind}: no"]}
    return Answer.told(Request(number, at, 10, 3), told, streamed=True)


WARM = closed(0, 0.5, (0.9, 1), (1.2, 1), (2.1, 2))  # sent in the warm-up
FAST = closed(1, 1.0, (1.1, 1), (1.2, 2), (1.4, 1))
SLOW = closed(2, 2.0, (2.5, 1), (2.9, 4))
LATE = closed(3, 2.9, (3.0, 1), (3.5, 1))  # begins in the measured time, ends behind it
AFTER = closed(4, 3.0, (3.1, 1))
ROUND = Round(1.0, 3.0, (WARM, FAST, SLOW, LATE, AFTER), 0.25)
STREAMS = Level(CLOSED, 2)


def test_a_closed_round_by_hand() -> None:
    row = summary(STREAMS, [ROUND], None)
    # Of the warm-up 3 tokens came in the measured time, of FAST 4, of SLOW 5, of LATE none.
    assert row["tokens_per_second"]["value"] == pytest.approx(12 / 2)
    # WARM, FAST and SLOW ended in it.
    assert row["requests_per_second"] == pytest.approx(3 / 2)
    assert (row["requests"], row["failed"], row["left_out"]) == (3, 0, 2)
    assert (row["input_tokens"], row["output_tokens"]) == (36, 11)
    assert row["ttft_ms"]["mean"] == pytest.approx(1000 * (0.1 + 0.5 + 0.1) / 3, abs=1e-3)
    # 0.3 s for three tokens, 0.4 s for four, 0.5 s for one.
    assert row["itl_ms"]["p50"] == pytest.approx(100)
    assert row["itl_ms"]["max"] == pytest.approx(500)
    assert row["gap_ms"]["max"] == pytest.approx(500)
    assert row["latency_ms"]["max"] == pytest.approx(900)
    assert (row["concurrency"], row["rate"], row["schedule"]) == (2, None, None)
    assert row["remarks"] == []


def test_percentiles_are_numpys() -> None:
    waits = np.random.default_rng(2).lognormal(-2, 1, 400)
    answers = tuple(closed(n, 1.0, (1.0 + wait, 1)) for n, wait in enumerate(waits))
    found = summary(STREAMS, [Round(1.0, 2.0, answers, 0.1)], None)["ttft_ms"]
    for percent in (50, 90, 95, 99):
        assert found[f"p{percent}"] == pytest.approx(1000 * np.percentile(waits, percent), abs=1e-3)


def test_rounds_scatter_as_numpy_says() -> None:
    rounds = [
        Round(0.0, 2.0, (closed(0, 0.0, *((0.1 * n, 1) for n in range(1, count + 1))),), 0.1)
        for count in (10, 12, 17)
    ]
    row = summary(STREAMS, rounds, None)
    rates = np.array([10, 12, 17]) / 2
    assert row["by_round"] == pytest.approx(list(rates))
    assert row["coefficient_of_variation"] == pytest.approx(
        rates.std(ddof=1) / rates.mean(), abs=1e-4
    )
    assert row["tokens_per_second"]["value"] == pytest.approx(np.exp(np.log(rates).mean()), 1e-4)
    assert "scatter by 28%" in row["remarks"][0]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        # First token, per token and all of FAST: 100, 100, 400 ms; SLOW: 500, 100, 900; LATE: 100,
        # 500, 600.
        ("ttft:150", 2),
        ("ttft:150,itl:120", 1),
        ("tpot:120", 2),
        ("ttft:99", 0),
        ("e2el:650 ttft:150", 2),
        ("ttft:501,itl:501,e2el:901", 3),
    ],
)
def test_goodput_by_hand(text: str, good: int) -> None:
    found = summary(STREAMS, [ROUND], Objectives.parse(text))["goodput"]
    assert (found["good"], found["share"]) == (good, pytest.approx(good / 3, abs=1e-4))
    assert found["requests_per_second"] == pytest.approx(good / 2)


def test_a_failed_request_is_not_good_and_in_no_time() -> None:
    broken = [failed(5, None, "ServerBusy"), failed(6, None, "ServerBusy")]
    broken.append(failed(7, None, "DeadlineExceeded"))
    answers = (*ROUND.answers, *broken)
    plain = summary(STREAMS, [ROUND], Objectives.parse("ttft:150"))
    row = summary(STREAMS, [Round(1.0, 3.0, answers, 0.25)], Objectives.parse("ttft:150"))
    for key in ("tokens_per_second", "requests_per_second", "ttft_ms", "latency_ms", "requests"):
        assert row[key] == plain[key]
    assert row["failed"] == 3
    assert {kind: found["count"] for kind, found in row["failures"].items()} == {
        "ServerBusy": 2,
        "DeadlineExceeded": 1,
    }
    assert row["goodput"]["share"] == pytest.approx(2 / 6, abs=1e-4)
    (remark,) = row["remarks"]
    assert remark == (
        "3 of 6 requests failed and are in no time and no rate: 2 ServerBusy, 1 DeadlineExceeded. "
        "The first one: ServerBusy: no"
    )


def test_an_open_round_counts_from_the_planned_arrival() -> None:
    # Sent 2.5 s late, it waited for those 2.5 s as well.
    late = planned(0, 0.5, 2.5, (3.1, 1), (3.3, 2))
    soon = planned(1, 1.0, 0.001, (1.2, 1), (1.4, 2))
    row = summary(Level(OPEN, 1.0), [Round(0.0, 4.0, (late, soon), 0.1)], None)
    assert row["ttft_ms"]["max"] == pytest.approx(2600)
    assert row["latency_ms"]["max"] == pytest.approx(2800)
    assert row["itl_ms"]["max"] == pytest.approx(100)
    assert row["schedule"]["planned"] == 2
    assert row["schedule"]["planned_per_second"] == pytest.approx(0.5)
    assert row["schedule"]["late_ms"]["max"] == pytest.approx(2500)
    assert row["remarks"][0].startswith("The clients could not keep their schedule")


def test_a_schedule_that_was_kept_is_not_talked_about() -> None:
    answers = tuple(planned(n, n / 10, 0.002, (n / 10 + 0.05, 1)) for n in range(20))
    assert summary(Level(OPEN, 10.0), [Round(0.0, 2.0, answers, 0.1)], None)["remarks"] == []


def test_a_server_that_falls_behind_is_told_of() -> None:
    answers = tuple(planned(n, n / 10, 0.001, (n / 10 + n / 2, 1)) for n in range(20))
    row = summary(Level(OPEN, 10.0), [Round(0.0, 2.0, answers, 0.9)], None)
    behind, busy = row["remarks"]
    assert behind.startswith("The server did not keep up: 10 requests/s came and 2 were finished")
    assert busy.startswith("A client process computed 90% of the time")
    # What failed is told apart.
    gone = tuple(failed(n, n / 10, "ServerBusy") for n in range(1, 20))
    row = summary(Level(OPEN, 10.0), [Round(0.0, 2.0, (answers[0], *gone), 0.1)], None)
    assert [remark[:16] for remark in row["remarks"]] == ["19 of 20 request"]


def test_ratios_are_paired_by_round() -> None:
    def rounds(factor: float) -> list[Round]:
        """A machine of three moods; what is asked for takes ``factor`` times as long."""
        return [
            Round(0.0, 10.0, (closed(0, 0.0, (mood * factor, 1), (3 * mood * factor, 4)),), 0.1)
            for mood in (0.1, 0.5, 0.2)
        ]

    found = ratios(rounds(2.0), rounds(1.0), Objectives.parse("ttft:10000"))
    for name in ("ttft_ms", "itl_ms", "latency_ms", "gap_ms"):
        ratio = found["ratios"][name]
        assert ratio["value"] == pytest.approx(2)
        assert ratio["low"] == pytest.approx(ratio["high"])
    assert found["ratio"]["value"] == pytest.approx(1)
    assert found["difference"] is False
    assert found["ratios"]["goodput"]["value"] == pytest.approx(1)
    nothing = [Round(0.0, 10.0, (), 0.1)] * 3
    assert ratios(nothing, rounds(1.0), None)["ratio"] is None


def test_samples_hold_what_the_summary_was_made_of(tmp_path: Path) -> None:
    answers = (*ROUND.answers, failed(5, None, "ServerBusy"))
    made = {("server", STREAMS): [Round(1.0, 3.0, answers, 0.25)]}
    objectives = Objectives.parse("ttft:150")
    write_samples(tmp_path / "s.jsonl", sample_rows(made, objectives))
    write_samples(tmp_path / "s.csv", sample_rows(made, objectives))
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()
    ]
    counted = [row for row in rows if row["counted"]]
    row = summary(STREAMS, made["server", STREAMS], objectives)
    assert len(counted) == row["requests"] + row["failed"] == 4
    times = [one["ttft_ms"] for one in counted if one["error"] is None]
    assert row["ttft_ms"]["p90"] == pytest.approx(np.percentile(times, 90), abs=1e-3)
    assert [one["request"] for one in rows if one["good"]] == [1, 3, 4]
    (slow,) = [one for one in rows if one["request"] == 2]
    assert slow["arrivals"] == [[2.5, 1], [2.9, 4]]
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [one["request"] for one in table] == [str(one["request"]) for one in rows]
    assert [one["latency_ms"] for one in table if one["request"] == "2"] == ["900.0"]
    assert [one["error"] for one in table if one["error"]] == ["ServerBusy"]
    with pytest.raises(UsageError, match="the samples cannot be written"):
        write_samples(tmp_path / "no" / "s.csv", sample_rows(made, None))


@pytest.mark.parametrize(
    "text", ["", "fast", "ttft", "ttft:", "ttft:x", "ttft:0", "ttft:nan", "ttft:1,ttft:2", "p99:4"]
)
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no latency objectives"):
        Objectives.parse(text)


def test_words_for_tokens_lie_on_lines_between_what_was_tried() -> None:
    words = Words([(0, 4.0), (4, 12.0), (8, 16.0)])
    # Two tokens a word up to four words, one behind them; no prompt is shorter than its first word.
    assert [words.for_tokens(n) for n in (1, 4, 8, 12, 14, 16, 26)] == [0, 0, 2, 4, 6, 8, 18]
    assert Words([(8, 16.0)]).for_tokens(8) == 4
    assert Words([(0, 5.0), (4, 5.0)]).for_tokens(99) == 4
