"""The command ``capacity``, and what it leaves in a report."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipeline.cli.invocation import Invocation
from pipeline.cli.main import app
from pipeline.economics.capacity import sizing
from pipeline.economics.capacity.kept import NAME, kept_capacity
from pipeline.errors import UsageError
from pipeline.recipe.file import load_recipe
from pipeline.report import render_html, render_markdown
from pipeline.stages.report import finish
from tests.conftest import PROJECT
from tests.unit import report_sample
from tests.unit.capacity.support import KNOWN, samples
from tests.unit.ladder.support import est, level

TRAFFIC = ["--requests-per-second", "20", "--input-tokens", "uniform:20,200"]
TRAFFIC += ["--output-tokens", "uniform:10,80"]
OBJECTIVE = ["--time-to-first-token-ms", "200", "--inter-token-ms", "8"]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "capacity", *arguments],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(autouse=True)
def fewer_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told does not depend on how long a simulation is; test_sizing.py has long ones."""
    monkeypatch.setattr(sizing, "LEAST_REQUESTS", 1_500)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the report of a run of the demo's recipe, without a price."""
    monkeypatch.chdir(PROJECT)
    recipe = load_recipe(PROJECT / "configs" / "demo.yaml").model_dump(mode="json", by_alias=True)
    folder = tmp_path / "demo"
    folder.mkdir()
    report = report_sample.report(recipe=recipe, cost=None)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def here(*arguments: str) -> str:
    """What the command prints, run in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        get_command(app).main(["capacity", *arguments], standalone_mode=False, obj=Invocation())
    return printed.getvalue()


def document(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(here(*arguments, "--json"))
    return found


def test_the_tables_fit_80_columns_and_call_a_simulation_one(build: Path) -> None:
    measured = samples(build / "samples.jsonl", streams=(1, 8, 24))
    done = cli(
        *(str(build), *TRAFFIC, *OBJECTIVE, "--samples", str(measured)),
        *("--price-per-hour", "1.50", "--multiply", "2"),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    tables, _, said = done.stdout.partition("Measured: one server, the samples in")
    _, _, tables = tables.partition("Measured, one server")
    assert max(map(len, tables.splitlines())) <= 80
    words = " ".join(said.split())
    assert "Servers that are needed (a simulation, not a measurement)" in tables
    assert "24 streams" in tables
    assert "1.5 an hour for each server" in " ".join(tables.split())
    assert "The most that was measured is" in words
    assert "Nobody measured several servers" in words


def test_replicas_prices_and_where_they_come_from(build: Path) -> None:
    measured = samples(build / "samples.jsonl", streams=(1, 8, 24))
    asked = ["--requests-per-second", "2", *TRAFFIC[2:], *OBJECTIVE, "--price-per-hour", "1.5"]
    found = document(str(build), *asked, "--samples", str(measured))
    assert found["source"]["kind"] == "samples"
    assert [row["multiply"] for row in found["simulated"]] == [1, 10, 100]
    most = max(row["tokens_per_second"] for row in found["measured"])
    for row in found["simulated"]:
        replicas, tokens = row["replicas"], row["tokens_per_second"]
        assert row["per_day"] == pytest.approx(replicas * 1.5 * 24)
        assert row["per_million_tokens"] == pytest.approx(row["per_day"] / (tokens * 0.0864))
        # No server does more than one was seen to do, and the objective is kept.
        assert tokens / replicas <= most * 0.9 * (1 + 1e-9)
        assert row["utilization"] == pytest.approx(tokens / replicas / most)
        assert row["ttft_ms"] <= 200
        assert row["itl_ms"] <= 8
    assert [row["replicas"] > 1 for row in found["simulated"]] == [False, False, True]
    for row in found["measured"]:
        for name, ratio in row["simulated_over_measured"].items():
            # What is simulated of a known server is that server.
            assert ratio == pytest.approx(1.0, rel=0.15), name


def test_without_a_price_there_is_none_and_the_recipes_counts(build: Path) -> None:
    found = document(str(build), *TRAFFIC, *OBJECTIVE, "--multiply", "2")
    assert found["source"]["kind"] == "report"
    assert found["cost"] is None
    assert {row["per_day"] for row in found["simulated"]} == {None}
    report = json.loads((build / "report.json").read_text())
    report["recipe"]["cost"] |= {"price_per_hour": 2.0, "currency": "EUR"}
    (build / "report.json").write_text(json.dumps(report))
    found = document(str(build), *TRAFFIC, *OBJECTIVE, "--multiply", "2")
    assert found["cost"] == {"currency": "EUR", "price_per_hour": 2.0}


def test_a_baseline_of_the_same_run_is_sized_too(build: Path) -> None:
    # A server whose every step takes twice as long needs about twice as many.
    own = samples(build / "own.jsonl", streams=(1, 8, 24))
    steps = KNOWN.steps
    slow = KNOWN.__class__(
        steps.__class__(
            *(2 * part for part in (steps.fixed, steps.sequence, steps.prompt_token, steps.request))
        ),
        KNOWN.front,
        KNOWN.limits,
    )
    other = samples(build / "other.jsonl", slow, streams=(1, 8, 24), names=["build/16-bit"])
    both = build / "both.jsonl"
    both.write_text(own.read_text() + other.read_text())
    loose = ["--time-to-first-token-ms", "3000", "--inter-token-ms", "300"]
    asked = [str(build), *TRAFFIC, *loose, "--samples", str(both)]
    asked += ["--price", "1", "--multiply", "5"]
    found = document(*asked)
    assert found["baseline"] == "build/16-bit"
    (_, row) = found["simulated"]
    assert 1.3 < row["baseline"]["replicas"] / row["replicas"] < 2.4
    printed = here(*asked)
    assert "cheaper than *" in printed
    assert "*: build/16-bit" in " ".join(printed.split())


def test_a_trace_and_tokens_per_second_state_a_traffic(build: Path) -> None:
    trace = build / "trace.jsonl"
    rows = [{"timestamp": at * 100, "input_length": 40, "output_length": 20} for at in range(50)]
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = [str(build), *OBJECTIVE, "--multiply", "1"]
    traffic = document(*asked, "--trace", str(trace))["traffic"]
    assert (traffic["arrivals"], traffic["output_tokens"]) == ("trace", 20)
    assert traffic["requests_per_second"] == pytest.approx(10.0)
    options = ["--tokens-per-second", "400", "--input-tokens", "40", "--output-tokens", "20"]
    assert document(*asked, *options)["traffic"]["requests_per_second"] == pytest.approx(20.0)


def test_other_lengths_than_those_measured_are_said(build: Path) -> None:
    measured = samples(build / "samples.jsonl", streams=(1, 8), prompts=(60, 60))
    found = document(
        *(str(build), "--requests-per-second", "2", "--input-tokens", "300"),
        *("--output-tokens", "45", *OBJECTIVE, "--samples", str(measured), "--multiply", "2"),
    )
    said = " ".join(found["remarks"])
    assert "The prompts of the load test had 60 tokens on average, and those of the traffic" in said
    assert "not told from that of a request" in said
    assert "The answers" not in said


def test_no_number_of_servers_is_told_with_its_reason(build: Path) -> None:
    limits = ["--time-to-first-token-ms", "0.01", "--inter-token-ms", "8"]
    printed = here(str(build), *TRAFFIC, *limits, "--price", "1", "--multiply", "10")
    said = " ".join(printed.split())
    assert "No number of servers was found for demo at 20 requests/s: the first token takes" in said


def test_a_report_has_what_was_asked_for_until_it_is_built_anew(build: Path) -> None:
    sample = report_sample.report()
    own = {
        "name": "demo-int4_awq",
        "format": "int4_awq",
        "weight_bits": 4,
        "checkpoint_bytes": sample["size"]["checkpoint_bytes"],
        "perplexity": sample["quality"]["perplexity"],
        "load": [level(8, 2000.0) | {"ratio": est(1.25, 1.2, 1.3)}],
    }
    plain = {"name": "demo-float16", "format": "float16", "weight_bits": 16}
    plain |= {"checkpoint_bytes": 1, "perplexity": None, "load": [level(8, 1600.0)]}
    beside = {"load": {"created": "2026-05-02T10:00:00Z"}, "baseline": plain["name"]}
    (build / "compare.json").write_text(json.dumps({**beside, "rungs": [own, plain]}))
    artifact = build.parent / "artifact"
    artifact.mkdir()
    shutil.copy(build / "report.json", artifact)
    document(
        str(build), *TRAFFIC, *OBJECTIVE, "--price-per-hour", "1.50", "--multiply", "2", "--report"
    )
    report = json.loads((build / "report.json").read_text())
    for render in (render_html, render_markdown):
        text = " ".join(render(report).replace("\N{NO-BREAK SPACE}", " ").split())
        assert "Cost and capacity" in text
        assert "20 requests/s coming at random" in text
        assert "a simulation, not a measurement" in text
        assert "USD a day" in text
        # 1.50 an hour at 2,000 and at 1,600 tokens/s, half of the time.
        assert "Loaded in turns with float16 in one run of compare, on 2026-05-02" in text
        assert {"0.42", "0.52"} <= set(re.findall(r"\d\.\d\d", text))
    assert (build / "report.html").read_text() == render_html(report)
    # A run that finds everything cached writes the same page again.
    again = finish(artifact, build)
    assert again["report.html"] == (build / "report.html").read_bytes()
    kept = kept_capacity(build, report)
    assert kept is not None
    assert kept["simulated"][0]["per_day"] == 36.0 * kept["simulated"][0]["replicas"]
    stage = next(one for one in report["stages"] if one["name"] == "repository")
    stage["digest"] = "another"
    assert kept_capacity(build, report) is None
    (build / NAME).write_text("{")
    assert kept_capacity(build, report) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--requests-per-second", "5"], "the traffic is not stated"),
        ([*TRAFFIC, "--tokens-per-second", "5"], "exclude each other"),
        ([*TRAFFIC[:1], "-1", *TRAFFIC[2:]], "must be above 0"),
        ([*TRAFFIC, "--percentile", "100"], "must be above 0 and below 100"),
        ([*TRAFFIC, "--multiply", "10,many"], "is no list of numbers"),
        ([*TRAFFIC, "--price", "0"], "--price-per-hour must be above 0"),
        ([*TRAFFIC, "--price", "1e308"], "--price-per-hour must be above 0 and at most 1e"),
        ([*TRAFFIC[:1], "1e308", *TRAFFIC[2:]], "--requests-per-second must be above 0 and at"),
        ([*TRAFFIC[:1], "nan", *TRAFFIC[2:]], "--requests-per-second must be above 0 and at"),
        ([*TRAFFIC, "--kv-tokens", "32"], "a KV cache of 32 tokens has no room for what was"),
        ([*TRAFFIC, "--trace", "x.jsonl"], "--trace excludes"),
        ([*TRAFFIC, "--headroom", "1"], "--headroom must be"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], said: str, build: Path) -> None:
    with pytest.raises(UsageError, match=said):
        here(str(build), *arguments, *OBJECTIVE)


def test_what_is_no_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no report of a build here"):
        here(str(tmp_path), *TRAFFIC, *OBJECTIVE)
    (tmp_path / "report.json").write_text('{"name": "x"}')
    with pytest.raises(UsageError, match="this is not the report of a build"):
        here(str(tmp_path), *TRAFFIC, *OBJECTIVE)


def test_a_recipe_in_a_report_that_is_wrong_is_told_in_words(build: Path) -> None:
    report = json.loads((build / "report.json").read_text())
    report["recipe"]["quantize"]["device"] = "tpu"
    (build / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="not the report of a build") as told:
        here(str(build), *TRAFFIC, *OBJECTIVE)
    assert told.value.why == "recipe.quantize.device: input should be 'auto', 'cpu' or 'cuda'"


def test_nothing_heavy_is_imported(build: Path) -> None:
    code = (
        "import sys; from pipeline.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "capacity",
            str(build),
            *TRAFFIC,
            *OBJECTIVE,
            "--multiply",
            "1",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert loaded.isdisjoint({"torch", "transformers", "openvino", "pandas", "scipy"})
