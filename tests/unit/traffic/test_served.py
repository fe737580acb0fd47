"""Client processes against a server of known delays."""

from __future__ import annotations

import json
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.bench.traffic import Objectives, measure_load
from pipeline.bench.traffic.fleet import Fleet, Server
from pipeline.bench.traffic.lengths import parse_lengths
from pipeline.bench.traffic.peer import Peer, counted, exported
from pipeline.bench.traffic.schedule import CLOSED, OPEN, TRACE, Level, Request, Sizes
from pipeline.bench.traffic.traces import TraceRow
from pipeline.errors import ServerError, UsageError
from tests.unit.client.fake_triton import Asked, FakeTriton, piece, refusal

FIRST_S, TOKEN_S, SLOW_S = 0.02, 0.01, 0.6
FAST, SLOW, REFUSED = 5, 2, 3
"""Tokens of the answers, by which the server tells what to do."""
INPUT = 20
LENGTHS = parse_lengths(f"{INPUT}", "--input-tokens"), parse_lengths(f"{FAST}", "--output-tokens")
HEADERS = {"authorization": "Bearer a=b"}


class Known:
    """A server's answers: two tokens a word, and delays by the number of tokens asked for.

    Attributes:
        peers: Connections by how often they asked for an answer of a load.
    """

    def __init__(self) -> None:
        self.peers: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, asked: Asked, context: Any) -> Iterator[Any]:
        tokens = asked.one("max_tokens")
        if tokens > 1:
            with self._lock:
                self.peers[context.peer()] = self.peers.get(context.peer(), 0) + 1
        if tokens == REFUSED:
            yield refusal("max_tokens must be smaller")
            return
        time.sleep(SLOW_S if tokens == SLOW else FIRST_S)
        for number in range(tokens):
            time.sleep(TOKEN_S if number else 0)
            count = 2 * len(asked.prompt.split())
            last = number == tokens - 1
            yield piece("x", final=last, num_input_tokens=count, num_output_tokens=1)


