"""Runs a recipe: the only place that knows about caching, locking and publishing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.dependencies import check_installed
from pipeline.errors import (
    PipelineError,
    QualityGateError,
    ServerError,
    StoreError,
    UsageError,
    check_all,
)
from pipeline.evaluation.tasks.reading import check_tasks
from pipeline.preflight.model_checks import check_local_model
from pipeline.preflight.remarks import engine_not_measured
from pipeline.preflight.streams import check_bench
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import PlannedStage, key_material, plan_stage, stages_for
from pipeline.running.room import refuse_too_large
from pipeline.source.exhausted import explained_memory
from pipeline.source.texts import check_texts
from pipeline.stages import bench
from pipeline.stages.base import Deployment, Stage, StageContext
from pipeline.store.artifact import Artifact
from pipeline.store.build_dir import BuildDir
from pipeline.store.deploy import release, set_aside
from pipeline.store.digests import digest_of
from pipeline.store.files import write_atomically
from pipeline.store.journal import append
from pipeline.store.lock import read_lock, write_lock
from pipeline.targets.base import GivenEngine
from pipeline.verdict.failure import Failure

FORCED = "forced"
"""The reason of a stage that runs although it is cached."""

logger = logging.getLogger(__name__)
Listener = Callable[[PlannedStage, float], None]


@dataclass(frozen=True)
class RunResult:
    """What a run produced.

    Attributes:
        stages: Every stage with its artifact, in order.
        outputs: The recipe's output folder.
        deployed: Where to find the results of the stages that have a place for them, by stage.
        failure: What a check refused, in a run that went on behind it.
    """

    stages: Mapping[str, PlannedStage]
    outputs: Path
    deployed: Mapping[str, Path]
    failure: Failure | None = None


def run_recipe(
    recipe: Recipe,
    build: BuildDir,
    progress: Progress,
    *,
    force: frozenset[str] = frozenset(),
    until: str | None = None,
    engine: GivenEngine | None = None,
    on_stage: Listener = lambda _line, _seconds: None,
    past_checks: bool = False,
    without: Collection[str] = (),
) -> RunResult:
    """Brings every artifact of a recipe up to date and deploys what has a place for people.

    When a stage fails, those that run nevertheless still do, so that no result of an earlier run
    is taken for one of this run.

    Args:
        recipe: The recipe.
        build: Where artifacts and outputs go.
        progress: Where stages report.
        force: Names of stages to run even if cached.
        until: The last stage to run; None runs all.
        engine: One that was built elsewhere, to go on with; None compiles one.
        on_stage: Called after each stage with its planned stage and the seconds it took.
        past_checks: Goes on where a check refuses an artifact, so that what is not good enough is
            measured all the same. From there on no folder is deployed.
        without: Names of stages to leave out, such as all that serve the engine.

    Raises:
        RecipeError: A text cannot be read, or the load test is more than the server takes; nothing
            was done yet.
        UnsupportedError: The machine has not the memory or the disk that it takes; likewise.
        MissingDependencyError: A package that a stage needs is not installed; likewise.
        PipelineError: The first failure; artifacts published before it stay.
    """
    check_all(partial(check, recipe) for check in (check_texts, check_tasks, check_local_model))
    known = [one for one in stages_for(recipe, engine) if one.name not in without]
    stages = _until(known, until)
    refuse_too_large(recipe, build, [stage.name for stage in stages], force)
    build.store.sweep()
    if finding := engine_not_measured(recipe):
        progress.note(f"{finding.what}. {finding.why}. {finding.remedy}.")
    run = _Run(
        recipe,
        build,
        progress,
        force,
        on_stage,
        stages=known,
        past_checks=past_checks,
    )
    if any(stage.name == bench.STAGE.name for stage in stages):
        check_bench(recipe)
    try:
        for index, stage in enumerate(stages):
            run.bring_up_to_date(stage, stages[index:])
        run.keep_undeployed()
    except PipelineError:
        run.sum_up()
        raise
    finally:
        run.store.memo.save()
    return RunResult(run.done, run.outputs, run.deployed, run.failure)


def _until(stages: Sequence[Stage], last: str | None) -> Sequence[Stage]:
    names = [stage.name for stage in stages]
    return stages if last is None else stages[: names.index(last) + 1]


class _Run:
    """One run of a recipe: what is done so far, what passed, and where results went."""

    def __init__(
        self,
        recipe: Recipe,
        build: BuildDir,
        progress: Progress,
        force: frozenset[str],
        on_stage: Listener,
        *,
        stages: Sequence[Stage],
        past_checks: bool,
    ) -> None:
        self.recipe, self.progress, self.force, self.on_stage = recipe, progress, force, on_stage
        self.stages, self.past_checks = stages, past_checks
        self.store, self.outputs = build.store, build.outputs(recipe)
        self.lock_path = self.outputs / "lock.json"
        self.lock = read_lock(self.lock_path)
        self.done: dict[str, PlannedStage] = {}
        self.passed: set[str] = set()
        self.deployed: dict[str, Path] = {}
        self.failure: Failure | None = None

    def bring_up_to_date(self, stage: Stage, left: Sequence[Stage]) -> None:
        """Looks a stage's artifact up or makes it, checks it, and deploys what may be deployed.

        Args:
            stage: The stage.
            left: It and those that are to run after it.
        """
        inputs = {name: _artifact(self.done[name]) for name in stage.inputs if name in self.done}
        started = time.monotonic()
        # The others make what they would have made without it.
        failure = self.failure if stage.always else None
        planned = plan_stage(stage, self.recipe, inputs, self.store, self.lock, failure=failure)
        if planned.artifact is None or stage.name in self.force:
            if all(earlier.status == "cached" for earlier in self.done.values()):
                # The first stage that really runs: better to miss a package now than hours later.
                check_installed(need for later in left for need in later.needs(self.recipe))
            context = StageContext(
                self.recipe,
                inputs,
                self.outputs,
                self.progress,
                failure,
                self.store.ancestors(inputs),
            )
            with self._remembering(stage):
                planned = self._build(planned, context)
        elif planned.key is not None:
            # Of a run that was killed between the last two steps.
            self.store.unfinished.discard_idle(stage.name, planned.key)
        self.done[stage.name] = planned
        # At once: what is not in the lock may be pruned while the next stage reads it.
        with self.store.writing():
            write_lock(
                self.lock_path, {name: _entry(planned) for name, planned in self.done.items()}
            )
        # A run that is killed later would otherwise have read the model for nothing.
        self.store.memo.save()
        self.on_stage(planned, time.monotonic() - started)
        if not self._passes(planned):
            return
        self.passed.add(stage.name)
        for made in self.done.values():
            place = made.stage.deployment
            if place and (place.after or made.stage.name) == stage.name:
                self._deploy(made, place)

    def _passes(self, planned: PlannedStage) -> bool:
        """Whether a stage's check takes its artifact; raises what it says against it."""
        try:
            with self._remembering(planned.stage):
                planned.stage.check(self.recipe, _artifact(planned))
        except (QualityGateError, ServerError) as error:
            if not self.past_checks:
                raise
            self.progress.note(f"{planned.stage.name}: {error}")
            return False
        return True

    def keep_undeployed(self) -> dict[str, str]:
        """Keeps folders that wait for a stage that did not pass, under names that say so.

        A run that went on behind a check keeps none: it is about numbers.

        Returns:
            The names of the folders, by stage.
        """
        kept: dict[str, str] = {}
        if self.past_checks and self.failure:
            return kept
        for name, planned in self.done.items():
            place = planned.stage.deployment
            if not (place and place.folder and place.after) or place.after in self.passed:
                continue
            if name not in self.passed:
                continue  # its own check refused it
            failed = self.failure and self.failure.verdict and self.failure.stage == place.after
            said = f": {self.failure.error['what']}" if self.failure and failed else ""
            self.deployed[name] = set_aside(
                _artifact(planned),
                self.outputs / place.folder,
                self.store,
                "failed" if failed else "unverified",
                f"{place.after} {'failed' if failed else 'has not passed'}{said}",
            )
            kept[name] = self.deployed[name].name
        return kept

    def sum_up(self) -> None:
        """Runs what runs after a failure, unless the run was refused before it did anything."""
        if self.failure is None or not self.passed:
            return
        reached = {*self.done, self.failure.stage}
        unreached = [s.name for s in self.stages if s.name not in reached and not s.always]
        try:
            kept = self.keep_undeployed()
            self.failure = replace(self.failure, unreached=tuple(unreached), kept=kept)
            for stage in self.stages:
                if stage.always and stage.name != self.failure.stage:
                    self.bring_up_to_date(stage, [stage])
        except PipelineError as error:
            # What the run failed of is what the user has to read.
            self.progress.note(f"warning: the failure could not be recorded: {error}")
            return
        for name, path in self.deployed.items():
            self.progress.note(f"{name}: {path}")

    @contextmanager
    def _remembering(self, stage: Stage) -> Iterator[None]:
        try:
            yield
        except PipelineError as error:
            if self.failure is None:
                verdict = isinstance(error, QualityGateError | ServerError)
                self.failure = Failure(stage.name, verdict, error.as_dict())
            raise

    def _build(self, planned: PlannedStage, context: StageContext) -> PlannedStage:
        stage, key, material, store = planned.stage, planned.key, planned.material, self.store
        assert key is not None
        assert material is not None
        forced = stage.name in self.force
        doing = f"{stage.name} of {self.recipe.name}"
        with store.lock(stage.name, key, doing=doing, on_wait=self.progress.note):
            artifact, _ = store.get(stage.name, key)
            if artifact and not forced:
                # Another process built it while this one waited for the lock.
                return replace(planned, status="cached", artifact=artifact)
            reason = planned.reason or FORCED
            self._refuse_changed(stage, context.inputs)
            with (
                context.progress.stage(f"{stage.name}: {stage.title} ({reason})"),
                store.begun(
                    stage.name, key, context.inputs, anew=forced, note=self.progress.note
                ) as unfinished,
                store.workspace(stage.name, key) as directory,
            ):
                started = time.monotonic()
                context = replace(
                    context, output=directory, section=material["recipe"], unfinished=unfinished
                )
                with explained_memory(
                    f"{stage.name} ran out of memory",
                    "Use a machine with more memory or a smaller model",
                    where=context.recipe.name,
                ):
                    facts = stage.run(context)
                seconds = time.monotonic() - started
                self._refuse_changed(stage, context.inputs)
                settled = self._settled(planned, context)
                if settled.key == key:
                    artifact = self._publish(settled, context, facts, seconds)
                else:
                    artifact = self._publish_settled(settled, context, facts, seconds)
        return replace(settled, status="run", reason=reason, artifact=artifact)

    def _settled(self, planned: PlannedStage, context: StageContext) -> PlannedStage:
        """Gives a stage the key by which the next run looks for it.

        Where it made links, it moved marks of files that are in the key.
        """
        if not context.borrowed:
            return planned
        material = key_material(planned.stage, self.recipe, context.inputs, context.failure)
        return replace(planned, key=digest_of(material), material=material)

    def _publish_settled(
        self, planned: PlannedStage, context: StageContext, facts: dict[str, Any], seconds: float
    ) -> Artifact:
        """Publishes under a key that this process does not hold yet."""
        name, key = planned.stage.name, planned.key
        assert key is not None
        with self.store.lock(name, key, on_wait=self.progress.note):
            artifact, _ = self.store.get(name, key)
            return artifact or self._publish(planned, context, facts, seconds)

    def _publish(
        self, planned: PlannedStage, context: StageContext, facts: dict[str, Any], seconds: float
    ) -> Artifact:
        assert planned.key is not None
        assert planned.material is not None
        return self.store.publish(
            context.output,
            stage=planned.stage.name,
            key=planned.key,
            material=planned.material,
            inputs=context.inputs,
            facts=facts,
            seconds=seconds,
            borrowed=context.borrowed,
        )

    def _refuse_changed(self, stage: Stage, inputs: Mapping[str, Artifact]) -> None:
        """Refuses inputs that somebody wrote into: what is made of them would be of two kinds.

        Raises:
            StoreError: One is not what it was when the run looked at it.
        """
        for name, problems in self.store.changed(inputs).items():
            raise StoreError(
                f"the model was written to during the run: {problems[0]}",
                where=str(inputs[name].path),
                why="A large model is not copied, its files are linked into the store; so "
                f"{stage.name} would be of the old and the new model, and is not kept",
                fix="Let nothing write into the model's folder, and run again: the run begins with "
                "the model as it is then",
            )

    def _deploy(self, planned: PlannedStage, place: Deployment) -> None:
        artifact = _artifact(planned)
        if place.folder:
            if self.failure:
                return  # a check before it refused what it is made of
            target = release(artifact, self.outputs / place.folder, self.store)
            logger.info("%s: deployed as %s", planned.stage.name, target)
            self.deployed[planned.stage.name] = target
        finished = place.finish(artifact.path, self.outputs) if place.finish else {}
        for name in place.files:
            content = finished.get(name) or (artifact.path / name).read_bytes()
            target = self.outputs / name
            if not _holds(target, content):
                with self.store.writing():
                    write_atomically(target, content)
                logger.info("%s: written to %s", planned.stage.name, target)
            self.deployed[planned.stage.name] = target
        if place.journal and (line := place.journal.line(artifact)) is not None:
            try:
                with self.store.lock("journal", self.recipe.name), self.store.writing():
                    # What is in the store may be older than the run that came to it.
                    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    append(self.outputs / place.journal.name, {**line, "finished": now})
            except UsageError as error:
                # Somebody changed the file; what was built is no worse for it.
                self.progress.note(f"warning: {error}")


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _artifact(planned: PlannedStage) -> Artifact:
    if planned.artifact is None:
        raise PipelineError(f"{planned.stage.name} has no artifact")
    return planned.artifact


def _entry(planned: PlannedStage) -> dict[str, Any]:
    """What the lock records of a stage that was brought up to date."""
    return {"key": planned.key, "digest": _artifact(planned).digest, "material": planned.material}
