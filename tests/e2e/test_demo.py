"""The demo recipe through every stage, and what a second run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.artifact import check_files, read_manifest

from .conftest import Cli

STAGES = [
    *("source", "quantize", "evaluate", "compile", "fidelity"),
    *("repository", "verify", "bench", "report"),
]


def test_every_stage_ran(demo: dict[str, Any]) -> None:
    assert [stage["stage"] for stage in demo["stages"]] == STAGES
    assert {stage["status"] for stage in demo["stages"]} == {"run"}


def test_a_second_run_reports_every_stage_cached_with_the_same_key(
    cli: Cli, demo: dict[str, Any]
) -> None:
    again = json.loads(cli.run("configs/demo.yaml", "--json").stdout)
    assert {stage["status"] for stage in again["stages"]} == {"cached"}
    assert [s["key"] for s in again["stages"]] == [s["key"] for s in demo["stages"]]
    lines = cli.run("configs/demo.yaml").stdout.splitlines()
    assert [line.split()[:2] for line in lines[: len(STAGES)]] == [[s, "cached"] for s in STAGES]


def test_every_stage_says_what_came_of_it(cli: Cli, demo: dict[str, Any]) -> None:
    lines = cli.run("configs/demo.yaml", "--verbose").stdout.splitlines()
    told = {line.split()[0]: line.split(None, 3)[3:] for line in lines if " cached  " in line}
    assert list(told) == list(STAGES)
    assert told.pop("report") == []
    assert all(told.values()), told
    assert told["verify"] == ["25 passed, 1 skipped"]
    assert [line.strip() for line in lines if line.startswith("  ") and "store" in line] == [
        stage["path"] for stage in demo["stages"]
    ]


def test_a_run_that_did_nothing_ends_with_the_verdict_of_the_page(
    cli: Cli, demo: dict[str, Any]
) -> None:
    """Every number stands in the page's own data, which another part of the program wrote."""
    end = cli.run("configs/demo.yaml").stdout.partition("\n\n")[2].splitlines()
    shown = {name: text.strip() for name, _, text in (line.partition(":") for line in end)}
    outputs = Path(demo["outputs"])
    report = json.loads((outputs / "report.json").read_text())
    assert shown["verdict"] == report["verdict"]["headline"]
    assert shown["verdict"].startswith("INT4 AWQ: ships. ")
    increase = report["quality"]["perplexity_increase"]
    assert f"perplexity {increase['value'] * 100:+.2f} % [" in shown["quality"]
    assert f"{report['quality']['top1_agreement']['value'] * 100:.2f} % [" in shown["quality"]
    same = report["fidelity"]["against_checkpoint"]["top1_agreement"]["value"]
    assert f"agreement {same * 100:.2f} % [" in shown["compiled"]
    best = max(row["tokens_per_second"]["value"] for row in report["load"]["measurements"])
    assert shown["speed"].startswith(f"{best:,.0f} [")
    assert shown["time"].startswith(f"{sum(stage['seconds'] for stage in report['stages']):.1f} s")
    assert shown["conformance"].startswith(f"{report['conformance']['passed']} passed")
    assert shown["report"] == str(outputs / "report.html")
    assert shown["next"] == f"trtllm-pipeline serve {outputs / 'repository'}"
    assert [gate["verdict"] for gate in demo["gates"]] == ["ACCEPT"] * len(demo["gates"])
    assert demo["verdict"] == "ACCEPT"


def test_a_plan_tells_what_stored_numbers_close(cli: Cli, demo: dict[str, Any]) -> None:
    plan = ("plan", "configs/demo.yaml", "--build-dir", str(cli.build), "--json")
    assert json.loads(cli(*plan).stdout)["verdict"] == "ACCEPT"
    closed = cli(*plan, "--set", "evaluate.gates.top1_agreement=1.0", check=False)
    assert closed.returncode == 4
    found = json.loads(closed.stdout)
    assert found["verdict"] == "REGRESSION"
    (gate,) = (
        gate
        for gate in found["gates"]
        if gate["name"] == "top1_agreement" and gate["subject"] == "checkpoint"
    )
    assert (gate["limit"], gate["verdict"]) == (1.0, "REGRESSION")
    assert gate["measured"] < gate["high"] < 1.0


def test_the_plan_of_a_changed_recipe_names_the_change(cli: Cli, demo: dict[str, Any]) -> None:
    plan = cli(
        "plan", "configs/demo.yaml", "--build-dir", str(cli.build), "--set",
        "compile.max_batch_size=16", "--json",
    )  # fmt: skip
    lines = {line["stage"]: line for line in json.loads(plan.stdout)["stages"]}
    assert lines["quantize"]["status"] == "cached"
    assert lines["compile"]["reason"] == "compile.max_batch_size changed from 32 to 16"
    assert lines["repository"]["status"] == "waits"


