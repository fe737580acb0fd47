"""The demo recipe through every stage, and what a second run does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.artifact import check_files, read_manifest
from trtllm_client import Client

from ..conftest import PROJECT
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
    conformance = json.loads((Path(demo["outputs"]) / "report.json").read_text())["conformance"]
    skipped = {c["name"]: c["reason"] for c in conformance["checks"] if c["status"] == "skipped"}
    assert skipped.pop("unary_call").startswith("every text model here is decoupled")
    # A machine that is too busy to tell makes a check more skip, which says so; and none fail.
    assert all(reason.startswith("not exercised") for reason in skipped.values()), skipped
    passed = 26 - len(skipped)
    assert told["verify"] == [f"{passed} passed, {1 + len(skipped)} skipped"]
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


def _until(told: list[str], pattern: str, within_s: float = 60) -> str:
    """The first line that matches, of those that a thread collects."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := [line for line in list(told) if re.search(pattern, line)]:
            return found[0]
        time.sleep(0.05)
    pytest.fail(f"nothing like {pattern} in:\n" + "".join(told))


def _active(page: str) -> float:
    """What a server's metrics say of requests that run or wait."""
    text = urllib.request.urlopen(page, timeout=10).read().decode()
    family = r'^nv_trt_llm_request_metrics\{.*request_type="active".*\} (\S+)$'
    return float(re.findall(family, text, re.MULTILINE)[0])


def test_serve_as_a_service(repository: Path, tmp_path: Path) -> None:
    """As docker and systemd start it: by the build's folder, without a terminal, until SIGTERM."""
    command = [sys.executable, "-m", "pipeline", "serve", str(repository.parent)]
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    address = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        contextlib.ExitStack() as ended,
    ):
        manager.bind(address)
        manager.settimeout(60)
        running = subprocess.Popen(
            [*command, *ports, "--report-every", "2", "--drain", "30"],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": str(tmp_path), "NOTIFY_SOCKET": address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ended.callback(running.kill)
        assert running.stdout
        told: list[str] = []
        reader = threading.Thread(target=lambda: told.extend(running.stdout or ()))
        reader.start()
        assert manager.recv(100) == b"READY=1"
        assert f"pid {running.pid};" in _until(told, r"^ready in ")
        # The line as it is, and the tokens that it makes in the report.
        at = told.index("try:\n")
        shown = subprocess.run(
            ["bash", "-c", "".join(told[at + 1 : at + 3])],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(shown.stdout)["text_output"]
        report = r"20\d\d-\d\d-\d\dT[\d:]+Z in ([\d.]+) s: (\d+) requests?, ([\d.]+) tokens/s, "
        _until(told, report + "0 active")
        # Requests are counted by Triton and tokens by the engine, a moment later; then it is quiet.
        time.sleep(3)
        reports = [found for line in list(told) if (found := re.match(report, line))]
        assert sum(int(found[2]) for found in reports) == 1
        tokens = sum(float(found[1]) * float(found[3]) for found in reports)
        assert tokens == pytest.approx(20, rel=0.05)
        time.sleep(3)
        assert len([line for line in told if re.match(report, line)]) == len(reports)
        with Client(_until(told, "^  gRPC  ").split()[1]) as client:
            streams = [
                ended.enter_context(client.stream("Once there was a", max_tokens=480))
                for _ in range(12)
            ]
            begun = [next(iter(stream)).text for stream in streams]
            page = _until(told, "^  metrics ").split()[1]
            # A tenth of a second old at most; on a busy machine some have ended by now.
            give_up_at = time.monotonic() + 30
            while not _active(page):
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
            running.terminate()
            texts = [
                first + "".join(chunk.text for chunk in stream)
                for first, stream in zip(begun, streams, strict=True)
            ]
        _, errors = running.communicate(timeout=60)
        reader.join()
        assert manager.recv(100) == b"STOPPING=1"
    assert running.returncode == 0
    # It was in flight, and has been waited for.
    assert all(len(text) > 400 for text in texts)
    _until(told, r"^stopping; waits up to 30 s for \d+ requests? in flight", 0.1)
    # Lines of the server among ours, each from its beginning to its end; nothing left behind.
    stamp = re.compile(r"20\d\d-\d\d-\d\dT[\d:]+Z ")
    server = [line for line in told if re.match(stamp.pattern + "[IWEF] ", line)]
    assert all(line.endswith("\n") and len(stamp.findall(line)) <= 1 for line in told)
    assert not any(re.search("tokens/s|ready in|stopping;|try:", line) for line in server)
    assert any("successfully unloaded" in line for line in server)
    assert errors == ""
    assert [path.name for path in tmp_path.iterdir()] == ["notify"]


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
