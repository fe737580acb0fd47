"""What pip makes of the client, by the package index; skipped where none answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import PROJECT

CLIENT = PROJECT / "client"
# What a user of the newest libraries has already.
BESIDE = ("transformers>=5", "numpy>=2", "openai")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
PATIENCE = ["--retries", "0", "--timeout", "15"]


def resolved(tmp_path: Path, *requirements: str) -> dict[str, str]:
    """What pip would install into an empty environment: versions by name."""
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--report", str(report), *PATIENCE]
    done = subprocess.run(
        [*PIP, "install", *options, str(CLIENT), *requirements],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode and not index_answers(tmp_path):
        pytest.skip("no package index answers here")
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in found}


def index_answers(tmp_path: Path) -> bool:
    """Whether pip finds a package that everybody has and this test is not about."""
    done = subprocess.run(
        [*PIP, "download", "--no-deps", *PATIENCE, "--dest", str(tmp_path), "hatchling"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done.returncode == 0


def test_it_brings_few_distributions(tmp_path: Path) -> None:
    brought = resolved(tmp_path)
    assert {"trtllm-client", "tritonclient", "grpcio"} <= brought.keys()
    assert len(brought) <= 12, sorted(brought)


def test_it_installs_beside_what_its_users_have(tmp_path: Path) -> None:
    """With the commands, and so with the whole base."""
    brought = resolved(tmp_path, f"{PROJECT}[client]", *BESIDE)
    assert {"trtllm-client", "trtllm-pipeline"} <= brought.keys()
    assert int(brought["huggingface_hub"].partition(".")[0]) >= 1
    assert int(brought["transformers"].partition(".")[0]) >= 5
    assert int(brought["numpy"].partition(".")[0]) >= 2
    assert "openai" in brought
