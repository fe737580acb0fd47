"""What does not fit a machine is refused, with the smallest change of the recipe that makes it fit.

Only what must be there whatever the software does is a reason to refuse. Where what is expected is
larger than the machine and that is not, a warning is said, and the run may try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.effort.memory import Memory
from pipeline.effort.stages import Machine, StageEffort
from pipeline.errors import UnsupportedError
from pipeline.recipe.schema import Recipe
from pipeline.tables import size
from pipeline.targets.findings import Finding

Estimating = Callable[[Recipe], Sequence[StageEffort]]
"""The efforts of a recipe that differs from the one that is planned in some keys."""

BATCH, LENGTH = "quantize.calibration.batch_size", "quantize.calibration.sequence_length"
SAMPLES, AT_ONCE, WINDOW = (
    "quantize.calibration.samples",
    "model.at_once",
    "evaluate.sequence_length",
)
TASKS = "evaluate.tasks"
# What is shorter says little of a model.
SHORTEST, FEWEST = 128, 8


@dataclass(frozen=True)
class Change:
    """A change of a recipe.

    Attributes:
        keys: New values by dotted key; never empty.
    """

    keys: dict[str, Any]

    @property
    def first(self) -> str:
        """The key that comes first."""
        return next(iter(self.keys))

    def words(self) -> str:
        """Says it as a remedy: ``Set quantize.calibration.batch_size to 4``."""
        return "Set " + " and ".join(f"{key} to {value}" for key, value in self.keys.items())

    def applied(self, recipe: Recipe) -> Recipe:
        """Returns the recipe with it."""
        for key, value in self.keys.items():
            recipe = _with(recipe, key.split("."), value)
        return recipe


def refusal(
    recipe: Recipe, found: Sequence[StageEffort], machine: Machine, estimate: Estimating
) -> UnsupportedError | None:
    """Returns what a run would be refused with; None where it may fit.

    Args:
        recipe: The recipe.
        found: Its stages that are to run.
        machine: What there is.
        estimate: Estimates the same stages of other recipes.
    """
    for stage in found:
        if stage.memory and machine.memory and stage.memory.least > machine.memory:
            return _too_large(recipe, stage, stage.memory, machine.memory, estimate)
    least = sum(stage.disk.least for stage in found)
    if machine.free is not None and least > machine.free:
        return UnsupportedError(
            f"the disk of the build directory has {size(machine.free)} free, and the run writes "
            f"{size(least)} at least",
            where=recipe.place("name"),
            why=", ".join(
                f"{stage.stage} {size(stage.disk.least)}" for stage in found if stage.disk.least
            ),
            fix=f"Free {size(least - machine.free)} there (trtllm-pipeline store prune removes "
            "what no recipe needs), or name another disk: --build-dir DIR",
        )
    return None


def warnings(
    recipe: Recipe, found: Sequence[StageEffort], machine: Machine, estimate: Estimating
) -> Iterator[Finding]:
    """Yields what may not fit, with the smallest change that would.

    Args:
        recipe: The recipe.
        found: Its stages that are to run.
        machine: What there is.
        estimate: Estimates the same stages of other recipes.
    """
    for stage in found:
        need, has = stage.memory, machine.memory
        if need is None or has is None or not need.least <= has < need.likely:
            continue
        change = smallest(recipe, stage, has, estimate)
        yield Finding(
            "warning",
            change.first if change else _key(stage.stage),
            f"{stage.stage} may need more memory than there is: about {size(need.likely)} of "
            f"{size(has)}",
            "It is an estimate, from the sizes of the model's layers and of the texts that are run "
            "together",
            _remedy(stage.stage, change, need, estimate, recipe),
        )
    least = sum(stage.disk.least for stage in found)
    most = max((_beside(found, index) for index in range(len(found))), default=0)
    if machine.free is not None and least <= machine.free < most:
        yield Finding(
            "warning",
            "name",
            f"the disk may become full: {size(machine.free)} are free in the build directory, and "
            f"there are up to {size(most)} for a time",
            "It is an estimate, of what stays and of what stages keep beside it while they work",
            "Free some, or name another disk: --build-dir DIR",
        )


def smallest(recipe: Recipe, stage: StageEffort, has: int, estimate: Estimating) -> Change | None:
    """Finds the first change after which a stage is expected to fit, or else may fit.

    Args:
        recipe: The recipe.
        stage: The stage, as the recipe has it.
        has: Bytes of memory.
        estimate: Estimates other recipes.

    Returns:
        A change that lowers what the stage needs; None where none helps. Where the stage may fit as
        it is, one that only may fit helps nobody.
    """
    assert stage.memory is not None
    tried = [
        (change, need)
        for change in _all(recipe)
        if (need := _need(estimate(change.applied(recipe)), stage.stage))
        and need.likely < stage.memory.likely
    ]
    for limit in ("likely", "least") if stage.memory.least > has else ("likely",):
        for change, need in tried:
            if getattr(need, limit) <= has:
                return change
    return None


def _all(recipe: Recipe) -> Iterator[Change]:
    """The changes that are worth a try, the least felt first."""
    at_once = {} if recipe.model.by_layer or recipe.model.trust_remote_code else {AT_ONCE: "layer"}
    if at_once:
        yield Change(at_once)
    if (calibration := recipe.quantize.calibration) is not None:
        rows = min(calibration.batch_size, calibration.samples)
        for fewer in _halves(rows, 1):
            yield Change({**at_once, BATCH: fewer})
        one = {**at_once, BATCH: 1} if rows > 1 else at_once
        for length in _halves(calibration.sequence_length, SHORTEST):
            yield Change({**one, LENGTH: length})
        for samples in _halves(calibration.samples, FEWEST):
            yield Change({**one, SAMPLES: samples})
    if recipe.evaluate is not None:
        for length in _halves(recipe.evaluate.sequence_length, SHORTEST):
            if length > (recipe.evaluate.stride or 0):
                yield Change({**at_once, WINDOW: length})
        if recipe.evaluate.tasks:
            yield Change({**at_once, TASKS: []})


def _halves(value: int, least: int) -> Iterator[int]:
    while value > least:
        value = max(value // 2, least)
        yield value


def _too_large(
    recipe: Recipe, stage: StageEffort, need: Memory, has: int, estimate: Estimating
) -> UnsupportedError:
    change = smallest(recipe, stage, has, estimate)
    return UnsupportedError(
        f"{stage.stage} does not fit into this machine's memory: it takes at least "
        f"{size(need.least)}, and there are {size(has)}",
        where=recipe.place(change.first if change else _key(stage.stage)),
        why=f"The peak to be expected is {size(need.likely)}",
        fix=_remedy(stage.stage, change, need, estimate, recipe),
    )


def _remedy(
    stage: str, change: Change | None, need: Memory, estimate: Estimating, recipe: Recipe
) -> str:
    if change is None:
        without = (
            ", or leave out what is measured, and the gates with it: evaluate: null"
            if stage in ("evaluate", "fidelity")
            else ""
        )
        return f"Use a machine with {size(need.likely)} of memory{without}"
    left = _need(estimate(change.applied(recipe)), stage)
    return f"{change.words()}, which takes about {size(left.likely)}" if left else change.words()


def _need(found: Sequence[StageEffort], stage: str) -> Memory | None:
    return next((one.memory for one in found if one.stage == stage), None)


def _beside(found: Sequence[StageEffort], index: int) -> int:
    """What is on the disk while a stage runs."""
    return sum(one.disk.kept for one in found[: index + 1]) + found[index].disk.scratch


def _key(stage: str) -> str:
    return {"quantize": "quantize.format", "compile": "compile.target"}.get(stage, "model.source")


def _with(value: Any, keys: Sequence[str], new: Any) -> Any:
    """A section, or a recipe, with another value somewhere below it."""
    first, *others = keys
    return value.model_copy(
        update={first: _with(getattr(value, first), others, new) if others else new}
    )