def test_a_changed_gate_is_asked_without_measuring_again(cli: Cli, demo: dict[str, Any]) -> None:
    failed = cli.run("configs/demo.yaml", "--set", "evaluate.gates.top1_agreement=1.0", check=False)
    assert failed.returncode == 4
    assert "the checkpoint is worse than the recipe allows: agreement " in failed.stderr
    assert "of at least 100 %" in failed.stdout
    assert "evaluate.gates.top1_agreement" in failed.stderr
    evaluate = next(stage for stage in demo["stages"] if stage["stage"] == "evaluate")
    assert Path(evaluate["path"], "evaluation.json").is_file()
    assert "evaluate    cached" in failed.stdout
    # The page of the run before no longer stands for this one; what passed then is still there.
    outputs = Path(demo["outputs"])
    report = json.loads((outputs / "report.json").read_text())
    assert report["verdict"]["status"] == "failed"
    assert report["verdict"]["unreached"] == STAGES[3:-1]
    assert (outputs / "repository").is_dir()
    assert (
        '<div class="verdict bad"><b>INT4 AWQ: does not ship.'
        in (outputs / "report.html").read_text()
    )
    again = json.loads(cli.run("configs/demo.yaml", "--json").stdout)
    assert {stage["status"] for stage in again["stages"]} == {"cached"}
    assert json.loads((outputs / "report.json").read_text())["verdict"]["status"] == "passed"


def test_the_store_is_whole_and_the_repository_matches_its_manifest(
    cli: Cli, repository: Path
) -> None:
    found = json.loads(cli("store", "verify", "--build-dir", str(cli.build), "--json").stdout)
    assert found["damaged"] == []
    assert found["whole"] >= len(STAGES)
    manifest = read_manifest(repository)
    assert check_files(repository, manifest, memo=None) == []
    assert set(manifest["chain"]) == {"source", "quantize", "compile"}


def test_the_reports_agree(demo: dict[str, Any]) -> None:
    outputs = Path(demo["outputs"])
    report = json.loads((outputs / "report.json").read_text())
    assert report["schema"] == 3
    assert report["quality"]["perplexity_increase"]["high"] <= 0.02
    assert report["verdict"]["verdict"] == "ACCEPT"
    assert report["conformance"]["failed"] == 0
    markdown, html = (outputs / "report.md").read_text(), (outputs / "report.html").read_text()
    perplexity = f"{report['quality']['perplexity']['value']:.4g}"
    assert perplexity in markdown
    assert perplexity in html
    for check in report["conformance"]["checks"]:
        assert check["name"] in markdown
        assert check["name"] in html
    assert report["recipe"]["quantize"]["format"] == "int4_awq"
    assert report["created"] == max(stage["created"] for stage in report["stages"])
    assert "format: int4_awq" in html
    # Self-contained: nothing is loaded from elsewhere.
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "<script" not in html


def test_compare_lists_the_report(cli: Cli, demo: dict[str, Any]) -> None:
    (row,) = json.loads(cli("compare", demo["outputs"], "--json").stdout)["rungs"]
    assert row["format"] == "int4_awq"
    assert row["perplexity"]["low"] < row["perplexity"]["value"] < row["perplexity"]["high"]
    assert "int4_awq" in cli("compare", demo["outputs"]).stdout
    # A build directory stands for its reports, whatever else is in it.
    assert row in json.loads(cli("compare", str(cli.build), "--json").stdout)["rungs"]


def test_generate_streams_from_a_repository(cli: Cli, repository: Path) -> None:
    prompt = "Once there was a gentle boy named Jack, and he lived by the sea."
    done = cli("generate", "--repository", str(repository), "--max-tokens", "40", "--json", prompt)
    answer = json.loads(done.stdout)
    assert answer["pieces"] > 5
    assert "Jack" in answer["text"] or "He" in answer["text"]


def _edit(path: Path) -> None:
    text = path.read_text()
    path.unlink()
    path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda root: _edit(root / "ensemble" / "config.pbtxt"), "ensemble/config.pbtxt has"),
        (lambda root: (root / "preprocessing/1/evil.py").write_text("x"), "evil.py is not listed"),
        (lambda root: (root / "preprocessing/1/model.py").unlink(), "model.py is missing"),
        (lambda root: (root / "artifact.json").unlink(), "has no artifact.json"),
    ],
)
def test_serve_refuses_a_repository_that_was_changed(
    cli: Cli, repository: Path, tmp_path: Path, harm, expected: str
) -> None:
    import shutil

    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    harm(copy)
    refused = cli("serve", str(copy), "--grpc-port", "0", check=False)
    assert refused.returncode == 5
    assert expected in refused.stderr


def test_prune_keeps_what_the_last_run_uses(cli: Cli, demo: dict[str, Any]) -> None:
    cli.run("configs/demo.yaml", "--set", "name=other", "--until", "source")
    prune = ["store", "prune", "--build-dir", str(cli.build), "--json"]
    kept = {stage["path"] for stage in demo["stages"]}
    assert kept.isdisjoint(json.loads(cli(*prune, "--dry-run").stdout)["artifacts"])
    cli(*prune)
    assert all(Path(path).is_dir() for path in kept)
