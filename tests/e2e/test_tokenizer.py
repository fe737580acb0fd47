"""``verify`` sees on a real server whether the tokenizer that is served is the model's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.triton.parameters import TOKENIZER_DIR
from pipeline.triton.server import TritonServer

from .conftest import Cli


def result(document: dict[str, Any]) -> dict[str, Any]:
    """What the check of the tokenizer says."""
    return next(check for check in document["checks"] if check["name"] == "own_tokenizer")


def test_the_probes_travel_with_the_demos_repository(repository: Path) -> None:
    manifest = json.loads((repository / "artifact.json").read_text())
    probes = json.loads((repository / TOKENIZER_DIR / "probes.json").read_text())
    assert manifest["facts"]["tokenizer"]["probes"] == len(probes["items"]) > 50


def test_another_tokenizer_is_noticed(cli: Cli, repository: Path, tmp_path: Path) -> None:
    """A file as it may lie beside a model, which puts nothing in front of a prompt."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    path = copy / TOKENIZER_DIR / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["post_processor"] is not None
    content["post_processor"] = None
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")
    with TritonServer(copy, log_file=tmp_path / "triton.log") as server:
        options = ("--url", server.grpc_url, "--tokenizer", str(repository), "--json")
        done = cli("verify", *options, check=False)
    assert done.returncode == 6
    found = result(json.loads(done.stdout))
    assert found["status"] == "failed"
    assert "gives other tokens" in found["reason"]
