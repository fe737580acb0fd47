"""A run that is killed while it goes layer by layer goes on where it was, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.store import Store

from ..processes import started

SETTINGS = {
    "quantize.calibration.samples": 4,
    "quantize.calibration.sequence_length": 32,
    "quantize.calibration.batch_size": 2,
    "evaluate.tokens": 1500,
    "evaluate.sequence_length": 128,
    "evaluate.gates": "{perplexity_increase: null, top1_agreement: null}",
}


class Runs:
    """Runs of the demo in forks of a process that has everything imported."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, build: Path, **how: Any) -> dict[str, Any]:
        """Runs the demo until a stage; ``how`` is that of a job, ``until``, and ``settings``."""
        until = how.pop("until", "evaluate")
        settings = SETTINGS | how.pop("settings", {})
        options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        arguments = ["run", "configs/demo.yaml", "--until", until, "--build-dir", str(build)]
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"arguments": [*arguments, *options], **how}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def forked() -> Iterator[Runs]:
    command = [sys.executable, "-m", "tests.e2e.forked_runs"]
    with started(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield Runs(process)


def made(build: Path) -> dict[str, str]:
    """The SHA-256 of every file that the stages of a build have made."""
    found = {}
    for artifact in Store(build / "store").artifacts():
        for path in artifact.rglob("*"):
            if path.is_file() and path.name != "artifact.json":
                name = f"{artifact.parent.name}/{path.relative_to(artifact)}"
                assert name not in found  # one artifact of each stage
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def left(build: Path) -> list[str]:
    """The stages that left something."""
    return [one.stage for one in Store(build / "store").unfinished.idle()]


@pytest.mark.timeout(300)
def test_killed_twice_and_gone_on_with(tmp_path: Path) -> None:
    build, whole = tmp_path / "killed", tmp_path / "whole"
    with forked() as run:
        for save, words in ((1, "layer 1 of 4"), (2, "going on behind layer 1 of 4")):
            killed = run(build, until="quantize", save=save)
            assert killed["killed"], killed["err"]
            assert words in killed["err"]
            assert left(build) == ["quantize"]
            assert "quantize" not in [name.split("/")[0] for name in made(build)]
        last = run(build, until="quantize")
        assert last["code"] == 0, last["err"]
        assert "going on behind layer 3 of 4" in last["err"]
        at_once = run(whole, until="quantize", settings={"model.at_once": "model"})
        assert at_once["code"] == 0, at_once["err"]
    assert "quantize/rank0.safetensors" in made(build)
    assert made(build) == made(whole)
    assert list((build / "store" / "unfinished").iterdir()) == []
    assert list((build / "store" / "tmp").iterdir()) == []


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    rng = random.Random(10)
    build, kills, gone_on = tmp_path / "killed", 0, 0
    with forked() as run:
        whole = run(tmp_path / "whole", settings={"model.at_once": "model"})
        assert whole["code"] == 0, whole["err"]
        while kills < 10:
            # A layer takes about a second, so that most moments are within the layers.
            done = run(build, after=rng.uniform(3.0, 8.0), pause=1.0)
            gone_on += "going on" in done["err"]
            if done["killed"]:
                kills += 1
                assert Store(build / "store").verify() == []
                continue
            assert done["code"] == 0, done["err"]
            assert made(build) == made(tmp_path / "whole")
            # All is done: from the quantized checkpoint or from the model on once more.
            for stage in ("evaluate", rng.choice(["quantize", "evaluate"])):
                for path in (build / "store" / stage).glob("*"):
                    Store(build / "store").remove(path)
        last = run(build)
        assert last["code"] == 0, last["err"]
    assert gone_on >= 3
    assert made(build) == made(tmp_path / "whole")
