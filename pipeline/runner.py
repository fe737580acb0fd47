"""Runs a recipe: the only place that knows about caching, locking and publishing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.dependencies import check_installed
from pipeline.deploy import deploy
from pipeline.errors import PipelineError, StageError
from pipeline.files import write_atomically
from pipeline.planner import PlannedStage, plan_stage, read_lock, stages_for, write_lock
from pipeline.preflight import check_hub_model, check_local_model, check_model
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.stages.base import Artifact, Stage, StageContext
from pipeline.text import check_texts

Listener = Callable[[PlannedStage, float], None]


@dataclass(frozen=True)
class BuildDir:
    """Where outputs go: ``<root>/store`` for artifacts, ``<root>/<recipe name>`` for results."""

    root: Path

    @property
    def store(self) -> Store:
        """The artifact store shared by all recipes."""
        return Store(self.root / "store")

    def outputs(self, recipe: Recipe) -> Path:
        """The recipe's own folder."""
        return self.root / recipe.name


@dataclass(frozen=True)
class RunResult:
    """What a run produced.

    Attributes:
        stages: Every stage with its artifact, in order.
        outputs: The recipe's output folder.
    """

    stages: Mapping[str, PlannedStage]
    outputs: Path


def run_recipe(
    recipe: Recipe,
    build: BuildDir,
    progress: Progress,
    *,
    force: frozenset[str] = frozenset(),
    until: str | None = None,
    on_stage: Listener = lambda _line, _seconds: None,
) -> RunResult:
    """Brings every artifact of a recipe up to date and deploys repository and report.

    Args:
        recipe: The recipe.
        build: Where artifacts and outputs go.
        progress: Where stages report.
        force: Names of stages to run even if cached.
        until: The last stage to run; None runs all.
        on_stage: Called after each stage with its line and the seconds it took.

    Raises:
        RecipeError: A text cannot be read; nothing was done yet.
        MissingDependencyError: A package that a stage needs is not installed; likewise.
        PipelineError: The first failure; artifacts published before it stay.
    """
    check_texts(recipe)
    known = check_local_model(recipe)
    store, outputs = build.store, build.outputs(recipe)
    store.sweep()
    lock_path = outputs / "lock.json"
    lock = read_lock(lock_path)
    done: dict[str, PlannedStage] = {}
    stages = _until(stages_for(recipe), until)
    try:
        for index, stage in enumerate(stages):
            inputs = {name: _artifact(done[name]) for name in stage.inputs if name in done}
            started = time.monotonic()
            line = plan_stage(stage, recipe, inputs, store, lock)
            if line.artifact is None or stage.name in force:
                if all(earlier.status == "cached" for earlier in done.values()):
                    # This is the first work, and none should be done in vain.
                    _check_packages(stages[index:], recipe)
                if stage.name == "source" and known is None:
                    known = check_hub_model(recipe)
                context = StageContext(recipe, inputs, outputs, progress)
                line = _build(line, context, store, forced=stage.name in force)
            done[stage.name] = line
            # At once: what is not in the lock may be pruned while the next stage reads it.
            with store.writing():
                write_lock(lock_path, done)
            on_stage(line, time.monotonic() - started)
            artifact = _artifact(line)
            if stage.name == "source" and known is None:
                check_model(recipe, artifact.path)
            stage.check(recipe, artifact)
            _deploy(artifact, outputs, store)
    finally:
        store.memo.save()
    return RunResult(done, outputs)


def _until(stages: Sequence[Stage], last: str | None) -> Sequence[Stage]:
    names = [stage.name for stage in stages]
    return stages if last is None else stages[: names.index(last) + 1]


def _check_packages(stages: Sequence[Stage], recipe: Recipe) -> None:
    check_installed(need for stage in stages for need in stage.needs(recipe))


def _build(
    line: PlannedStage, context: StageContext, store: Store, *, forced: bool
) -> PlannedStage:
    stage, key, material = line.stage, line.key, line.material
    assert key is not None
    assert material is not None
    with store.lock(stage.name, key):
        artifact, _ = store.get(stage.name, key)
        if artifact and not forced:
            # Another process built it while this one waited for the lock.
            return replace(line, status="cached", artifact=artifact)
        context.progress.note(f"{stage.name}: {stage.title} ({line.reason or 'forced'})")
        with store.workspace(stage.name, key) as directory:
            started = time.monotonic()
            try:
                facts = stage.run(replace(context, output=directory))
            except MemoryError as error:
                raise StageError(
                    f"{stage.name} ran out of memory",
                    where=context.recipe.name,
                    fix="Use a machine with more memory or a smaller model",
                ) from error
            artifact = store.publish(
                directory,
                stage=stage.name,
                key=key,
                material=material,
                inputs=context.inputs,
                facts=facts,
                seconds=time.monotonic() - started,
            )
    return replace(line, artifact=artifact)


def _deploy(artifact: Artifact, outputs: Path, store: Store) -> None:
    if artifact.stage == "repository":
        deploy(artifact, outputs / "repository", store)
    elif artifact.stage == "report":
        for name in ("report.json", "report.md", "report.html"):
            content = (artifact.path / name).read_bytes()
            if not _holds(outputs / name, content):
                with store.writing():
                    write_atomically(outputs / name, content)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _artifact(line: PlannedStage) -> Artifact:
    if line.artifact is None:
        raise PipelineError(f"{line.stage.name} has no artifact")
    return line.artifact
