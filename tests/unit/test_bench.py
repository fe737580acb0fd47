"""The load generator against a fake server, and its arithmetic by hand."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.bench import measure, print_results
from pipeline.bench.stats import Timeline, percentile, summary_ms
from pipeline.bench.visit import Visit
from pipeline.errors import RecipeError, ServerError, UsageError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.stages import bench
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from pipeline.triton.memory import Memory
from tests.unit.client.fake_model import FakeModel
from tests.unit.client.fake_triton import FakeTriton, piece, refusal
from trtllm_client import ConnectionFailed, InvalidRequest, ServerFailed


def recipe(**sections):
    base = {"schema": 1, "name": "t", "model": {"source": "m"}, "quantize": {"format": "float16"}}
    return Recipe.model_validate({**base, **sections})


@pytest.mark.parametrize("percent", [0, 50, 95, 99, 100])
@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 4.0, 2.0, 9.0, 2.5, 7.0]])
def test_percentiles_are_numpys(values, percent):
    numpy = pytest.importorskip("numpy")
    assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))


def test_a_timeline_by_hand():
    timeline = Timeline(10.0, ((10.5, 1), (10.7, 1), (11.3, 3)), input_tokens=4)
    assert timeline.output_tokens == 5
    assert timeline.ttft_s == pytest.approx(0.5)
    assert timeline.latency_s == pytest.approx(1.3)
    # 0.8 s from the first token to the last, and four tokens after the first.
    assert timeline.token_s == pytest.approx(0.2)


def test_tokens_of_the_first_piece_waited_for_nothing() -> None:
    assert Timeline(0.0, ((1.0, 3), (2.0, 2)), 1).token_s == pytest.approx(0.5)
    assert Timeline(0.0, ((1.0, 3),), 1).token_s is None


def test_a_burst_does_not_flatter_the_time_per_token() -> None:
    """Thirty tokens in a third of a millisecond each, after a wait of 80 ms for one of them."""
    arrivals = [(0.0, 1), (0.08, 1), *((0.08 + 0.0003 * n, 1) for n in range(1, 31))]
    gaps = sorted(b - a for (a, _), (b, _) in pairwise(arrivals))
    assert gaps[len(gaps) // 2] == pytest.approx(0.0003)
    assert Timeline(0.0, tuple(arrivals), 1).token_s == pytest.approx(0.089 / 31)


def test_a_summary_by_hand():
    assert summary_ms([0.1, 0.3]) == {
        "mean": 200.0,
        "p50": 200.0,
        "p95": 290.0,
        "p99": 298.0,
        "max": 300.0,
    }
    assert summary_ms([]) is None


def steady(asked, context):
    """Ten milliseconds to the first token, five between tokens."""
    time.sleep(0.01)
    for number in range(asked.one("max_tokens")):
        time.sleep(0.005 if number else 0)
        last = number == asked.one("max_tokens") - 1
        yield piece("x", final=last, num_input_tokens=7, num_output_tokens=1)


def test_a_server_of_known_speed_is_measured_as_such():
    with FakeTriton(steady) as server:
        results = measure(server.url, concurrency=[1, 4], requests=6, rounds=2, output_tokens=9)
    one, four = results["measurements"]
    # At least one request per stream is sent in each round.
    assert [(m["concurrency"], m["requests"], m["output_tokens"]) for m in (one, four)] == [
        (1, 6, 54),
        (4, 8, 72),
    ]
    assert one["input_tokens"] == 42
    # Lower limits are what the server sleeps; upper ones leave room for a busy machine.
    assert 10 <= one["ttft_ms"]["p50"] < 60
    assert 5 <= one["itl_ms"]["p50"] < 30
    assert 50 <= one["latency_ms"]["p50"] < 300
    assert one["seconds"] >= 6 * 0.05
    speed = one["tokens_per_second"]
    first, second = one["by_round"]
    assert speed["value"] == pytest.approx((first * second) ** 0.5, rel=1e-4)
    assert speed["value"] == pytest.approx(54 / one["seconds"], rel=0.2)
    assert speed["low"] < min(first, second) <= max(first, second) < speed["high"]
    assert json.loads(json.dumps(results)) == results


def test_every_round_visits_every_level() -> None:
    """What the machine does else for a while hits all levels."""
    told = []
    with FakeTriton(steady) as server:
        results = measure(
            server.url,
            concurrency=[2, 3, 2],
            requests=1,
            rounds=3,
            output_tokens=9,
            on_round=told.append,
        )
        order = [asked.one("max_tokens") for asked in server.asked].count(9)
    assert told == [1, 2, 3]
    assert [(m["concurrency"], len(m["by_round"])) for m in results["measurements"]] == [
        (2, 3),
        (3, 3),
    ]
    assert order == 3 * (2 + 3)
    assert results["rounds"] == 3


def test_every_request_is_a_sample() -> None:
    with FakeTriton(steady) as server:
        results = measure(server.url, concurrency=[1, 2], requests=4, rounds=2, output_tokens=3)
    for level, found in zip([1, 2], results["samples"], strict=True):
        assert found["concurrency"] == level
        assert len(found["ttft_ms"]) == len(found["itl_ms"]) == 4
        assert min(found["ttft_ms"]) >= 10
        # A first token that is read late makes the way to the last one shorter, but not the whole.
        whole = [a + 2 * b for a, b in zip(found["ttft_ms"], found["itl_ms"], strict=True)]
        assert min(whole) >= 20
    row = results["measurements"][0]
    assert row["itl_ms"]["max"] == max(results["samples"][0]["itl_ms"])


def counting(asked, context):
    """Two tokens per word; 4 ms per prompt token, then 10 ms per token, sent in one burst."""
    tokens = 2 * len(asked.prompt.split())
    if tokens > LIMIT:
        yield refusal(f"the prompt has {tokens} tokens, too long for the {LIMIT} of the engine")
        return
    wanted = asked.one("max_tokens")
    time.sleep(0.004 * tokens + 0.01 * wanted)
    for number in range(wanted):
        last = number == wanted - 1
        yield piece("x", final=last, num_input_tokens=tokens, num_output_tokens=1)


LIMIT = 100


def test_prefill_and_decode_by_hand() -> None:
    """Two streams: of nine tokens after 1 and 1.2 s, of one after 0.3 s, of long prompts."""
    load = tuple(Timeline(0.0, ((last - 0.001, 4), (last, 5)), 3) for last in (1.0, 1.2))
    firsts = (Timeline(5.0, ((5.2, 1),), 3), Timeline(5.0, ((5.4, 1),), 3))
    prefills = (Timeline(8.0, ((8.5, 1),), 90), Timeline(8.1, ((8.75, 1),), 60))
    visit = Visit(2, load, firsts, prefills)
    # 8 tokens each in 1.1 - 0.3 s, and 150 of prompts in 0.75 s; arrivals would say 5 in 1 ms.
    assert visit.decode_tokens_per_second == pytest.approx(2 * 8 / 0.8)
    assert visit.prefill_tokens_per_second == pytest.approx(200)
    assert Visit(2, load).decode_tokens_per_second is None
    # A busy machine, on which one token took longer than nine.
    slow = (Timeline(5.0, ((6.2, 1),), 3),)
    assert Visit(2, load, slow).decode_tokens_per_second is None


def test_prefill_and_decode_of_a_server_that_sends_bursts() -> None:
    with FakeTriton(counting) as server:
        found = measure(server.url, concurrency=[1], requests=3, rounds=3, output_tokens=8)
        seen = {(len(asked.prompt.split()) > 20, asked.one("max_tokens")) for asked in server.asked}
    # Long prompts for a token, short ones for one token and for all.
    assert {(True, 1), (False, 1), (False, 8)} <= seen
    prefill = found["prefill_tokens_per_second"]
    # No machine sleeps less than it was told to.
    assert prefill["low"] < prefill["value"] < 250
    # By arrivals, tokens would take less than the server slept for each.
    assert found["measurements"][0]["itl_ms"]["p50"] < 10


@pytest.mark.parametrize("wanted", [60, 10_000])
def test_prompts_of_prefill_are_as_long_as_wished_or_as_the_engine_takes(wanted: int) -> None:
    with FakeTriton(counting) as server:
        measure(server.url, concurrency=[1], rounds=1, requests=1, input_tokens=wanted)
        lengths = [2 * len(asked.prompt.split()) for asked in server.asked]
    reached = max(length for length in lengths if length <= LIMIT)
    assert lengths[-1] == reached
    assert 0.6 * min(wanted, LIMIT) < reached <= min(wanted, LIMIT)


def test_an_engine_that_takes_no_long_prompt_is_measured_with_short_ones() -> None:
    def narrow(asked, context):
        if len(asked.prompt.split()) > 20:
            return [refusal("the prompt is too long")]
        return steady(asked, context)

    with FakeTriton(narrow) as server:
        found = measure(server.url, concurrency=[1], rounds=1, requests=1)
        assert len(server.asked[-1].prompt.split()) <= 20
    assert found["prefill_tokens_per_second"]["value"] > 0


def test_no_prompt_begins_as_one_before_it_so_that_no_cache_answers() -> None:
    with FakeTriton(steady) as server:
        for _ in range(2):
            measure(server.url, concurrency=[1, 2], requests=4, rounds=2, output_tokens=2)
        begins = [asked.prompt.split()[0] for asked in server.asked]
    assert len(begins) > 30
    assert len(set(begins)) == len(begins)


def test_what_is_known_of_concurrency_1_is_not_guessed_from_others() -> None:
    with FakeTriton(steady) as server:
        found = measure(server.url, concurrency=[2], requests=2, rounds=1, output_tokens=2)
    assert found["prefill_tokens_per_second"] is None
    assert found["decode_tokens_per_second"] is None
    # One round has no interval.
    speed = found["measurements"][0]["tokens_per_second"]
    assert (speed["low"], speed["high"]) == (None, None)
    assert speed["value"] > 0


def test_what_was_measured_is_told_as_it_comes():
    lines = []
    with FakeTriton(steady) as server:
        measure(
            server.url,
            concurrency=[1, 2],
            requests=2,
            rounds=2,
            output_tokens=2,
            on_measured=lambda measurement: lines.append(str(measurement)),
        )
    one, two = lines
    assert one.startswith("1 stream: ")
    assert two.startswith("2 streams: ")
    assert two.endswith(" tokens/s")


def test_streams_really_overlap():
    seen = {"now": 0, "most": 0}

    def counted(asked, context):
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        yield from steady(asked, context)
        seen["now"] -= 1

    with FakeTriton(counted) as server:
        measure(server.url, concurrency=[3], requests=9, rounds=1, output_tokens=8)
    assert seen["most"] == 3


def test_every_request_generates_as_many_tokens_as_asked_for_and_prompts_take_turns():
    with FakeTriton(steady) as server:
        texts = ["a", "b"]
        measure(server.url, concurrency=[2], requests=4, rounds=1, output_tokens=20, prompts=texts)
    measured = [asked for asked in server.asked if asked.one("max_tokens") == 20]
    assert len(measured) == 4
    assert {asked.one("end_id") for asked in measured} == {-1}
    assert sorted(asked.prompt.split()[1] for asked in measured) == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (lambda *_: [refusal("max_tokens must be smaller")], InvalidRequest, "must be smaller"),
        (lambda *_: [piece("x", final=True)], ServerFailed, "does not count tokens"),
    ],
)
def test_a_failed_request_fails_the_measurement(answer, kind, message):
    with FakeTriton(answer) as server, pytest.raises(kind, match=message):
        measure(server.url, concurrency=[2], requests=2)


def test_wrong_numbers_and_nobody_there():
    with pytest.raises(UsageError, match="concurrency must be at least 1, not 0"):
        measure("127.0.0.1:1", concurrency=[4, 0])
    with pytest.raises(UsageError, match="output_tokens must be at least 1"):
        measure("127.0.0.1:1", output_tokens=0)
    with pytest.raises(UsageError, match="rounds must be at least 1"):
        measure("127.0.0.1:1", rounds=0)
    with pytest.raises(UsageError, match="the number of prompts must be at least 1"):
        measure("127.0.0.1:1", prompts=[])
    with pytest.raises(ConnectionFailed, match="no Triton server answers here"):
        measure("127.0.0.1:1")


def test_the_table(capsys):
    with FakeTriton(steady) as server:
        print_results(measure(server.url, concurrency=[2], requests=2, output_tokens=1))
        found = measure(server.url, concurrency=[1], requests=5, rounds=5, output_tokens=4)
    shown = capsys.readouterr().out
    assert "1 token per request" in shown
    assert " - " in shown
    assert "over 5 rounds" in shown
    assert "one stream alone" not in shown
    print_results(found)
    row, shown = found["measurements"][0], capsys.readouterr().out
    # Where a machine is so busy that the times mean nothing, there is no speed of a phase.
    phases = [found[f"{phase}_tokens_per_second"] for phase in ("prefill", "decode")]
    speeds = [row["tokens_per_second"], *(speed for speed in phases if speed)]
    intervals = re.findall(r"([\d.,]+) to ([\d.,]+)", shown)
    for speed, (low, high) in zip(speeds, intervals, strict=True):
        # Printed without decimals, which a slow machine shows.
        assert float(low.replace(",", "")) == pytest.approx(speed["low"], rel=0.01, abs=0.5)
        assert float(high.replace(",", "")) == pytest.approx(speed["high"], rel=0.01, abs=0.5)


def test_the_stage_writes_what_it_measured(tmp_path, monkeypatch):
    @contextmanager
    def server(repository, *, log_file, **_options):
        with FakeModel().serve() as fake:
            fake.memory = lambda: Memory(123)
            yield fake

    monkeypatch.setattr("pipeline.triton.server.TritonServer", server)
    load = {"concurrency": [1, 2], "requests": 2, "rounds": 2, "output_tokens": 4}
    wanted = recipe(bench=load)
    repository = Artifact("repository", "k", "d", Path("repository"), {"target": "openvino"})
    facts = bench.STAGE.run(StageContext(wanted, {"repository": repository}, tmp_path, Silent()))
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert content == facts
    assert [row["output_tokens"] for row in content["measurements"]] == [8, 16]
    assert content["rounds"] == 2
    assert content["machine"]["cpus"] >= 1
    assert (content["memory_bytes"], content["memory_unknown"]) == (123, None)


def test_a_request_that_fails_fails_the_stage_as_the_server_does(tmp_path, monkeypatch):
    """The runner knows this project's errors alone."""

    @contextmanager
    def nobody(repository, *, log_file, **_options):
        yield SimpleNamespace(url="127.0.0.1:1")

    monkeypatch.setattr("pipeline.triton.server.TritonServer", nobody)
    repository = Artifact("repository", "k", "d", Path("repository"), {"target": "openvino"})
    context = StageContext(recipe(), {"repository": repository}, tmp_path, Silent())
    with pytest.raises(ServerError, match="no Triton server answers here") as caught:
        bench.run(context)
    assert caught.value.as_dict()["error"] == "ConnectionFailed"


