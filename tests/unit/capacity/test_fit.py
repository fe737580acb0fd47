"""The server that is fitted to a load test: against SciPy, by hand, and one that is known."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.bench.traffic.schedule import CLOSED, Level
from pipeline.economics.capacity.fit import fit, paces
from pipeline.economics.capacity.least_squares import non_negative
from pipeline.economics.capacity.loads import load_of, loads_of_report
from pipeline.economics.capacity.records import Measured, Seen, read_samples
from pipeline.economics.capacity.server import Steps
from pipeline.errors import UsageError
from tests.unit.capacity.support import KNOWN, LIMITS, samples


@pytest.mark.parametrize("seed", range(30))
def test_least_squares_are_those_of_scipy(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    numpy = pytest.importorskip("numpy")
    source = random.Random(seed)
    unknowns = source.randint(1, 4)
    rows = [[source.uniform(0, 10**i) for i in range(unknowns)] for _ in range(20)]
    # Values that pull some of the coefficients below zero.
    values = [sum(source.uniform(-1, 1) * cell for cell in row) for row in rows]
    weights = [source.uniform(0.1, 2.0) for _ in rows]
    root = numpy.sqrt(weights)
    expected, distance = optimize.nnls(
        numpy.array(rows) * root[:, None], numpy.array(values) * root
    )
    found = non_negative(rows, values, weights)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    mine = numpy.linalg.norm((numpy.array(rows) @ found - values) * root)
    assert mine == pytest.approx(distance, rel=1e-9)


def test_what_cannot_be_told_apart_is_left_to_one() -> None:
    # The second column is ten times the first.
    a, b = non_negative([(1, 10), (2, 20)], [3.0, 6.0], [1, 1])
    assert (a, b) in (pytest.approx((3.0, 0.0)), pytest.approx((0.0, 0.3)))
    assert non_negative([(0, 1), (0, 2)], [3.0, 6.0], [1, 1]) == pytest.approx([0.0, 3.0])


def test_what_happened_while_a_stream_decoded_by_hand() -> None:
    # The first decodes from 1 to 5 s; the second, of 20 prompt tokens, gets its first at 2 s and 8
    # more until 6 s, so 6 of them within that time; the third begins behind it.
    made = [
        Seen(0.0, 0.0, 1.0, 5.0, 1, 10, 9, counted=True),
        Seen(0.5, 0.5, 2.0, 6.0, 1, 20, 9, counted=True),
        Seen(5.0, 5.0, 5.5, 6.0, 1, 30, 3, counted=False),
    ]
    load = load_of(Measured(Level(CLOSED, 2), [made], 0))
    first, second = load.happened[0]
    assert first == pytest.approx((4.0, 8, 8 + 6, 20, 1, 1.0))
    # Of the first one's 8 tokens 6 came behind 2 s, and the third one's two before 6 s.
    assert second == pytest.approx((4.0, 8, 8 + 6 + 2, 30, 1, 2.0))


def test_a_known_server_is_found_again(tmp_path: Path) -> None:
    path = samples(tmp_path / "s.jsonl", streams=(1, 4, 16))
    (levels,) = read_samples(path).values()
    found = fit([load_of(one) for one in levels], LIMITS)
    steps, known = found.server.steps, KNOWN.steps
    assert steps.seconds(1) == pytest.approx(known.seconds(1), rel=0.05)
    assert steps.seconds(16) == pytest.approx(known.seconds(16), rel=0.05)
    mixed = known.seconds(8, 110, 1)
    assert steps.seconds(8, 110, 1) == pytest.approx(mixed, rel=0.1)
    # What a first token takes alone; how much of it is in front is told by streams that wait.
    front = found.server.front
    alone = front.delay + front.serial + steps.seconds(0, 110, 1)
    assert alone == pytest.approx(0.007 + known.seconds(0, 110, 1), rel=0.1)
    assert found.held_out
    assert found.error < 0.05
    assert found.prompt_and_request


def test_a_fitted_server_foretells_a_load_that_it_was_not_fitted_to(tmp_path: Path) -> None:
    closed = samples(tmp_path / "closed.jsonl", streams=(1, 4, 16))
    (levels,) = read_samples(closed).values()
    found = fit([load_of(one) for one in levels], LIMITS)
    opened = samples(tmp_path / "open.jsonl", streams=(), rates=(20.0,))
    (levels,) = read_samples(opened).values()
    load = load_of(levels[0])
    simulated, _ = load.replay(found.server)
    assert simulated.tokens_per_second == pytest.approx(load.times.tokens_per_second, rel=0.02)
    for name in ("ttft", "itl"):
        for percent in (50, 95):
            expected = load.times.at(name, percent)
            assert simulated.at(name, percent) == pytest.approx(expected, rel=0.15)


def test_the_error_of_a_fit_is_that_of_rounds_it_has_not_seen() -> None:
    # Alone, so that only its own tokens count: a token takes 10 ms in one round and 14 in the
    # other. Each half is off by 4 of 14 or of 10, of which the median of equally many is the larger
    # or the smaller one.
    rounds = [
        [
            Seen(at, at, at + 0.01, at + 0.01 + 20 * each, 1, 10, 21, counted=True)
            for at in range(10)
        ]
        for each in (0.010, 0.014)
    ]
    found = fit([load_of(Measured(Level(CLOSED, 1), rounds, 0))], LIMITS)
    assert found.held_out
    assert found.error in (pytest.approx(4 / 14), pytest.approx(4 / 10))


def test_a_while_in_which_everything_took_longer_by_hand() -> None:
    # A stream alone: 50 tokens in the first quarter of a second, 25 in the second, 100 in the
    # third; usual is the mean of all.
    ends = (0.25, 0.5, 0.75)
    streams = [
        Seen(end - 0.25, end - 0.25, end - 0.25, end - 1e-9, 0, 1, tokens, counted=True)
        for end, tokens in zip(ends, (50, 25, 100), strict=True)
    ]
    load = load_of(Measured(Level(CLOSED, 1), [streams], 0))
    usual = Steps(0.75 / 175, 0.0, 0.0, 0.0)
    (factors,) = paces(load, usual)
    assert factors == pytest.approx([175 / 150, 175 / 75, 175 / 300], rel=1e-6)
    # Where all of a load takes twice as long as the steps say, that is no change of pace.
    (again,) = paces(load, Steps(0.75 / 350, 0.0, 0.0, 0.0))
    assert again == pytest.approx(factors)


def test_requests_of_one_token_tell_nothing(tmp_path: Path) -> None:
    made = [Seen(at, at, at + 1.0, at + 1.0, 1, 10, 1, counted=True) for at in range(3)]
    with pytest.raises(UsageError, match="tells nothing of the time between tokens"):
        fit([load_of(Measured(Level(CLOSED, 1), [made], 0))], LIMITS)


def test_a_report_gives_loads_of_its_rounds() -> None:
    load = {
        "rounds": 2,
        "measurements": [
            {
                "concurrency": 2,
                "requests": 4,
                "input_tokens": 40,
                "output_tokens": 44,
                "tokens_per_second": {"value": 5.0, "low": None, "high": None},
            }
        ],
        "samples": [
            {
                "concurrency": 2,
                "ttft_ms": [1000.0, 2000.0, 1000.0, 2000.0],
                "itl_ms": [100.0, 100.0, 100.0, 100.0],
            }
        ],
    }
    (found,) = loads_of_report(load)
    assert found.a_round == 2
    assert found.requests == 4
    assert found.lengths() == [(10, 11)] * 4
    # The second stream's first token comes when the first one is done: nothing but its own.
    first, second = found.happened[0]
    assert first == pytest.approx((1.0, 10, 10, 0, 0, 1.0))
    assert second == pytest.approx((1.0, 10, 10, 0, 0, 2.0))
    (gone,) = [loads_of_report({**load, "samples": []})]
    assert gone == []
