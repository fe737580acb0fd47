"""Compiles the checkpoint for the recipe's target, or takes in an engine built elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import CompileError, UsageError
from pipeline.recipe.schema import Recipe
from pipeline.stages.base import Deployment, Stage, StageContext
from pipeline.store.deployed import EXPORT, README
from pipeline.targets import get_target
from pipeline.targets.base import GivenEngine


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what the target reads of the recipe.

    Raises:
        UnsupportedError: There is no such target.
    """
    return get_target(recipe.compile.target).section(recipe)


def material(recipe: Recipe) -> dict[str, Any]:
    """Returns the versions of the target's tools.

    Raises:
        UnsupportedError: There is no such target.
    """
    return {"tools": dict(get_target(recipe.compile.target).tools())}


def run(context: StageContext) -> dict[str, Any]:
    """Fills the output with an engine directory.

    Raises:
        CompileError: The target could not compile the checkpoint.
    """
    target = get_target(context.recipe.compile.target)
    checkpoint = context.inputs["quantize"].path
    source = context.inputs.get("source")
    facts = target.compile(
        checkpoint,
        context.recipe,
        context.output,
        context.progress,
        source.path if source else None,
    )
    readme = context.output / README
    if (steps := target.next_steps(context.recipe, Path())) and not readme.exists():
        readme.write_text(_readme(context.recipe, steps), encoding="utf-8")
    return facts


def _readme(recipe: Recipe, steps: Sequence[str]) -> str:
    return "\n".join(
        [
            f"# {recipe.name} for {recipe.compile.target}",
            "",
            "Written by trtllm-pipeline. It is run like this, from this folder:",
            "",
            "```sh",
            *steps,
            "```",
            "",
        ]
    )


STAGE = Stage(
    name="compile",
    version=1,
    title="compile for the target",
    inputs=("quantize",),
    run=run,
    section=section,
    material=material,
    needs=lambda recipe: get_target(recipe.compile.target).needs(recipe),
)


def given_engine(directory: Path, recipe: Recipe, digest: Callable[[Path], str]) -> GivenEngine:
    """Looks at an engine that was built elsewhere, before anything is done.

    Args:
        directory: The engine directory.
        recipe: Its target decides what belongs to an engine.
        digest: The SHA-256 of a file.

    Raises:
        UsageError: There is no such directory.
        UnsupportedError: The target takes no engine from elsewhere.
        CompileError: It is not a complete engine, or cannot be read.
    """
    if not directory.is_dir():
        raise UsageError(
            "there is no such folder",
            where=str(directory),
            fix="Give --engine the folder that the build script filled",
        )
    try:
        names = get_target(recipe.compile.target).given_files(directory)
        return GivenEngine(directory, {name: digest(directory / name) for name in names})
    except OSError as error:
        raise CompileError(
            "the engine cannot be read",
            where=error.filename or str(directory),
            why=error.strerror,
            fix="Correct its permissions, or copy it again",
        ) from error


def adopting(given: GivenEngine) -> Stage:
    """Makes the stage that takes in an engine instead of compiling one.

    Its key has the engine's digests in the place of the versions of the tools that are here.
    """

    def adopt(context: StageContext) -> dict[str, Any]:
        target = get_target(context.recipe.compile.target)
        checkpoint = context.inputs["quantize"].path
        return target.adopt(given, checkpoint, context.recipe, context.output, context.progress)

    return replace(
        STAGE,
        title="take in the engine that was built elsewhere",
        run=adopt,
        material=lambda _recipe: {"engine": dict(given.files)},
    )


def with_source(stage: Stage) -> Stage:
    """Makes the stage depend on the source as well, for a target that reads it.

    Args:
        stage: This stage, or the one that takes in an engine.
    """
    return replace(stage, inputs=("source", *stage.inputs))


def exported(stage: Stage, after: str | None) -> Stage:
    """Makes the stage put its engine directory into the build's folder, where nothing serves it.

    Args:
        stage: This stage, or the one that takes in an engine.
        after: The stage that measures the engine and has to pass before; None where none does.
    """
    return replace(stage, deployment=Deployment(folder=EXPORT, after=after))
