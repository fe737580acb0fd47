"""Whether this machine has the memory and the disk of what is to run."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.effort.planned import Effort, effort_of
from pipeline.effort.stages import Earlier
from pipeline.errors import PipelineError
from pipeline.layers.left import walks_left
from pipeline.models.facts import ModelFacts
from pipeline.preflight.model_checks import check_hub_model
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import PlannedStage, build_plan
from pipeline.source.local import local_directory
from pipeline.source.snapshot import facts_of
from pipeline.store.build_dir import BuildDir
from pipeline.store.lock import read_lock


def plan_in(build: BuildDir, recipe: Recipe) -> list[PlannedStage]:
    """Plans a run by what the build directory holds."""
    return build_plan(recipe, build.store, read_lock(build.outputs(recipe) / "lock.json"))


def effort_left(
    recipe: Recipe, facts: ModelFacts, build: BuildDir, planned: Sequence[PlannedStage]
) -> Effort:
    """Estimates the stages of a plan that are not cached, with the time they take.

    Args:
        recipe: A recipe that fits the model.
        facts: The model's facts.
        build: Where artifacts go; the rates of the machine are remembered there.
        planned: Of :func:`plan_in`.
    """
    names = [line.stage.name for line in planned if line.status != "cached"]
    return effort_of(
        recipe,
        facts,
        names,
        directory=local_directory(recipe),
        build=build.root,
        remembered=build.store.root,
        left=_left(build, planned),
    )


def refuse_too_large(
    recipe: Recipe, build: BuildDir, stages: Sequence[str], force: Collection[str]
) -> None:
    """Refuses what this machine has no memory or disk for, before any work.

    What else is wrong is left to the run to say.

    Args:
        recipe: The recipe.
        build: Where artifacts go.
        stages: Names of those of the run.
        force: Names of those that run even if cached.

    Raises:
        UnsupportedError: Naming the smallest change of the recipe that makes it fit.
    """
    planned: Sequence[PlannedStage] = ()
    try:
        directory = local_directory(recipe)
        if directory is None:
            planned = plan_in(build, recipe)
            source = planned[0].artifact
            facts = facts_of(source.path) if source else check_hub_model(recipe)
        else:
            facts = facts_of(directory)

        def effort(names: Sequence[str]) -> Effort:
            return effort_of(
                recipe,
                facts,
                names,
                directory=directory,
                build=build.root,
                remembered=None,
                left=_left(build, planned),
            )

        if not effort(stages).refusal:
            return
        # Which stages are cached is only looked up where it matters.
        planned = planned or plan_in(build, recipe)
        waiting = {line.stage.name for line in planned if line.status != "cached"} | set(force)
        found = effort([name for name in stages if name in waiting])
    except PipelineError:
        return
    if found.refusal:
        raise found.refusal


def _left(build: BuildDir, planned: Sequence[PlannedStage]) -> dict[str, Earlier]:
    """What earlier runs left of each stage, with which the next goes on."""
    unfinished = build.store.unfinished
    found = {}
    for line in planned:
        if line.key is not None and line.status != "cached":
            name = line.stage.name
            walks = walks_left(unfinished.path(name, line.key))
            found[name] = Earlier(unfinished.bytes_of(name, line.key), walks)
    return found
