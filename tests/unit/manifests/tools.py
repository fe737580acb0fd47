"""Programs that are not Python's: where ``make kube-proof`` puts them, or on the PATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

FETCHED = PROJECT / "build" / "operate" / "helm"
FETCH = "make kube-proof fetches it"


def program(name: str) -> str:
    """Finds a program, or skips the test."""
    places = (None, str(FETCHED / "bin"), str(Path(sys.executable).parent))
    found = next(filter(None, (shutil.which(name, path=place) for place in places)), None)
    if found is None:
        pytest.skip(f"{name} is not installed; {FETCH}")
    return found


def said(*command: str) -> tuple[int, str]:
    """Runs a program; returns its exit code, and what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr
