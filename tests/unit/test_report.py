"""The report's numbers, charts and safety."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.errors import QualityGateError, StageError
from pipeline.recipe.schema import Recipe
from pipeline.report import collect, render_html, render_markdown
from pipeline.report.charts import LABEL_WIDTH, VALUE_WIDTH, WIDTH, bars, histogram
from pipeline.report.render import percent, size, spread
from pipeline.store.artifact import Artifact
from pipeline.tables import number
from pipeline.verdict.failure import Failure


def _report(**changes: Any) -> dict[str, Any]:
    times = {"p50": 1.5, "p95": 20.25}
    report = {
        "name": "demo",
        "version": "1",
        "created": "2026-07-01T12:00:00Z",
        "verdict": {
            "status": "passed",
            "stage": None,
            "reasons": [],
            "fix": None,
            "unreached": [],
            "kept": {},
        },
        "machine": {"architecture": "x86_64", "cpus": 2},
        "recipe": {"name": "demo", "quantize": {"format": "int4_awq", "kv_cache": None}},
        "model": {
            "architecture": "LlamaForCausalLM",
            "parameters": 1234567,
            "source": "model",
            "bytes": 4 << 20,
            "bytes_16bit": 2 << 20,
            "unread_keys": [],
        },
        "checkpoint": {"format": "int4_awq", "quant_algo": None, "bytes": 1 << 20, "share": 0.5},
        "engine": {"target": "openvino"},
        "quality": None,
        "load": {
            "note": "a note",
            "rows": [
                {
                    "concurrency": 8,
                    "tokens_per_second": 123.456,
                    "ttft_ms": times,
                    "itl_ms": None,
                    "latency_ms": times,
                }
            ],
            "best": 123.456,
            "best_streams": "8 streams",
            "bars": [("8 streams", 123.456, "123.5 tokens/s")],
        },
        "conformance": {
            "passed": 1,
            "failed": 0,
            "skipped": 0,
            "server": "triton",
            "checks": [
                {"name": "readiness", "status": "passed", "proves": "it is up", "reason": None}
            ],
        },
        "sizes": [("16 bit", 2.0, "2 MiB")],
        "stages": [{"name": "source", "seconds": 1.0, "key": "k" * 64, "digest": "d" * 64}],
        "tools": {"torch": "2"},
    }
    return report | changes


def test_markdown_has_the_numbers_and_no_holes() -> None:
    text = render_markdown(_report())
    assert "| 8 | 123.5 | 1.5 / 20.25 | - | 1.5 / 20.25 |" in text
    assert "1,234,567 parameters" in text
    assert "{{" not in text
    assert "Quality" not in text
    assert "Built 2026-07-01; measured on: architecture x86_64, cpus 2." in text
    assert "quantize:\n  format: int4_awq\n  kv_cache: null\n```" in text


def test_keys_of_config_json_that_nobody_reads_are_listed_once() -> None:
    model = _report()["model"] | {"unread_keys": ["is_llama_config", "rope_interleaved"]}
    for text in (render_markdown(_report(model=model)), render_html(_report(model=model))):
        assert text.count("is_llama_config, rope_interleaved") == 1
    assert "nothing reads" not in render_markdown(_report()).lower()


def test_checks_that_were_skipped_are_not_those_that_failed() -> None:
    counts = {"passed": 25, "failed": 0, "skipped": 1, "server": "triton", "checks": []}
    html, text = (render(_report(conformance=counts)) for render in (render_html, render_markdown))
    assert "<b>25 passed, 1 skipped</b><span>conformance checks</span>" in html
    assert "| conformance | 25 passed, 1 skipped |" in text


def test_html_escapes_what_users_wrote() -> None:
    html = render_html(_report(name="<script>alert(1)</script>"))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_html_has_the_recipe_folded_away() -> None:
    html = render_html(_report(recipe={"name": "<b>", "quantize": {}}))
    folded = html[html.index("<details>") : html.index("</details>")]
    assert "name: &lt;b&gt;" in folded


def test_html_is_well_formed_enough_to_parse() -> None:
    html = render_html(_report()).replace("<!DOCTYPE html>", "")
    html = re.sub(r"<(meta|br)([^>]*)>", r"<\1\2/>", html)
    assert ElementTree.fromstring(html).tag == "html"


def test_bars_are_proportional() -> None:
    drawn = ElementTree.fromstring(bars([("a", 2.0, "two"), ("b", 1.0, "one")]))
    widths = [float(bar.attrib["width"]) for bar in drawn.iter("rect")]
    assert widths == [WIDTH - LABEL_WIDTH - VALUE_WIDTH, (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / 2]
    assert bars([]) == ""


def test_a_histogram_counts_every_positive_value_once() -> None:
    drawn = _histogram([0.0, 0.001, 0.01, 0.1, 0.1], buckets=3)
    titles = [title.text or "" for title in drawn.iter("title")]
    assert [int(title.split()[0]) for title in titles] == [1, 1, 2]
    assert histogram([0.5], unit="nats", counted="windows") == ""


def _histogram(values: list[float], buckets: int) -> ElementTree.Element:
    return ElementTree.fromstring(
        histogram(values, unit="nats", counted="windows", buckets=buckets)
    )


def test_the_axes_of_a_histogram_have_decades_and_round_counts() -> None:
    drawn = _histogram([0.0002] * 1200 + [0.05], buckets=30)
    texts = [text.text for text in drawn.iter("text")]
    assert texts == [
        "windows", "0", "500", "1,000", "0.0001", "0.001", "0.01", "0.1 nats",
    ]  # fmt: skip
    labels = {text.text: text.attrib for text in drawn.iter("text")}
    bars_at = {
        int((bar.find("title").text or "").split()[0]): float(bar.attrib["x"])  # type: ignore[union-attr]
        for bar in drawn.iter("rect")
    }
    # The bar of 0.0002 stands right of the first tick, at log10(2) of a decade.
    decade = float(labels["0.01"]["x"]) - float(labels["0.001"]["x"])
    place = bars_at[1200] - float(labels["0.0001"]["x"])
    assert place / decade == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.02), "2.00 %"),
        (size(512), "512 B"),
        (size(1536), "1.5 KiB"),
        (size(16 << 30), "16.0 GiB"),
        (number(0.00012346), "0.0001235"),
        (number(12345.6), "12,346"),
        (number(1234.5), "1,234"),
        (number(123.456, 2), "123"),
        (number(7), "7"),
        (number(20000), "20,000"),
        (number(None), "-"),
        (spread(None), "-"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


def _artifact(root: Path, stage: str, facts: dict[str, Any], name: str, content: Any) -> Artifact:
    """An artifact of one file, made on the day of the month that is the length of its name."""
    folder = root / stage
    folder.mkdir()
    manifest = {
        "schema": 1,
        "digest": "d" * 64,
        "facts": facts,
        "files": {},
        "created": f"2026-07-{len(stage):02}T12:00:00Z",
        "seconds": 1.5,
    }
    (folder / "artifact.json").write_text(json.dumps(manifest))
    (folder / name).write_text(json.dumps(content))
    return Artifact(stage, "k" * 64, "d" * 64, folder, facts)


def _recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": "t",
            "model": {"source": "m"},
            "quantize": {"format": "float16"},
            "evaluate": {"text": "t.txt"},
        }
    )


def _artifacts(root: Path, evaluation: dict[str, Any]) -> dict[str, Artifact]:
    times = {"p50": 1.5, "p95": 20.25}
    row = {
        "concurrency": 1,
        "tokens_per_second": 1234.5,
        "ttft_ms": times,
        "itl_ms": None,
        "latency_ms": times,
    }
    bench = {
        "requests": 4,
        "output_tokens": 8,
        "measurements": [row],
        "machine": {"architecture": "x86_64", "cpus": 2},
    }
    source = {"parameters": 10, "bytes": 20, "architecture": "LlamaForCausalLM"}
    conformance = {"passed": 0, "failed": 0, "skipped": 0, "server": "triton", "checks": []}
    made = (
        ("source", source, "config.json", {"architectures": ["LlamaForCausalLM"], "mine": 1}),
        ("quantize", {"bytes": 10, "quant_algo": None}, "config.json", 0),
        ("evaluate", {}, "evaluation.json", evaluation),
        ("compile", {}, "engine.bin", 0),
        ("repository", {}, "config.pbtxt", 0),
        ("verify", {}, "verify.json", conformance),
        ("bench", bench, "bench.json", bench),
    )
    return {stage: _artifact(root, stage, facts, *file) for stage, facts, *file in made}


ACTIVATIONS = {
    "dtype": "float16", "limit": 65504.0, "largest": 7e4, "beyond": 3,
    "where": "model.layers.1.mlp.down_proj", "rounded": False,
}  # fmt: skip


@pytest.mark.parametrize("value", [1.0, None])
def test_a_report_is_made_of_artifacts_alone_and_bears_what_is_no_number(
    value: float | None, tmp_path: Path
) -> None:
    names = [
        "source_perplexity", "perplexity", "engine_perplexity", "perplexity_increase",
        "perplexity_increase_standard_error", "top1_agreement", "top1_agreement_standard_error",
        "kl_divergence", "kl_divergence_standard_error",
    ]  # fmt: skip
    windows = [{"kl": value, "tokens": 4}, {"kl": value, "tokens": 4}]
    evaluation = {
        **dict.fromkeys(names, value),
        "tokens": 20,
        "by_window": windows,
        "activations": {**ACTIVATIONS, "largest": value and 7e4},
    }
    report = collect(_recipe(), _artifacts(tmp_path, evaluation))
    assert report["model"]["unread_keys"] == ["mine"]
    # The repository has the longest name and so the latest day.
    assert report["created"] == "2026-07-10T12:00:00Z"
    assert report["machine"] == {"architecture": "x86_64", "cpus": 2}
    assert report["recipe"]["quantize"]["format"] == "float16"
    assert report["load"]["best_streams"] == "1 stream"
    assert {"torch", "nvidia-pytriton", "tritonclient", "openvino"} <= report["tools"].keys()
    shown = "1" if value else "-"
    for text in (render_markdown(report), render_html(report)):
        assert "1,234" in text
        assert "None" not in text
        largest = "7e+04" if value else "infinite"
        assert (
            f"3 activations are beyond 65504, the range of float16; the largest is {largest}"
            in (text)
        )
        assert "Set model.dtype to bfloat16" in text
    assert f"| perplexity of the engine | {shown} |" in render_markdown(report)
    assert len(report["quality"]["kl_by_window"]) == (2 if value else 0)


def test_a_broken_gate_fails_the_report_and_what_was_not_reached_is_named(tmp_path: Path) -> None:
    numbers = {
        "source_perplexity": 10.0, "perplexity": 10.5, "perplexity_increase": 0.05,
        "perplexity_increase_standard_error": 0.01, "top1_agreement": 0.97,
        "top1_agreement_standard_error": 0.01, "kl_divergence": 0.2,
        "kl_divergence_standard_error": 0.01, "tokens": 20, "by_window": [],
        "activations": ACTIVATIONS,
    }  # fmt: skip
    made = _artifacts(tmp_path, numbers)
    reached = {name: made[name] for name in ("source", "quantize", "evaluate")}
    error = QualityGateError("the checkpoint is worse", fix="Try another format").as_dict()
    failure = Failure("evaluate", True, error, unreached=("compile", "verify"))
    report = collect(_recipe(), reached, failure)
    # 10.5 is 5 % more than 10; the recipe's own limit is 2 %.
    assert report["verdict"] == {
        "status": "failed",
        "stage": "evaluate",
        "reasons": ["perplexity rose by 5.00% (10 to 10.5), allowed is 2.00%"],
        "fix": "Try another format",
        "unreached": ["compile", "verify"],
        "kept": {},
    }
    assert [row["name"] for row in report["quality"]["rows"] if row["broken"]] == [
        "perplexity increase"
    ]
    assert report["load"] is report["conformance"] is report["engine"] is None
    html, markdown = render_html(report), render_markdown(report)
    assert '<div class="verdict failed"><b>Failed at evaluate</b>' in html
    assert 'Gate: <b class="failed">failed</b>' in html
    assert "Conformance" not in html
    assert "Not reached: compile, verify." in html
    assert "**Failed at evaluate**" in markdown
    assert "| compile | - | not reached | |" in markdown
    # Its artifact is there and was refused: one row, which says so.
    assert re.findall(r"^\| (evaluate.*?) \|", markdown, re.M) == ["evaluate, failed"]
    assert html.count("evaluate, failed</td>") == 1
    assert "None" not in markdown
    parsed = html.replace("<!DOCTYPE html>", "")
    assert ElementTree.fromstring(re.sub(r"<(meta|br)([^>]*)>", r"<\1\2/>", parsed)).tag == "html"


def test_a_failed_check_fails_the_report_whatever_the_run_says(tmp_path: Path) -> None:
    made = _artifacts(tmp_path, {})
    del made["evaluate"]
    content = json.loads((made["verify"].path / "verify.json").read_text())
    content["checks"] = [
        {"name": "end_token", "status": "failed", "proves": "it ends", "reason": "it went on"}
    ]
    (made["verify"].path / "verify.json").write_text(json.dumps(content))
    report = collect(_recipe(), made)
    assert report["verdict"]["status"] == "failed"
    assert report["verdict"]["reasons"] == ["end_token: it went on"]
    assert "end_token: it went on" in render_html(report)


def test_a_run_that_could_not_go_on_is_unfinished(tmp_path: Path) -> None:
    made = _artifacts(tmp_path, {})
    error = StageError("trtllm-build failed", why="It ran out of memory").as_dict()
    failure = Failure("compile", False, error, unreached=("verify",))
    report = collect(_recipe(), {"source": made["source"]}, failure)
    assert report["verdict"]["status"] == "unfinished"
    assert report["verdict"]["reasons"] == ["trtllm-build failed", "It ran out of memory"]
    html = render_html(report)
    assert "Not finished: compile could not be completed" in html
    assert "None" not in render_markdown(report)
    # The stage at which it ended is in its place among the stages, also without an artifact.
    rows = re.findall(r"<tr><td>(\w+)</td>.*?</tr>", html.partition("<h2>Stages</h2>")[2])
    assert rows == ["source", "compile", "verify"]
    assert re.search(r"<td>compile</td>.*>failed</td>", html)
    assert "| compile | - | failed | |\n| verify | - | not reached | |" in render_markdown(report)
    assert re.search(r"\.verdict \{[^}]*overflow-wrap: anywhere", html)


def test_a_good_run_passed(tmp_path: Path) -> None:
    made = _artifacts(tmp_path, {})
    del made["evaluate"]
    report = collect(_recipe(), made)
    assert report["verdict"]["status"] == "passed"
    assert '<div class="verdict passed"><b>Passed</b>' in render_html(report)
