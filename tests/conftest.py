"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Read when PyTorch is loaded, here and in every process that a test starts. Threads with nothing to
# do would spin for a while before they sleep: where several parts of the tests share two cores,
# small models took several times the processor's time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

PROJECT = Path(__file__).parents[1]
SHARED_MODELS = PROJECT.parent / "shared" / "models"
DEMO_MODEL = PROJECT / "examples" / "tiny_llama" / "model"
# For --set: numbers that nobody judges.
NO_GATES = (
    "evaluate.gates={perplexity_increase: null, top1_agreement: null, kl_divergence: null, "
    "accuracy_loss: null, engine_perplexity_increase: null, engine_top1_agreement: null, "
    "engine_kl_divergence: null, completions: false}"
)


@dataclass(frozen=True)
class Cli:
    """The command line in a process of its own, in the project's root."""

    build: Path

    def __call__(
        self, *arguments: str, check: bool = True, timeout: float = 280
    ) -> subprocess.CompletedProcess[str]:
        """Runs one command; ``check`` shows its error output when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=PROJECT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def run(self, recipe: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """``run`` with the test's build directory."""
        return self("run", recipe, "--build-dir", str(self.build), *arguments, **options)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that is called in this process sets the level of the log, and may take it away."""
    logger = logging.getLogger("pipeline")
    level, handlers, propagates = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logger.propagate = propagates


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The committed demo model."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def stories_model() -> Path:
    """A real pretrained tiny model that is not part of the project."""
    path = SHARED_MODELS / "stories260K-h128"
    if not path.is_dir():
        pytest.skip("../shared/models/stories260K-h128 is not here")
    return path


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def demo(cli: Cli) -> dict[str, Any]:
    """The demo recipe through every stage; the JSON that ``run`` printed."""
    return dict(json.loads(cli.run("configs/demo.yaml", "--json").stdout))


@pytest.fixture(scope="session")
def repository(demo: dict[str, Any]) -> Path:
    return Path(demo["outputs"]) / "repository"
