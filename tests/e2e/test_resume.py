"""A run that is killed while it goes layer by layer goes on where it was, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
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


GOING_ON = re.compile(r"^state of (\d) layers$", re.M)


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


def unread(build: Path) -> list[str]:
    """The files of artifacts that the next run reads for their SHA-256."""
    known = json.loads((build / "store" / "digests.json").read_text())
    return [
        str(path)
        for artifact in Store(build / "store").artifacts()
        for path in artifact.iterdir()
        if path.name != "artifact.json" and str(path) not in known
    ]


def left(build: Path) -> list[str]:
    """The stages that left something."""
    return [one.stage for one in Store(build / "store").unfinished.idle()]


@pytest.mark.timeout(300)
def test_killed_twice_and_gone_on_with(tmp_path: Path) -> None:
    build, whole = tmp_path / "killed", tmp_path / "whole"
    with forked() as run:
        for save, words in (
            (1, "layer 1 of 4"),
            (2, "ended after layer 1 of 4; going on with layer 2"),
        ):
            killed = run(build, until="quantize", save=save)
            assert killed["killed"], killed["err"]
            assert words in killed["err"]
            assert left(build) == ["quantize"]
            assert unread(build) == []
            assert "quantize" not in [name.split("/")[0] for name in made(build)]
        last = run(build, until="quantize")
        assert last["code"] == 0, last["err"]
        assert "ended after layer 3 of 4; going on with layer 4" in last["err"]
        at_once = run(whole, until="quantize", settings={"model.at_once": "model"})
        assert at_once["code"] == 0, at_once["err"]
    assert "quantize/rank0.safetensors" in made(build)
    assert made(build) == made(whole)
    assert list((build / "store" / "unfinished").iterdir()) == []
    assert list((build / "store" / "tmp").iterdir()) == []


def found(build: Path) -> Any:
    """What the search of a build has found, with the score of each candidate."""
    (manifest,) = (build / "store" / "quantize").glob("*/artifact.json")
    return json.loads(manifest.read_text())["facts"]["search"]


SEARCH = {
    "quantize.format": "int8_sq",
    "quantize.search": "{candidates: [0.5, 0.8, 1.0], tokens: 300}",
}


@pytest.mark.timeout(300)
def test_a_search_is_killed_while_it_scores_and_while_it_quantizes(tmp_path: Path) -> None:
    build, whole = tmp_path / "killed", tmp_path / "whole"
    written = "search: smoothquant_alpha {} was written by an earlier run"
    with forked() as run:
        # Four layers leave three states, the statistics one, and each model that is scored five.
        for save, states, taken in (
            (3 + 1 + 3, [], []),  # source, behind the second layer
            (2 + 5 + 2, ["2", "4"], ["0.5"]),  # second candidate, behind the second layer
            (1 + 5 + 1, ["4", "2"], []),  # its checkpoint, in front of the first
        ):
            killed = run(build, until="quantize", settings=SEARCH, save=save)
            assert killed["killed"], killed["err"]
            assert GOING_ON.findall(killed["err"]) == states, killed["err"]
            assert [one for one in ("0.5", "0.8", "1") if written.format(one) in killed["err"]] == (
                taken
            )
        last = run(build, until="quantize", settings=SEARCH)
        assert last["code"] == 0, last["err"]
        assert "smoothquant_alpha 0.5 was tried by an earlier run" in last["err"]
        assert written.format("0.8") in last["err"]
        at_once = run(whole, until="quantize", settings=SEARCH | {"model.at_once": "model"})
        assert at_once["code"] == 0, at_once["err"]
    assert made(build) == made(whole)
    assert found(build) == found(whole)
    assert list((build / "store" / "unfinished").iterdir()) == []


def remove(store: Store, *stages: str) -> None:
    """Removes the artifacts of stages."""
    for path in store.artifacts():
        if path.parent.name in stages:
            store.remove(path)


def timed(run: Runs, build: Path, **how: Any) -> tuple[dict[str, Any], float]:
    """A run, and the seconds that it took."""
    begun = time.monotonic()
    return run(build, **how), time.monotonic() - begun


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    rng = random.Random(10)
    build, whole = tmp_path / "killed", tmp_path / "whole"
    store, kills, gone_on = Store(build / "store"), 0, list[str]()
    with forked() as run:
        at_once = run(whole, settings={"model.at_once": "model"})
        assert at_once["code"] == 0, at_once["err"]
        # A layer takes two seconds more, so that most moments are between the first and the last.
        length = timed(run, tmp_path / "timed", pause=2)[1]
        while kills < 10:
            done, took = timed(run, build, after=rng.uniform(0.1, 0.6) * length, pause=2)
            gone_on += GOING_ON.findall(done["err"])
            if done["killed"]:
                kills += 1
                print(f"killed after {took:.0f} s, left: {left(build)}")
                assert store.verify() == []
                if kills % 2:
                    # Most of the time goes into the evaluation; quantizing is to be hit as well.
                    remove(store, "quantize")
                continue
            assert done["code"] == 0, done["err"]
            assert made(build) == made(whole)
            # All is done: once more, from the model on, or from the checkpoint.
            remove(store, *rng.choice([("quantize", "evaluate"), ("evaluate",)]))
        last = run(build)
        assert last["code"] == 0, last["err"]
    print(f"{kills} kills in runs of {length:.0f} s; gone on behind layers: {Counter(gone_on)}")
    assert len([layers for layers in gone_on if layers != "0"]) >= 3
    assert made(build) == made(whole)
