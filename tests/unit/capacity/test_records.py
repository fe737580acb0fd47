"""Samples as ``bench`` writes them, and files that are something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.bench.stats import Timeline
from pipeline.bench.traffic.rounds import Answer, Round
from pipeline.bench.traffic.samples import sample_rows, write_samples
from pipeline.bench.traffic.schedule import CLOSED, OPEN, Level, Request
from pipeline.economics.capacity.records import Measured, Seen, read_samples
from pipeline.errors import UsageError


def answer(at: float | None, sent: float, *arrivals: tuple[float, int]) -> Answer:
    request = Request(0, at, 10, sum(tokens for _, tokens in arrivals) or 3)
    if not arrivals:
        return Answer(request, sent, None, ("ServerBusy", "the queue is full"))
    begins = sent if at is None else at
    return Answer(request, sent, Timeline(begins, arrivals, 12))


def test_what_bench_writes_is_read(tmp_path: Path) -> None:
    # Hand-made: the open request was sent 0.1 s late, and its times count from its plan.
    opened = Round(
        1.0,
        5.0,
        (answer(0.5, 0.5, (0.7, 1)), answer(2.0, 2.1, (2.5, 2), (4.5, 4)), answer(3.0, 3.0)),
        0.1,
    )
    closed = Round(0.0, 9.0, (answer(None, 1.0, (2.0, 1), (3.0, 2)),), 0.1)
    path = tmp_path / "samples.jsonl"
    made = {("own", Level(OPEN, 0.5)): [opened], ("own", Level(CLOSED, 1)): [closed, closed]}
    write_samples(path, sample_rows(made, None))
    (levels,) = read_samples(path).values()
    first, second = levels
    assert (first.level, first.failed) == (Level(OPEN, 0.5), 1)
    assert [seen.counted for seen in first.rounds[0]] == [False, True]
    (seen,) = first.counted
    assert (seen.ttft, seen.itl) == pytest.approx((0.5, 0.5))
    assert (seen.planned, seen.sent, seen.prompt, seen.output) == (2.0, 2.1, 12, 6)
    assert second.level == Level(CLOSED, 1)
    assert len(second.rounds) == 2
    # A folder of files is read as one.
    write_samples(tmp_path / "more.jsonl", sample_rows({("own", Level(CLOSED, 2)): [closed]}, None))
    (levels,) = read_samples(tmp_path).values()
    assert {one.level.amount for one in levels} == {0.5, 1, 2}


def test_the_time_measured_goes_from_request_to_request() -> None:
    # Requests from 1 to 5 s: 4 s, in which the first one's 9 tokens came, and of the second one's
    # 11 its first and half of the others.
    first = Seen(1.0, 1.0, 2.0, 4.0, 1, 5, 9, counted=True)
    second = Seen(5.0, 5.0, 5.5, 6.0, 1, 5, 3, counted=True)
    between = Seen(3.0, 3.0, 4.0, 6.0, 1, 5, 11, counted=True)
    measured = Measured(Level(CLOSED, 2), [[first, second, between]], 0)
    assert measured.seconds == 4.0
    assert measured.tokens_per_second == pytest.approx((9 + 1 + 5) / 4)
    # One that is alone counts to its end.
    alone = Measured(Level(CLOSED, 2), [[first], []], 0)
    assert alone.seconds == 3.0
    assert alone.tokens_per_second == pytest.approx(9 / 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json\n", "this line of the samples is no JSON"),
        ("[1]\n", "this line of the samples is no object"),
        ('{"server": "a"}\n', "this line is no sample of a bench"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_its_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        read_samples(path)
    assert caught.value.where == f"{path}:1"


def test_an_arrival_that_is_missing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    closed = Round(0.0, 9.0, (answer(None, 1.0, (2.0, 1), (3.0, 2)),), 0.1)
    write_samples(path, sample_rows({("own", Level(CLOSED, 1)): [closed]}, None))
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"arrivals": []}))
    with pytest.raises(UsageError, match="no sample of a bench"):
        read_samples(path)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no samples here"):
        read_samples(tmp_path)
    with pytest.raises(UsageError, match="the samples cannot be read"):
        read_samples(tmp_path / "none.jsonl")