def children() -> list[psutil.Process]:
    """The client processes that run."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "pipeline.bench.traffic.worker" in child.cmdline()
    ]


def test_a_closed_loop_measures_what_the_server_does() -> None:
    known, seen = Known(), []
    rows = [TraceRow(0.0, INPUT, FAST), TraceRow(1.0, INPUT, SLOW)]
    with FakeTriton(known) as server:
        results, samples = measure_load(
            {"server": Server(server.url, headers=HEADERS)},
            [Level(CLOSED, 4)],
            Sizes(*LENGTHS, rows),
            objectives=Objectives.parse(f"ttft:{1000 * SLOW_S * 0.7}"),
            seconds=2.0,
            warmup=0.2,
            rounds=1,
            clients=2,
            on_round=lambda _number: seen.extend(children()),
        )
        headers = {asked.metadata.get("authorization") for asked in server.asked}
    assert len({child.pid for child in seen}) == 2
    assert children() == []
    assert headers == {HEADERS["authorization"]}
    # One connection each, and that of this process, which only asked for single tokens.
    assert len(known.peers) == 2
    counted = [row for row in samples if row["counted"]]
    fast = [row for row in counted if row["planned_output_tokens"] == FAST]
    slow = [row for row in counted if row["planned_output_tokens"] == SLOW]
    assert fast
    assert slow
    # Nobody sleeps less than told; the upper limits leave room for a busy machine.
    for row in counted:
        first = 1000 * (SLOW_S if row in slow else FIRST_S)
        rest = 1000 * TOKEN_S * (row["output_tokens"] - 1)
        assert first <= row["ttft_ms"]
        waited = row["itl_ms"] * (row["output_tokens"] - 1)
        assert row["ttft_ms"] + waited == pytest.approx(row["latency_ms"], abs=0.1)
        assert first + rest <= row["latency_ms"] + 0.01
        assert row["input_tokens"] == INPUT
        assert row["output_tokens"] == row["planned_output_tokens"]
    # A first piece that this machine delivers late makes one of them shorter.
    assert max(row["itl_ms"] for row in fast) > 1000 * TOKEN_S * 0.9
    (measured,) = results["measurements"]
    assert measured["requests"] == len(counted)
    assert measured["goodput"]["good"] == sum(row["good"] for row in counted)
    assert not any(row["good"] for row in slow)
    assert sum(row["good"] for row in fast) >= len(fast) / 2
    assert measured["output_tokens"] == FAST * len(fast) + SLOW * len(slow)
    assert json.loads(json.dumps(results)) == results
    assert 0 < measured["client_busy"] <= 1.2


def test_an_open_loop_does_not_wait_for_the_server() -> None:
    """One request at a time, faster than they are served: the queue grows, and all wait for it."""
    took = FIRST_S + TOKEN_S * (FAST - 1)
    rate = 1.6 / took
    known, turn = Known(), threading.Lock()

    def one_at_a_time(asked: Asked, context: Any) -> Iterator[Any]:
        with turn:
            yield from known(asked, context)

    with FakeTriton(one_at_a_time, workers=64) as server:
        results, samples = measure_load(
            {"server": Server(server.url)},
            [Level(OPEN, rate)],
            Sizes(*LENGTHS),
            seconds=2.0,
            warmup=0.0,
            rounds=1,
            clients=2,
            seed=4,
        )
    (measured,) = results["measurements"]
    arrivals = sorted(row["planned_s"] for row in samples)
    assert len(arrivals) == measured["requests"] == measured["schedule"]["planned"]
    # Lindley's recursion: who comes waits until the one before it is done.
    done, waits = 0.0, []
    for at in arrivals:
        done = max(at, done) + took
        waits.append(done - at)
    found = sorted(row["latency_ms"] / 1000 for row in samples)
    assert found[-1] >= 0.9 * max(waits)
    assert sum(found) >= 0.9 * sum(waits)
    # What a client that waits for answers would have measured is a fraction of that.
    assert sum(found) > 3 * took * len(found)
    assert measured["concurrency"] is None
    assert any("did not keep up" in remark for remark in measured["remarks"])


def test_a_trace_is_replayed_and_refusals_are_counted_by_kind() -> None:
    rows = [
        TraceRow(0.0, INPUT, FAST),
        TraceRow(0.4, 2 * INPUT, FAST),
        TraceRow(0.8, INPUT, REFUSED),
    ]
    with FakeTriton(Known()) as server:
        results, samples = measure_load(
            {"server": Server(server.url)},
            [Level(TRACE, 3.0)],
            Sizes(*LENGTHS, rows),
            seconds=1e9,
            rounds=1,
        )
    (measured,) = results["measurements"]
    assert [row["planned_s"] for row in samples] == [0.0, 0.4, 0.8]
    assert all(row["sent_s"] >= row["planned_s"] for row in samples)
    assert [row["input_tokens"] for row in samples] == [INPUT, 2 * INPUT, None]
    assert (measured["requests"], measured["failed"]) == (2, 1)
    (kind,) = measured["failures"]
    assert kind == "InvalidRequest"
    assert measured["failures"][kind]["count"] == 1
    assert "must be smaller" in measured["failures"][kind]["first"]
    assert measured["ttft_ms"]["max"] == max(row["ttft_ms"] for row in samples[:2])


def test_two_servers_are_told_apart_and_take_the_same_load() -> None:
    def slower(asked: Asked, context: Any) -> Iterator[Any]:
        time.sleep(0.4 if asked.one("max_tokens") > 1 else 0)
        yield from Known()(asked, context)

    with FakeTriton(Known()) as one, FakeTriton(slower) as other:
        results, samples = measure_load(
            {"new": Server(other.url), "old": Server(one.url)},
            [Level(OPEN, 12.0)],
            Sizes(*LENGTHS),
            baseline="old",
            seconds=1.2,
            warmup=0.0,
            rounds=2,
        )
    assert results["baseline"] == "old"
    new, old = (results["servers"][name]["measurements"][0] for name in ("new", "old"))
    assert "ratio" not in old
    # By sleeping alone it is 420 ms over 20 ms; what the machine adds to both makes it less.
    assert new["ratios"]["ttft_ms"]["value"] > 1.5
    assert new["ttft_ms"]["p50"] >= 420
    planned = {
        name: [(row["round"], row["planned_s"]) for row in samples if row["server"] == name]
        for name in ("new", "old")
    }
    assert sorted(planned["new"]) == sorted(planned["old"])


def test_a_server_that_answers_nothing_has_no_numbers() -> None:
    def refuse(asked: Asked, context: Any) -> Iterator[Any]:
        if asked.one("max_tokens") == 1:
            return Known()(asked, context)
        return iter([refusal("the queue is full")])

    sizes = Sizes(*LENGTHS)
    with FakeTriton(refuse) as server:
        servers = {"mine": Server(server.url)}
        with pytest.raises(ServerError, match="every request to mine failed") as caught:
            measure_load(servers, [Level(CLOSED, 1)], sizes, seconds=0.3, warmup=0, rounds=1)
    assert "the queue is full" in str(caught.value)
    nobody = {"mine": Server("127.0.0.1:1")}
    with pytest.raises(ServerError, match="no Triton server answers here"):
        measure_load(nobody, [Level(CLOSED, 1)], sizes)
    for wrong in ({"clients": 0}, {"rounds": 0}, {"seconds": 0.0}, {"warmup": -1.0}):
        with pytest.raises(UsageError, match="must"):
            measure_load(nobody, [Level(CLOSED, 1)], sizes, **wrong)
    with pytest.raises(UsageError, match="a load must be above 0"):
        measure_load(nobody, [Level(CLOSED, 0)], sizes)


def test_client_processes_end_whatever_happens() -> None:
    with FakeTriton(Known()) as server:
        servers = {"server": Server(server.url, headers=HEADERS)}

        def broken() -> None:
            with Fleet(1, servers, model="tensorrt_llm_bls", timeout=9.0) as fleet:
                (child,) = children()
                # What is told to a process is in no list of processes.
                assert not any("Bearer" in word or server.url in word for word in child.cmdline())
                child.kill()
                child.wait(30)
                row = (Request(0, 0.0, INPUT, FAST), 3)
                fleet.run("server", Level(OPEN, 1.0), [row], 1.0, streams=True)

        with pytest.raises(ServerError, match="a client process of the load ended by itself"):
            broken()
    assert children() == []


RECORDED = Path(__file__).with_name("perf_analyzer_export.json")
STAND_IN = """#!{python}
import json, pathlib, shutil, sys
words = sys.argv[1:]
value = dict(zip(words, words[1:]))
rows = json.loads(pathlib.Path(value["--input-data"]).read_text())["data"]
told = pathlib.Path({told!r})
told.write_text(json.dumps({{"words": words, "rows": rows}}))
if {broken}:
    print("Failed to obtain stable measurement.")
    sys.exit(1)
