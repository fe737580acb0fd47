"""The demo recipe, run once for real, and its repository on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..conftest import PROJECT


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


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real tritonserver on the demo repository."""
    from pipeline.serving import serving

    log = tmp_path_factory.mktemp("log") / "triton.log"
    with serving(repository, log) as server:
        yield server
