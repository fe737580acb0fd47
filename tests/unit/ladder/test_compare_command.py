"""The command's own words: what is a recipe, what a build, and which options go with which."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.comparison import recipe_among
from pipeline.cli.main import app
from pipeline.errors import UnsupportedError, UsageError
from tests.conftest import PROJECT

from .support import est, level, report, save


@pytest.fixture
def builds(tmp_path: Path) -> Path:
    root = tmp_path / "build"
    names = {"float16": "a-float16", "int8_sq": "a-int8-sq", "int4_awq": "a-int4-awq"}
    for format_name, name in names.items():
        save(root / name, report(name, format_name))
    (root / "store").mkdir()
    return root


def compare(*arguments: str | Path) -> None:
    app(["compare", *map(str, arguments)], standalone_mode=False)


def test_a_recipe_is_told_from_builds_by_what_it_is(builds: Path, tmp_path: Path) -> None:
    recipe = PROJECT / "configs" / "demo.yaml"
    assert recipe_among([recipe]) == recipe
    assert recipe_among([builds]) is None
    assert recipe_among([builds / "a-float16" / "report.json", builds / "a-int8-sq"]) is None
    odd = tmp_path / "report.yaml"
    odd.write_text((builds / "a-float16" / "report.json").read_text())
    assert recipe_among([odd]) is None
    named = tmp_path / "recipe"
    named.write_text(recipe.read_text())
    assert recipe_among([named]) == named
    assert recipe_among([Path("no/such.yaml")]) == Path("no/such.yaml")
    assert recipe_among([Path("no/such/build")]) is None
    with pytest.raises(UsageError, match=r"a recipe is compared in several formats, alone"):
        recipe_among([recipe, builds])


def test_finished_builds_fit_into_80_columns(
    builds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    compare(builds)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[-3:] == ["float16", "int4_awq", "int8_sq"]
    assert "tokens/s, 8 streams   1,700 ±51" in text
    # Measured at different times, so they give no ratio and no recommendation.
    assert "no difference" not in text
    assert "Take " not in text
    assert "at different times, so they give no ratio" in " ".join(text.split())


def test_two_builds_of_one_format_are_told_apart(
    builds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(builds / "b", report("b-int8-sq", "int8_sq"))
    compare(builds / "a-int8-sq", builds / "b")
    assert capsys.readouterr().out.splitlines()[0].split()[-2:] == ["a-int8-sq", "b-int8-sq"]


def test_every_form_of_finished_builds(builds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(form: str) -> str:
        compare(builds, "--format", form)
        return capsys.readouterr().out

    rungs = json.loads(printed("json"))["rungs"]
    assert [rung["format"] for rung in rungs] == ["float16", "int4_awq", "int8_sq"]
    assert rungs[0]["kl_divergence"] == est(0.0011, 0.001, 0.0012)
    assert [row["name"] for row in csv.DictReader(io.StringIO(printed("csv")))] == [
        "a-float16",
        "a-int4-awq",
        "a-int8-sq",
    ]
    assert printed("md").startswith("# Builds side by side\n")
    assert "<title>Builds side by side</title>" in printed("html")
    compare(builds, "--json")
    assert json.loads(capsys.readouterr().out)["recommendation"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["BUILDS", "--formats", "float16"], r"--formats is for a recipe, and this compares fin"),
        (["BUILDS", "--set", "a.b=1", "--again"], r"--set and --again are for a recipe"),
        (["BUILDS", "--format", "pdf"], r"--format pdf is none\. Choose one of text, md, csv"),
        (["BUILDS", "--format", "a,b"], r"Formats of a recipe's ladder go behind --formats"),
        (["BUILDS", "--format", "md", "--json"], r"--json and --format md exclude each other"),
        (["BUILDS", "--history", "--price", "1"], r"--price is for a recipe"),
        (["BUILDS", "BUILDS", "--history"], r"--history is of one build"),
        (["BUILDS", "--history", "--format", "html"], r"a history is no HTML page"),
        (["BUILDS", "--history"], r"history\.jsonl: there is no history that can be read"),
        (["DEMO", "--concurrency", "1,x"], r"--concurrency 1,x is no list of numbers"),
        (["DEMO", "--concurrency", "0"], r"--concurrency must be at least 1"),
        (["DEMO", "--seconds", "0"], r"--seconds must be above 0, not 0"),
        (["DEMO", "--seconds", "1e9"], r"--seconds must be at most 86400, a day, not 1e\+09"),
        (["DEMO", "--price", "-1"], r"--price must be above 0, not -1"),
        (["DEMO", "--utilization", "50"], r"--utilization is a share above 0 and at most 1"),
        (["DEMO", "--concurrency", "1,289"], r"--concurrency: 289 streams are more than .* 288 re"),
        (["DEMO", "--formats", "int3"], r"'int3' is no format"),
        (["no/such.yaml"], r"no/such\.yaml: there is no such recipe"),
        (["no/such"], r"no/such: this is not a report"),
    ],
)
def test_what_does_not_go_together_is_told(arguments: list[str], words: str, builds: Path) -> None:
    places = {"BUILDS": str(builds), "DEMO": str(PROJECT / "configs" / "demo.yaml")}
    with pytest.raises(UsageError) as caught:  # noqa: PT011  the whole message is matched
        compare(*(places.get(argument, argument) for argument in arguments))
    assert re.search(words, str(caught.value)), caught.value


def test_an_old_report_says_that_a_run_writes_it_again(tmp_path: Path) -> None:
    save(tmp_path / "old", {**report("old", "int8_sq"), "schema": 2})
    with pytest.raises(UsageError, match=r"[Ii]ts schema is 2, not 3\..*writes its report again"):
        compare(tmp_path / "old")


@pytest.mark.parametrize("form", ["text", "md", "csv", "html", "json"])
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schema": True}, r"[Ii]ts schema is True, not 3"),
        ({"schema": 99}, r"[Ii]ts schema is 99, not 3"),
        ({"cost": "free"}, r"cost: input should be"),
        ({"load": [1, 2]}, r"load: input should be"),
        ({"quality": {"perplexity": "seven"}}, r"quality\.perplexity: input should be"),
        ({"quality": {"tasks": "no"}}, r"quality\.tasks: input should be"),
        ({"size": {"checkpoint_bytes": "many"}}, r"size\.checkpoint_bytes: input should be"),
        ({"recipe": {"quantize": {"format": "int3"}}}, r"recipe\.quantize\.format: input should"),
        ({"created": 5}, r"created: input should be"),
        ({"size": {"share": float("nan")}}, r"size\.share: input should be a finite number"),
        ({"verdict": {}}, r"verdict\.verdict: field required"),
    ],
)
def test_a_report_that_was_changed_is_refused_in_every_form(
    changes: dict[str, Any], why: str, form: str, tmp_path: Path
) -> None:
    save(tmp_path / "changed", {**report("changed", "int8_sq"), **changes})
    with pytest.raises(UsageError, match=rf"changed/report\.json: this is not a .*{why}"):
        compare(tmp_path / "changed", "--format", form)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"schema": 3}', '{"schema": 3, "name": ' + "[" * 100_000]
)
def test_what_is_no_report_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UsageError, match=r"report\.json: this is not a report that can be"):
        compare(tmp_path)


def test_a_ladder_of_which_every_rung_is_refused_says_all_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(UnsupportedError, match=r"fp8: fp8 is not executed by the CPU.*w4a8_awq:"):
        compare("configs/demo.yaml", "--formats", "fp8,w4a8_awq", "--build-dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_history_of_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.report.history import line

    def run(key: str, speed: float) -> str:
        content: dict[str, Any] = report("t", "int4_awq")
        content["load"]["measurements"] = [level(8, speed)]
        return json.dumps({**(line(content) or {}), "key": key * 64})

    (tmp_path / "history.jsonl").write_text(f"{run('a', 1700.0)}\n{run('b', 1500.0)}\n")
    compare("--history", tmp_path)
    text = capsys.readouterr().out
    assert "bbbbbbbb: worse: tokens/s at 8 streams from 1,700" in text
    monkeypatch.setenv("COLUMNS", "80")
    runs = [json.loads(one) for one in (run("a", 1700.0), run("b", 1500.0))]
    runs[1] |= {"verdict": "INCONCLUSIVE", "finished": "2026-05-02T11:12:13Z"}
    (tmp_path / "narrow.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in runs))
    compare("--history", tmp_path / "narrow.jsonl")
    _, heading, _, first, second, *rest = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["finished", "(UTC)", "key"]
    assert first.split()[:4] == ["2026-05-01", "10:00", "aaaaaaaa", "ACCEPT"]
    assert second.split()[:4] == ["2026-05-02", "11:12", "bbbbbbbb", "INCONCLUSIVE"]
    assert max(map(len, (heading, first, second, *rest))) <= 80
    compare("--history", tmp_path, "--json")
    found = json.loads(capsys.readouterr().out)
    assert [len(one["changes"]) for one in found["runs"]] == [0, 1]
    compare("--history", tmp_path, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["key"] for row in rows] == ["aaaaaaaa", "bbbbbbbb"]
    compare("--history", tmp_path, "--format", "md")
    assert (
        capsys.readouterr().out.splitlines()[1]
        == "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
