"""``bench`` with the options of a load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli.invocation import Invocation
from pipeline.cli.main import app
from pipeline.errors import MissingDependencyError, UsageError
from tests.conftest import PROJECT
from tests.unit.client.fake_model import FakeModel

LOAD = ["--duration", "0.6", "--rounds", "2", "--warmup", "0.1", "--output-tokens", "4"]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "bench", *arguments],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with FakeModel().serve() as server:
        yield server.url


def test_a_load_is_printed_in_80_columns_with_what_was_asked_for(url: str, tmp_path: Path) -> None:
    samples = tmp_path / "requests.csv"
    done = cli(
        *("--url", url, *LOAD, "--concurrency", "1,3", "--clients", "2", "--input-tokens", "4"),
        *("--goodput", "ttft:9000,itl:9000", "--samples", str(samples)),
    )
    assert done.returncode == 0, done.stderr
    tables, _, told = done.stdout.partition("two arrivals")
    assert max(map(len, tables.splitlines())) <= 80
    for part in ("1 stream", "3 streams", "first token", "longest gap", "100.0%", "2 client proc"):
        assert part in done.stdout
    # Nothing else is told than that rounds of a third of a second scatter, or a busy machine.
    assert "failed" not in told
    assert len(samples.read_text(encoding="utf-8").splitlines()) > 4


def test_an_open_load_as_json_against_a_second_server(url: str) -> None:
    done = cli("--url", url, "--against", url, *LOAD, "--rate", "20", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["load"], found["baseline"], found["seed"]) == ("open", url, 3)
    (own,) = found["servers"][f"{url} (again)"]["measurements"]
    (base,) = found["servers"][url]["measurements"]
    assert own["schedule"]["planned"] == base["schedule"]["planned"] > 0
    assert own["ratios"]["latency_ms"]["value"] > 0
    assert own["rate"] == 20


MISUSES = [
    (["--rate", "2", "--concurrency", "1"], "--rate and --concurrency exclude each other"),
    (["--rate", "0"], "--rate 0 is no list of rates"),
    (["--rate", "2,x"], "--rate 2,x is no list of rates"),
    (["--clients", "2", "--requests", "5"], "--requests does not go with a load"),
    (["--duration", "nan"], "--duration must be above 0"),
    (["--clients", "0"], "--clients must be at least 1"),
    (["--input-tokens", "gauss:3"], "--input-tokens gauss:3 is no length"),
    (["--output-tokens", "many"], "--output-tokens many is no length"),
    (["--goodput", "speed:3"], "--goodput speed:3 names no latency objectives"),
    (["--samples", "requests.txt"], "does not say how they are written"),
    (["--samples", "no/such/requests.csv"], "the folder of this file does not exist"),
    (["--trace", "no-such.jsonl"], "the trace cannot be read"),
    (["--perf-analyzer", "--rate", "2"], "--perf-analyzer goes with one server"),
    (["--perf-analyzer", "--header", "a=b"], "--perf-analyzer goes without TLS and headers"),
    (["--trace", "x.jsonl", "--input-tokens", "5"], "--trace and --input-tokens exclude"),
]


@pytest.mark.parametrize(("options", "what"), MISUSES)
def test_a_misuse_is_refused_before_a_server_is_asked(options: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        get_command(app).main(
            ["bench", "--url", "127.0.0.1:1", *options], standalone_mode=False, obj=Invocation()
        )


def test_perf_analyzer_that_is_not_there_is_told_with_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = ["bench", "--url", "127.0.0.1:1", "--perf-analyzer"]
    with pytest.raises(MissingDependencyError, match="perf_analyzer is not on the path") as caught:
        get_command(app).main(options, standalone_mode=False, obj=Invocation())
    assert "docs/bench.md" in str(caught.value)