head = "Concurrency,Inferences/Second,p50 latency,p90 latency,p95 latency,p99 latency"
pathlib.Path(value["-f"]).write_text(head + "\\n2,25.371,152670,173085,183578,202224\\n")
shutil.copy({recorded!r}, value["--profile-export-file"])
"""


@contextmanager
def stand_in(tmp_path: Path, *, broken: bool) -> Iterator[tuple[Path, Path]]:
    told, program = tmp_path / "told.json", tmp_path / "perf_analyzer"
    text = STAND_IN.format(
        python=sys.executable, told=str(told), broken=broken, recorded=str(RECORDED)
    )
    program.write_text(text, encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    yield program, told


def test_perf_analyzer_is_read_as_it_writes(tmp_path: Path) -> None:
    """The files are those of version 2.51, cut short; the program itself runs in the e2e test."""
    with stand_in(tmp_path, broken=False) as (program, told), FakeTriton(Known()) as server:
        mine = Server(server.url)
        results, _ = measure_load(
            {"server": mine},
            [Level(CLOSED, 2)],
            Sizes(*LENGTHS),
            seconds=2.4,
            warmup=0.0,
            rounds=2,
            peer=Peer(str(program), mine, "tensorrt_llm_bls"),
        )
        asked = json.loads(told.read_text())
    (row,) = results["perf_analyzer"]
    assert row["reported"]["requests_per_second"]["value"] == pytest.approx(25.371)
    assert row["reported"]["latency_p50_ms"]["value"] == pytest.approx(152.67)
    # Of the recorded requests the first responses came 18.041098 and 26.473249 ms after sending.
    assert row["ttft_p50_ms"]["perf_analyzer"]["value"] == pytest.approx(22.2572, abs=1e-3)
    # The last responses came 23.892013 and 32.401704 ms after sending.
    assert row["latency_p50_ms"]["perf_analyzer"]["value"] == pytest.approx(28.14686, abs=1e-3)
    own = row["ttft_p50_ms"]["own"]["value"]
    assert row["ttft_p50_ms"]["ratio"]["value"] == pytest.approx(22.2572 / own, rel=1e-3)
    prompts = [one["text_input"]["content"][0] for one in asked["rows"]]
    assert len({prompt.split()[0] for prompt in prompts}) == len(prompts) > 2
    assert {2 * len(prompt.split()) for prompt in prompts} == {INPUT}
    assert asked["rows"][0]["max_tokens"] == {"content": [FAST], "shape": [1]}
    assert not any(prompts[0] in word for word in asked["words"])


def test_the_beginning_of_perf_analyzer_is_left_out_as_ours() -> None:
    second = 10**9
    requests = [
        (0, [second // 2, second]),
        (second // 2, [second, 3 * second]),
        (2 * second, [5 * second // 2, 4 * second]),
        (3 * second, [16 * second // 5, 5 * second]),
    ]
    found = counted(requests, 1.5, reported_per_second=1.0, reported_p50_ms=2.0)
    # Three ended in the 3.5 s behind the warm-up, of which two were sent in it.
    assert found.requests_per_second == pytest.approx(3 / 3.5)
    assert (found.requests, found.latency_p50_ms) == (2, 2000)
    assert found.ttft_p50_ms == pytest.approx(350)
    with pytest.raises(ValueError, match="sent in the warm-up"):
        counted(requests, 4.0, reported_per_second=1.0, reported_p50_ms=2.0)


def test_an_export_with_numbers_that_are_none_is_read() -> None:
    """What version 2.51 writes for an output that is not in a response is not always JSON."""
    text = RECORDED.read_text(encoding="utf-8")
    broken = text.replace('" e"', '" e", "said": "\\"timestamp\\":1", "log_probs": ')
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)
    found = exported(broken)
    wanted = json.loads(text)["experiments"][0]["requests"]
    assert found == [(one["timestamp"], one["response_timestamps"]) for one in wanted]
    with pytest.raises(ValueError, match="has 0 requests"):
        exported("{}")


def test_perf_analyzer_that_fails_is_quoted(tmp_path: Path) -> None:
    with stand_in(tmp_path, broken=True) as (program, _), FakeTriton(Known()) as server:
        mine = Server(server.url)
        with pytest.raises(
            ServerError, match="perf_analyzer measured nothing at 1 streams"
        ) as caught:
            measure_load(
                {"server": mine},
                [Level(CLOSED, 1)],
                Sizes(*LENGTHS),
                seconds=0.5,
                warmup=0.0,
                rounds=1,
                peer=Peer(str(program), mine, "tensorrt_llm_bls"),
            )
    assert "Failed to obtain stable measurement" in str(caught.value)
    assert not (tmp_path / "in.json").exists()
