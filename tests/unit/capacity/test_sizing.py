"""How many servers a traffic takes, and what that costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.bench.traffic.lengths import parse_lengths
from pipeline.bench.traffic.traces import TraceRow
from pipeline.economics.capacity import sizing
from pipeline.economics.capacity.server import Front, Limits, Pace, Server, Steps
from pipeline.economics.capacity.sizing import (
    Objective,
    Sized,
    Traffic,
    Unreachable,
    most_per_second,
    simulate,
    size,
)
from pipeline.economics.cost import cost_of_traffic, cost_per_day, money
from tests.unit.capacity.support import KNOWN

ONE = parse_lengths("1", "")
TICK = Steps(fixed=0.001, sequence=0.0, prompt_token=0.0, request=0.0)
SINGLE = Server(TICK, Front(), Limits(1, 10**6, 32, 1000))


def traffic(rate: float, outputs: str = "100") -> Traffic:
    return Traffic(rate, ONE, parse_lengths(outputs, ""))


def test_one_server_finishes_what_its_service_time_allows() -> None:
    assert most_per_second(SINGLE, traffic(1.0)) == pytest.approx(10.0, rel=0.01)
    # Sixteen together take as long as one here, where a sequence more costs nothing.
    wide = replace(SINGLE, limits=replace(SINGLE.limits, slots=16))
    assert most_per_second(wide, traffic(1.0)) == pytest.approx(160.0, rel=0.1)
    # And what is in front of it may be slower than the engine.
    slow = replace(wide, front=Front(serial=0.05))
    assert most_per_second(slow, traffic(1.0)) == pytest.approx(20.0, rel=0.01)


@pytest.mark.parametrize("limit_ms", [60.0, 150.0, 400.0])
def test_the_number_is_that_of_the_wait_that_a_formula_gives(limit_ms: float) -> None:
    # One server for each number tried: the least rate at which M/D/1's distribution of waits leaves
    # 95 % within the limit is bracketed (Erlang 1909; Fry 1928): P(W <= t) = (1 - rho) *
    # sum_{k <= t/D} exp(-lambda (kD - t)) (lambda (kD - t))^k / k!
    service, limit = 0.1, limit_ms / 1000 - 0.001

    def within(rate: float) -> float:
        total = sum(
            math.exp(-rate * (k * service - limit))
            * (rate * (k * service - limit)) ** k
            / math.factorial(k)
            for k in range(int(limit / service) + 1)
        )
        return (1 - rate * service) * total

    low, high = 0.01, 9.99
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) >= 0.95 else (low, middle)
    objective = Objective(limit_ms / 1000, 1.0, 95.0)
    assert simulate(SINGLE, 1, traffic(low * 0.9), objective, "a").kept
    assert not simulate(SINGLE, 1, traffic(low * 1.15), objective, "a").kept


def test_no_smaller_number_keeps_the_objective() -> None:
    objective = Objective(0.15, 0.004, 95.0)
    for rate in (20.0, 120.0):
        asked = Traffic(rate, parse_lengths("uniform:20,200", ""), parse_lengths("40", ""))
        found = size(KNOWN, asked, objective, "0")
        assert isinstance(found, Sized)
        assert found.kept
        smaller = [simulate(KNOWN, n, asked, objective, "0").kept for n in range(1, found.replicas)]
        assert smaller == [False] * (found.replicas - 1)
        assert found.ttft[95.0] <= 0.15
        assert found.itl[95.0] <= 0.004
        assert found.good >= 0.9


def test_many_servers_share_the_chance_of_a_burst() -> None:
    # Ten times the traffic takes fewer than ten times the servers (square-root staffing).
    objective = Objective(0.11, 1.0, 95.0)
    few = size(SINGLE, traffic(20.0), objective, "0")
    many = size(SINGLE, traffic(200.0), objective, "0")
    assert isinstance(few, Sized)
    assert isinstance(many, Sized)
    assert 20 <= many.replicas < 10 * few.replicas


def test_no_fewer_than_were_asked_for_are_tried() -> None:
    found = size(SINGLE, traffic(1.0), Objective(10.0, 1.0, 95.0), "0", least=3)
    assert isinstance(found, Sized)
    assert found.replicas == 3


def test_an_objective_that_nobody_can_keep_is_said() -> None:
    found = size(SINGLE, traffic(1.0), Objective(0.0005, 1.0, 95.0), "0")
    assert isinstance(found, Unreachable)
    assert (
        "the first token takes 1 ms (percentile 95) on a server that has nothing else" in found.why
    )
    found = size(SINGLE, traffic(1.0), Objective(1.0, 0.0005, 95.0), "0")
    assert isinstance(found, Unreachable)
    assert "each token after the first takes 1 ms" in found.why
    small = replace(SINGLE, limits=replace(SINGLE.limits, kv_blocks=2))
    found = size(small, traffic(1.0), Objective(1.0, 1.0, 95.0), "0")
    assert isinstance(found, Unreachable)
    assert "refuses 100 % of the requests" in found.why


def test_more_servers_than_are_simulated_are_not_searched_for() -> None:
    # Each of them gives 10 requests/s.
    for found in (
        size(SINGLE, traffic(1e6), Objective(10.0, 1.0, 95.0), "0"),
        size(SINGLE, traffic(1.0), Objective(10.0, 1.0, 95.0), "0", least=10**30),
    ):
        assert isinstance(found, Unreachable)
        assert "servers by their throughput alone, and no more than 2,000 are" in found.why
        assert found.why.startswith(("it takes 1e+05 servers", "it takes 1e+30 servers"))


def test_luck_with_the_few_that_are_tried_alone_does_not_search_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A tenth of the time everything takes a hundred times as long, and 95 of 100 are to keep 10 ms.
    halting = replace(SINGLE, pace=Pace(0.25, [[1.0] * 9 + [100.0]]))
    asked, objective = traffic(2.0, "1"), Objective(0.01, 1.0, 95.0)
    found = size(halting, asked, objective, "0")
    assert isinstance(found, Unreachable)
    assert "the first token takes 100 ms (percentile 95)" in found.why
    monkeypatch.setattr(sizing, "_alone", lambda *_: None)
    found = size(halting, asked, objective, "0")
    assert isinstance(found, Unreachable)
    assert "44 servers do not keep it either" in found.why
    assert "100 ms to the first token (percentile 95)" in found.why


def test_a_queue_that_grows_is_not_taken_for_one_that_keeps_the_objective() -> None:
    # A tenth more than the server finishes: over the simulated time enough requests are fine yet.
    found = simulate(SINGLE, 1, traffic(11.0), Objective(36.5, 1.0, 60.0), "0")
    assert found.ttft[60.0] < 36.5
    assert not found.kept


def test_a_trace_is_stretched_and_begins_anew() -> None:
    rows = [TraceRow(0.0, 10, 2), TraceRow(1.0, 20, 4), TraceRow(2.0, 30, 6)]
    asked = Traffic(1.0, None, None, rows)
    assert asked.means == (20.0, 4.0)
    assert asked.tokens_per_second == 4.0
    arrivals = asked.arrivals(7, "0")
    assert [at for at, _, _ in arrivals] == pytest.approx([0, 1, 2, 3, 4, 5, 6])
    assert [prompt for _, prompt, _ in arrivals] == [10, 20, 30, 10, 20, 30, 10]
    doubled = asked.times(2.0).arrivals(7, "0")
    assert [at for at, _, _ in doubled] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3])


def test_what_servers_cost_by_hand() -> None:
    # Three at 2.50 an hour: 180 a day. At 1,000 tokens/s that is 86.4 million tokens.
    assert cost_per_day(3, 2.5) == pytest.approx(180.0)
    assert cost_of_traffic(3, 2.5, 1000.0) == pytest.approx(180.0 / 86.4)
    assert [money(x) for x in (1234.5, 0.1, 0.0123, None)] == ["1,234.50", "0.10", "0.012", "-"]
