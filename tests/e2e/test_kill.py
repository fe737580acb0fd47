"""A run that is killed at any moment loses nothing and breaks nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.store.store import Store

from ..conftest import PROJECT
from .conftest import Cli

LONGEST_S = 9.0


def _start(cli: Cli, recipe: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", recipe, "--build-dir", str(cli.build)],
        cwd=PROJECT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _session_survivors(leader: int, descendants: list[psutil.Process]) -> list[str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = [p for p in descendants if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return []
        time.sleep(0.1)
    return [" ".join(p.cmdline()) for p in alive if p.pid != leader]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.faults)])
def test_kill_9_at_random_moments(tmp_path: Path, kills: int) -> None:
    cli = Cli(tmp_path)
    rng = random.Random(kills)
    store = Store(tmp_path / "store")
    killed = 0
    for _ in range(kills):
        process = _start(cli, "configs/demo-float16.yaml")
        time.sleep(rng.uniform(0.2, LONGEST_S))
        descendants = psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None:
            killed += 1
            process.send_signal(signal.SIGKILL)
        process.wait()
        assert _session_survivors(process.pid, descendants) == []
        assert store.verify() == []
    # Once every stage is published there is nothing left to interrupt.
    assert killed >= kills // 2
    result = json.loads(cli.run("configs/demo-float16.yaml", "--json").stdout)
    assert [stage["stage"] for stage in result["stages"]][-1] == "report"
    verified = json.loads(cli("store", "verify", "--build-dir", str(tmp_path), "--json").stdout)
    assert verified["damaged"] == []
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
