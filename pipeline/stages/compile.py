"""Compiles the checkpoint for the recipe's target."""

from __future__ import annotations

from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.stages.base import Stage, StageContext
from pipeline.targets import get_target


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
    return target.compile(checkpoint, context.recipe, context.output, context.progress)


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
