"""Commands that are killed at random moments, and go on where they had come to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.source.safetensors_header import BrokenHeaderError, read_header

from .stages import PROJECT, Job

FINISHED = "finished"
"""The tensor of a state's file that counts the layers that are done."""
POLL_S = 0.02
# The command line, but for how often it saves what it has.
OFTEN = """\
import sys
from pipeline.layers import state
state.INTERVAL_S = float(sys.argv.pop(1))
from pipeline.cli.main import main
main()
"""


@dataclass(frozen=True)
class Kill:
    """One end that nobody asked for.

    Attributes:
        seconds: After the start of the command.
        layer: Where it had gone on, from 0.
        saved: Layers that it left for the next one.
    """

    seconds: float
    layer: int
    saved: int


@dataclass
class Killed:
    """What became of a stage that was killed over and over.

    Attributes:
        stage: The stage.
        undisturbed: Seconds that it takes if nobody kills it.
        kills: In order.
        ends: How often it came to its end between them, and began anew.
        same: Whether all that came to an end wrote the bytes of the one that was not disturbed.
    """

    stage: str
    undisturbed: float
    kills: list[Kill] = field(default_factory=list)
    ends: int = 0
    same: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def kill_often(
    job: Job,
    stage: str,
    kills: int,
    *,
    seed: int = 0,
    save_every: float | None = None,
    on_kill: Callable[[Kill], None] = lambda _kill: None,
) -> Killed:
    """Kills a stage's command that many times and lets it go on each time, to its end at last.

    The moments are random and spread over the work that is left, judged by a run that nobody
    disturbs: of k kills that are to come, the next is equally likely anywhere in the first 2 in
    k + 1 of it. A run that comes to its end first is compared, and what it made is removed, so that
    the next one begins anew.

    Args:
        job: Whatever is before the stage is cached.
        stage: Which.
        kills: How many.
        seed: Of the moments.
        save_every: Seconds between two saves; None is as in any run.
        on_kill: Called after each kill.
    """
    command = job.command(stage)
    if save_every is not None:
        command = [sys.executable, "-c", OFTEN, str(save_every), *command[3:]]
    began = time.monotonic()
    started_s = _run(job, command, stage, None) - began
    whole_s = time.monotonic() - began
    expected, found = job.digest(stage), Killed(stage, whole_s)
    shutil.rmtree(job.artifact(stage))
    moments = random.Random(f"{seed} {stage}")
    layer = 0
    while True:
        left_s = (whole_s - started_s) * (1 - layer / job.layers)
        wanted = kills - len(found.kills)
        moment = moments.uniform(0, 2 * left_s / (wanted + 1)) if wanted else None
        began = time.monotonic()
        _run(job, command, stage, moment)
        if job.is_there(stage):
            found.ends += 1
            found.same &= job.digest(stage) == expected
            if not wanted:
                return found
            shutil.rmtree(job.artifact(stage))
            layer = 0
            continue
        saved = saved_layers(job, stage)
        kill = Kill(time.monotonic() - began, layer, saved)
        found.kills.append(kill)
        on_kill(kill)
        layer = saved


def _run(job: Job, command: list[str], stage: str, kill_after: float | None) -> float:
    """Runs a command to its end, or for so many seconds of the stage's work.

    Returns:
        When its work began, by the monotonic clock.
    """
    output, errors = job.outputs(stage)
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=out, stderr=err, start_new_session=True
        )
        worked, killed = None, False
        try:
            while process.poll() is None and not killed:
                if worked is None and _works(errors, stage):
                    worked = time.monotonic()
                if worked and kill_after is not None:
                    killed = time.monotonic() - worked >= kill_after
                time.sleep(0 if killed else POLL_S)
        finally:
            if process.poll() is None:  # killed, or this process is interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode and not killed:
        said = output.read_text(encoding="utf-8") + errors.read_text(encoding="utf-8")
        raise SystemExit(f"{stage} ended with {process.returncode}: {said[-3000:]}")
    if worked is None:
        raise SystemExit(f"{stage} never said that it had begun to work")
    return worked


def _works(errors: Path, stage: str) -> bool:
    """Whether a command has said more of a stage than that it begins."""
    _, _, said = errors.read_text(encoding="utf-8").partition(f"{stage}: ")
    return len(said.splitlines()) > 1


def saved_layers(job: Job, stage: str) -> int:
    """Layers that a killed run left for the next one, by the file it keeps them in."""
    for path in (job.build / "store" / "unfinished").glob(f"{stage}-*/*"):
        try:
            place = read_header(path).get(FINISHED)
        except (OSError, BrokenHeaderError):
            continue
        if place is not None:
            with path.open("rb") as file:
                file.seek(place.start)
                return int.from_bytes(file.read(place.size), "little")
    return 0
