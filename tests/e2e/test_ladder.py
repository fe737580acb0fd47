"""``compare RECIPE``: the demo model in two formats, one of which does not keep its gate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli

NAME = "tiny-llama-int4-awq"
LADDER = (
    *("compare", "configs/demo.yaml", "--formats", "fp16,awq,fp8"),
    # AWQ's most likely token is the source's for 95 % of the text.
    *("--set", "evaluate.gates.top1_agreement=0.975"),
    *("--concurrency", "1,4", "--seconds", "3", "--price", "1.5", "--utilization", "1"),
)

# The first test pays for the demo and for two rungs.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def ladder(cli: Cli, demo: dict[str, Any]) -> dict[str, Any]:
    del demo  # whose artifacts are taken
    return climb(cli)


def climb(cli: Cli, *more: str) -> dict[str, Any]:
    done = cli(*LADDER, *more, "--build-dir", str(cli.build), "--json", timeout=600)
    return dict(json.loads(done.stdout))


def lines(cli: Cli, format_name: str) -> list[dict[str, Any]]:
    text = (cli.build / f"{NAME}-{format_name}" / "history.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_rung_has_its_verdict_and_numbers(cli: Cli, ladder: dict[str, Any]) -> None:
    rungs = {rung["format"]: rung for rung in ladder["rungs"]}
    assert {name: rung["verdict"] for name, rung in rungs.items()} == {
        "float16": "ACCEPT",
        "int4_awq": "REGRESSION",
        "fp8": "REFUSED",
    }
    assert "no float8 arithmetic" in rungs["fp8"]["headline"]
    plain, awq = rungs["float16"], rungs["int4_awq"]
    # What a closed gate stopped in a run is built, checked, served and measured here.
    assert awq["perplexity"]["low"] < awq["perplexity"]["value"] < awq["perplexity"]["high"]
    assert awq["memory_bytes"] > 50 * 2**20
    assert [level["concurrency"] for level in awq["load"]] == [1, 4]
    assert 0 < awq["kl_divergence"]["value"] < 0.01
    assert plain["kl_divergence"]["value"] == 0
    # A seventh of the parameters are embeddings and stay in 16 bit.
    assert plain["bits_per_parameter"] == pytest.approx(16, rel=0.01)
    assert 4.5 < awq["bits_per_parameter"] < 8
    for own, base in zip(awq["load"], plain["load"], strict=True):
        # Paired by round; of geometric means the ratio is that of the two.
        speeds = [level["tokens_per_second"]["value"] for level in (own, base)]
        assert own["ratio"]["value"] == pytest.approx(speeds[0] / speeds[1], rel=1e-4)
        low, high = own["ratio"]["low"], own["ratio"]["high"]
        assert own["difference"] == (not low <= 1 <= high)
        assert base["ratio"] is None
    # 1.5 an hour: 1.5 / 3600 a second, a million over tokens/s seconds.
    fastest = plain["load"][-1]["tokens_per_second"]["value"]
    assert plain["cost_per_million"]["value"] == pytest.approx(1.5 / 3600 * 1e6 / fastest)
    assert ladder["recommendation"]["format"] == "float16"
    misses = ladder["recommendation"]["misses"][f"{NAME}-int4_awq"]
    # Of the checkpoint, and of the engine made of it.
    assert {miss["name"] for miss in misses} == {"top1_agreement"}


def test_only_what_keeps_its_gate_is_deployed(cli: Cli, ladder: dict[str, Any]) -> None:
    del ladder
    assert (cli.build / f"{NAME}-float16" / "repository" / "artifact.json").is_file()
    awq = cli.build / f"{NAME}-int4_awq"
    assert list(awq.glob("repository*")) == []
    assert json.loads((awq / "report.json").read_text())["verdict"]["status"] == "failed"


def test_the_files_say_what_was_printed(cli: Cli, ladder: dict[str, Any]) -> None:
    place = cli.build / NAME
    assert json.loads((place / "compare.json").read_text()) == ladder
    for name in ("compare.md", "compare.html"):
        text = (place / name).read_text()
        assert ladder["recommendation"]["reason"] in text
        assert "REFUSED" in text


def test_a_second_climb_does_nothing_twice(cli: Cli, ladder: dict[str, Any]) -> None:
    before = {name: lines(cli, name) for name in ("float16", "int4_awq")}
    assert [len(found) for found in before.values()] == [1, 1]
    assert before["int4_awq"][0]["verdict"] == "REGRESSION"
    again = climb(cli)
    assert again["load"] == {**ladder["load"], "reused": True}
    assert again["rungs"] == ladder["rungs"]
    assert {name: lines(cli, name) for name in before} == before


def test_none_qualifies_is_exit_code_4_with_the_nearest_miss(
    cli: Cli, ladder: dict[str, Any]
) -> None:
    del ladder
    done = cli(
        *LADDER,
        *("--set", "constraints.min_tokens_per_second=10000000", "--build-dir", str(cli.build)),
        check=False,
    )
    assert done.returncode == 4, done.stderr
    text = " ".join(done.stdout.split())
    # Which of the two is faster by a little changes from run to run.
    nearest = r"None qualifies\. Nearest is (float16|int4_awq): the throughput at 4 streams is"
    assert re.search(nearest, text)
    assert "under min_tokens_per_second 10,000,000" in text
    assert (Path(cli.build) / NAME / "compare.html").is_file()


def test_what_is_measured_again_and_is_the_same_adds_no_line(
    cli: Cli, ladder: dict[str, Any]
) -> None:
    del ladder
    before = lines(cli, "float16")
    sets = ("--set", f"name={NAME}-float16", "--set", "quantize.format=float16", *LADDER[4:6])
    cli.run("configs/demo.yaml", *sets, "--force", "evaluate")
    assert lines(cli, "float16") == before
    place = str(cli.build / f"{NAME}-float16")
    (run,) = json.loads(cli("compare", "--history", place, "--json").stdout)["runs"]
    assert run["changes"] == []
    assert run["key"] == before[0]["key"]
