"""Other builds of the model: which count, what of them can be compared, and that keys stay."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats import FORMATS
from pipeline.report import render_html
from pipeline.report.siblings import siblings_of
from pipeline.stages.report import STAGE

from .report_sample import load, quality, report, sibling


def _put(build: Path, name: str, made: Any) -> Path:
    folder = build / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(made if isinstance(made, str) else json.dumps(made))
    return folder


def _plain(**changes: Any) -> dict[str, Any]:
    made = report(name="plain", **changes)
    made["checkpoint"] |= {
        "quant_algo": FORMATS["float16"].quant_algo,
        "format": "float16",
        "share": 1.0,
    }
    return made


def test_a_build_of_the_same_model_is_a_sibling(tmp_path: Path) -> None:
    own = _put(tmp_path, "demo", report())
    _put(tmp_path, "plain", _plain())
    (found,) = siblings_of(report(), own)
    assert found["name"] == "plain"
    assert found["sixteen_bit"] is True
    assert found["increase"] == quality()["perplexity_increase"]
    assert [row["concurrency"] for row in found["speed"]] == [1, 8]
    assert found["memory_bytes"] == load()["memory_bytes"]


def test_each_sibling_has_the_colour_of_its_verdict(tmp_path: Path) -> None:
    verdicts = {"ACCEPT": "good", "REGRESSION": "bad", "FAILED": "bad", "INCONCLUSIVE": "open"}
    rows = [sibling(verdict.lower(), verdict=verdict) for verdict in verdicts]
    html = render_html(report(siblings=rows))
    found = re.findall(r'class="(\w+)" data-label="verdict"><span>(\w+)</span>', html)
    # Those of the gates come first, that of the page itself behind them.
    assert found[4:] == [(kind, verdict) for verdict, kind in verdicts.items()]


def test_an_eight_bit_kv_cache_is_not_16_bit(tmp_path: Path) -> None:
    own = _put(tmp_path, "demo", report())
    made = _plain()
    made["checkpoint"]["kv_cache_quant_algo"] = "INT8"
    _put(tmp_path, "plain", made)
    assert siblings_of(report(), own)[0]["sixteen_bit"] is False


@pytest.mark.parametrize(
    "other",
    [
        "no JSON",
        "[]",
        "{}",
        {"schema": 2, "name": "old"},
        _plain(model=None),
        _plain(model=report()["model"] | {"digest": "another"}),
        report(checkpoint=None),
        report(verdict=report()["verdict"] | {"status": "unfinished"}),
        _plain(quality={"perplexity_increase": "much"}),
        _plain() | {"checkpoint": _plain()["checkpoint"] | {"share": float("inf")}},
        _plain() | {"name": "<script>alert(1)</script>"},
        _plain() | {"checkpoint": _plain()["checkpoint"] | {"format": "a|b"}},
        _plain(verdict=report()["verdict"] | {"verdict": "[fine](http://x)"}),
        "[" * 100_000,
    ],
    ids=[
        *("text", "list", "empty", "old", "no-model", "model", "no-checkpoint", "unfinished"),
        *("odd", "infinite", "name", "format", "verdict", "deep"),
    ],
)
def test_what_is_no_sibling_is_left_out(other: Any, tmp_path: Path) -> None:
    own = _put(tmp_path, "demo", report())
    _put(tmp_path, "other", other)
    assert siblings_of(report(), own) == []


def test_only_what_was_measured_alike_is_compared(tmp_path: Path) -> None:
    own = _put(tmp_path, "demo", report())
    text = quality() | {"source_perplexity": 3.0}
    _put(tmp_path, "another-text", _plain(quality=text))
    _put(tmp_path, "another-machine", _plain(machine={"processor": "other"}))
    shorter = report()["recipe"] | {"bench": {"concurrency": [1]}}
    _put(tmp_path, "another-load", _plain(recipe=shorter))
    elsewhere = report()["engine"] | {"target": "tensorrt"}
    _put(tmp_path, "another-target", _plain(engine=elsewhere))
    _put(tmp_path, "not-served", _plain(load=None, machine=None))
    folders = sorted(path.name for path in tmp_path.iterdir() if path != own)
    found = dict(zip(folders, siblings_of(report(), own), strict=True))
    assert {name for name, row in found.items() if row["increase"] is None} == {"another-text"}
    assert {name for name, row in found.items() if row["speed"]} == {"another-text"}
    assert found["another-machine"]["memory_bytes"] is None


def test_the_deployed_pages_name_siblings_and_the_artifact_does_not(tmp_path: Path) -> None:
    artifact = tmp_path / "store"
    _put(artifact.parent, "store", report())
    build = tmp_path / "build"
    outputs = build / "demo"
    outputs.mkdir(parents=True)
    assert STAGE.deployment
    assert STAGE.deployment.finish
    # Alone, the files are those of the artifact.
    assert STAGE.deployment.finish(artifact, outputs) == {}
    _put(build, "plain", _plain())
    files = STAGE.deployment.finish(artifact, outputs)
    assert sorted(files) == sorted(STAGE.deployment.files)
    deployed = json.loads(files["report.json"])
    assert [row["name"] for row in deployed.pop("siblings")] == ["plain"]
    assert deployed | {"siblings": []} == json.loads((artifact / "report.json").read_text())
    for page in ("report.html", "report.md"):
        assert b"Beside its siblings" in files[page]
    assert b'class="plot"' in files["report.html"]
    # Written again, nothing changes: a sibling's own siblings are not looked at.
    (outputs / "report.json").write_bytes(files["report.json"])
    _put(build, "plain", _plain(siblings=deployed["quality"]["completions"]))
    assert STAGE.deployment.finish(artifact, outputs) == files


def test_a_pipe_and_a_folder_are_no_reports(tmp_path: Path) -> None:
    """Nobody writes into the pipe: to open it for reading would wait for ever."""
    own = _put(tmp_path, "demo", report())
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "report.json")
    (tmp_path / "folder" / "report.json").mkdir(parents=True)
    assert siblings_of(report(), own) == []
