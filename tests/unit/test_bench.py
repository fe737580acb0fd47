"""The load generator against a fake server, and its arithmetic by hand."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.bench import measure, print_results
from pipeline.bench.stats import Timeline, percentile, summary_ms
from pipeline.errors import RecipeError, ServerError, UsageError
from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.stages import bench
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
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
    # The three tokens of the last piece share its wait of 0.6 s.
    assert timeline.inter_token_s == pytest.approx([0.2, 0.2, 0.2, 0.2])


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
        results = measure(server.url, concurrency=[1, 4], requests=6, output_tokens=9)
    one, four = results["measurements"]
    assert [(m["concurrency"], m["requests"], m["output_tokens"]) for m in (one, four)] == [
        (1, 6, 54),
        (4, 6, 54),
    ]
    assert one["input_tokens"] == 42
    # Lower limits are what the server sleeps; upper ones leave room for a busy machine.
    assert 10 <= one["ttft_ms"]["p50"] < 60
    assert 5 <= one["itl_ms"]["p50"] < 30
    assert 50 <= one["latency_ms"]["p50"] < 300
    assert one["seconds"] >= 6 * 0.05
    assert one["tokens_per_second"] == pytest.approx(54 / one["seconds"], rel=0.01)
    assert json.loads(json.dumps(results)) == results


def test_what_was_measured_is_told_as_it_comes():
    lines = []
    with FakeTriton(steady) as server:
        measure(
            server.url,
            concurrency=[1, 2],
            requests=2,
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
        measure(server.url, concurrency=[3], requests=9, output_tokens=8)
    assert seen["most"] == 3


def test_every_request_generates_as_many_tokens_as_asked_for_and_prompts_take_turns():
    with FakeTriton(steady) as server:
        measure(server.url, concurrency=[2], requests=4, output_tokens=20, prompts=["a", "b"])
    measured = [asked for asked in server.asked if asked.one("max_tokens") == 20]
    assert len(measured) == 4
    assert {asked.one("end_id") for asked in measured} == {-1}
    assert sorted(asked.prompt for asked in measured) == ["a", "a", "b", "b"]


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
    with pytest.raises(ConnectionFailed, match="no Triton server answers here"):
        measure("127.0.0.1:1")


def test_the_table(capsys):
    with FakeTriton(steady) as server:
        print_results(measure(server.url, concurrency=[2], requests=2, output_tokens=1))
    shown = capsys.readouterr().out
    assert "1 token per request" in shown
    assert " - " in shown


def test_the_stage_writes_what_it_measured(tmp_path, monkeypatch):
    @contextmanager
    def server(repository, *, log_file, **_options):
        with FakeModel().serve() as fake:
            fake.grpc_url = fake.url
            yield fake

    monkeypatch.setattr("pipeline.triton.server.TritonServer", server)
    wanted = recipe(bench={"concurrency": [1, 2], "requests": 2, "output_tokens": 4})
    repository = Artifact("repository", "k", "d", Path("repository"), {"target": "openvino"})
    facts = bench.STAGE.run(StageContext(wanted, {"repository": repository}, tmp_path, Silent()))
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert content == facts
    assert [row["output_tokens"] for row in content["measurements"]] == [8, 8]
    assert content["machine"]["cpus"] >= 1


def test_a_request_that_fails_fails_the_stage_as_the_server_does(tmp_path, monkeypatch):
    """The runner knows this project's errors alone."""

    @contextmanager
    def nobody(repository, *, log_file, **_options):
        yield SimpleNamespace(grpc_url="127.0.0.1:1")

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
    assert bench.prompts_from(text, 16)[0] == "w0 w1"
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
        "bench": {"concurrency": [1, 8], "requests": 16, "output_tokens": 32},
        "compile": {"max_input_len": 1024},
    }
    text.unlink()
    with pytest.raises(RecipeError, match="cannot be read"):
        bench.STAGE.material(wanted)
