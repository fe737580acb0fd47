"""Lines of the table of sizes: one stage on one model, run in each way."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .measured import GB, Ran
from .model import Shape
from .stages import Job, Setting, available_memory
from .turns import run_in_turns

STAGES = ("quantize", "evaluate", "compile")
WAYS = ("layer", "model")
HEAD = (
    "| parameters | layers | format | stage | peak GB by layer | whole | seconds by layer | whole |"
    " processor seconds by layer | whole | time by layer / whole | same bytes |\n"
    "|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---|"
)
# Bytes of memory for each parameter that whole runs were measured to take.
QUANTIZE_FLOAT32, QUANTIZE_16_BIT, EVALUATE = 11.0, 5.5, 8.8
FLOAT32_PARAMETERS = (2 << 30) // 4
IMPORTS = 0.42 * GB
# More than a run by layer takes beside a whole one that fits 24 GB.
BY_LAYER = 2.0 * GB


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        setting: What all runs have in common.
        formats: What to quantize to.
        stages: Which stages are measured.
        ways: Of :data:`WAYS`.
        rounds: How often, in turns.
        paired: Whether both ways of a round run at the same time, in turns of a second.
        against: A checkout that makes what is whole; None is this one.
        folder: Where models and stores go; None is where temporary files do.
    """

    setting: Setting
    formats: Sequence[str]
    stages: Sequence[str] = STAGES
    ways: Sequence[str] = WAYS
    rounds: int = 1
    paired: bool = False
    against: Path | None = None
    folder: Path | None = None


@dataclass
class Row:
    """All runs of one stage on one model.

    Attributes:
        shape: The model's sizes.
        format: What it is quantized to.
        stage: Which stage.
        runs: By way.
        digests: What each run wrote.
        skipped: Why there are no whole runs.
    """

    shape: Shape
    format: str
    stage: str
    runs: dict[str, list[Ran]] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def same(self) -> bool | None:
        """Whether all runs wrote the same bytes; None where there was only one."""
        return len(set(self.digests)) == 1 if len(self.digests) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "parameters": self.shape.parameters,
            "layers": self.shape.layers,
            "format": self.format,
            "stage": self.stage,
            "same": self.same,
            "skipped": self.skipped,
            "runs": {way: [ran.as_dict() for ran in runs] for way, runs in self.runs.items()},
        }

    def line(self) -> str:
        """The row as Markdown."""
        cells = [f"{self.shape.parameters / 1e6:,.0f} M", str(self.shape.layers)]
        cells += [self.format, self.stage]
        for tell in (
            lambda runs: f"{max(ran.peak for ran in runs) / GB:.2f}",
            lambda runs: _spread([ran.seconds for ran in runs]),
            lambda runs: _spread([ran.processor_seconds for ran in runs]),
        ):
            for way in WAYS:
                runs = self.runs.get(way)
                cells.append(tell(runs) if runs else self._absent(way))
        cells.append(self._ratio())
        cells.append({None: "one run", True: "yes", False: "NO"}[self.same])
        return f"| {' | '.join(cells)} |"

    def _ratio(self) -> str:
        """Of the wall times of each round."""
        layer, whole = (self.runs.get(way, []) for way in WAYS)
        ratios = [one.seconds / other.seconds for one, other in zip(layer, whole, strict=False)]
        return _spread(ratios, 2) if ratios else "-"

    def _absent(self, way: str) -> str:
        return self.skipped if way == "model" and self.skipped else "-"


def _spread(values: Sequence[float], digits: int = 0) -> str:
    """A median, with its range where there are several."""
    told = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return told
    return f"{told} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def rows_of(shape: Shape, plan: Plan) -> Iterator[Row]:
    """Makes a model, takes it through the stages in every format, and removes it."""
    with tempfile.TemporaryDirectory(dir=plan.folder) as place:
        # Two commands at a time need a store each, since one of them would wait for the other.
        folders = [Path(place) / way for way in (plan.ways if plan.paired else WAYS[:1])]
        for folder in folders:
            folder.mkdir()
        for form in plan.formats:
            jobs = [Job(folder, shape, form, plan.setting) for folder in folders]
            before = "source"
            for stage in STAGES:
                if stage in plan.stages:
                    yield _measure(Row(shape, form, stage), jobs, plan, before)
                before = stage
            for job in jobs:
                job.clear()


def _measure(row: Row, jobs: Sequence[Job], plan: Plan, before: str) -> Row:
    """Runs a stage in every way, in turns where there are rounds, behind the stage before it."""
    ways = [way for way in WAYS if way in plan.ways]
    if "model" in ways and (why := not_whole(row, plan)):
        row.skipped = why
        ways.remove("model")
    used = jobs if plan.paired and len(ways) == len(jobs) else jobs[:1]
    for job in used:
        job.prepare(before)
    for number in range(plan.rounds):
        order = ways[:: -1 if number % 2 else 1]
        if len(used) > 1:
            _run_in_turns(row, used, order, plan.against)
            continue
        for way in order:
            _add(row, way, used[0], used[0].run(row.stage, way, _code(way, plan.against)))
    return row


def _run_in_turns(
    row: Row, jobs: Sequence[Job], order: Sequence[str], against: Path | None
) -> None:
    commands = [
        job.again(row.stage, way, _code(way, against)) for job, way in zip(jobs, order, strict=True)
    ]
    found = run_in_turns(commands)
    for job, command, ran in zip(jobs, commands, found, strict=True):
        job.check(ran, command)
    for job, way, ran in zip(jobs, order, found, strict=True):
        _add(row, way, job, ran)


def _code(way: str, against: Path | None) -> Path | None:
    """The checkout that makes something in a way; None is this one."""
    return against if way == "model" else None


def _add(row: Row, way: str, job: Job, ran: Ran) -> None:
    row.runs.setdefault(way, []).append(ran)
    row.digests.append(job.digest(row.stage))


def not_whole(row: Row, plan: Plan) -> str | None:
    """Says why a stage is not run with the whole model in memory; None if it is."""
    if row.stage == "compile":
        return None if plan.against else "has one way"
    parameters = row.shape.parameters
    loads = QUANTIZE_FLOAT32 if parameters <= FLOAT32_PARAMETERS else QUANTIZE_16_BIT
    needs = IMPORTS + (loads if row.stage == "quantize" else EVALUATE) * parameters
    if plan.paired:
        needs += BY_LAYER
    free = available_memory()
    return None if needs <= free else f"needs {needs / GB:.0f} GB of {free / GB:.0f}"