def test_prompts_are_the_beginnings_of_the_held_out_texts(tmp_path):
    text = tmp_path / "held_out.txt"
    text.write_text(" ".join(f"w{n}" for n in range(60)) + "\n\nshort one\n", encoding="utf-8")
    assert bench.prompts_from(text, 384)[0].split() == [f"w{n}" for n in range(24)]
    assert bench.prompts_from(text, 384)[1] == "short one"
    assert bench.prompts_from(text, 24)[0] == "w0 w1"
    assert bench.prompts_from(text, 1)[0] == "w0"
    assert len(bench.prompts_from(None, 384)) == 8


def test_the_key_covers_load_text_and_machine(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one", encoding="utf-8")
    wanted = recipe(evaluate={"text": str(text)})
    before = bench.STAGE.material(wanted)
    text.write_text("two", encoding="utf-8")
    assert bench.STAGE.material(wanted)["text"] != before["text"]
    assert before["machine"]["cpus"] >= 1
    assert bench.STAGE.material(recipe())["text"] is None
    assert bench.STAGE.section(wanted) == {
        "bench": {"concurrency": [1, 8], "requests": 40, "rounds": 5, "output_tokens": 32},
        "compile": {"max_input_len": 1024},
    }
    text.unlink()
    with pytest.raises(RecipeError, match="cannot be read"):
        bench.STAGE.material(wanted)
