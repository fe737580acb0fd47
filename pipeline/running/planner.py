"""What a run will do: each stage, whether its artifact is there, and why it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.preflight.remarks import engine_not_measured
from pipeline.recipe.schema import Recipe
from pipeline.stages import (
    bench,
    evaluate,
    fidelity,
    quantize,
    report,
    repository,
    source,
    verify,
)
from pipeline.stages import compile as compile_stage
from pipeline.stages.base import Stage
from pipeline.store.artifact import Artifact, Damage
from pipeline.store.digests import canonical_json, digest_of
from pipeline.store.store import Store
from pipeline.targets import get_target
from pipeline.targets.base import GivenEngine
from pipeline.verdict.failure import Failure

STAGES: tuple[Stage, ...] = (
    source.STAGE,
    quantize.STAGE,
    evaluate.STAGE,
    compile_stage.STAGE,
    fidelity.STAGE,
    repository.STAGE,
    verify.STAGE,
    bench.STAGE,
    report.STAGE,
)

# What there is to do with an engine that Triton serves, and not with one that is only exported.
SERVED = frozenset({"repository", "verify", "bench"})

Status = Literal["cached", "run", "waits"]


@dataclass(frozen=True)
class PlannedStage:
    """A stage as a run would find it: cached, to run, or waiting.

    Attributes:
        stage: The stage.
        status: ``cached``, ``run``, or ``waits`` when an input has yet to be made.
        reason: Why it runs or waits; empty when cached.
        key: Its key; None while an input is missing.
        artifact: The artifact when cached.
        material: What the key is the digest of.
    """

    stage: Stage
    status: Status
    reason: str = ""
    key: str | None = None
    artifact: Artifact | None = None
    material: Mapping[str, Any] | None = None


def stages_for(recipe: Recipe, engine: GivenEngine | None = None) -> tuple[Stage, ...]:
    """Lists the stages that a recipe asks for and its target has on this machine, in order.

    Args:
        recipe: The recipe.
        engine: Is taken in instead of compiling one.

    Raises:
        UnsupportedError: There is no such target.
    """
    left_out: set[str] = set() if recipe.evaluate else {"evaluate", "fidelity"}
    if engine_not_measured(recipe):
        left_out.add("fidelity")
    if get_target(recipe.compile.target).triton_model is None:
        left_out |= SERVED
    stages = tuple(stage for stage in STAGES if stage.name not in left_out)
    if engine is None:
        return stages
    taken_in = compile_stage.adopting(engine)
    return tuple(taken_in if stage.name == taken_in.name else stage for stage in stages)


def key_material(
    stage: Stage,
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    failure: Failure | None = None,
) -> dict[str, Any]:
    """Gathers everything that decides a stage's bytes; its digest is the stage's key."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "recipe": stage.section(recipe),
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
        "material": stage.material(recipe),
        **({"failure": failure.as_dict()} if failure else {}),
    }


def build_plan(recipe: Recipe, store: Store, lock: Mapping[str, Any]) -> list[PlannedStage]:
    """Plans a run without doing anything.

    Args:
        recipe: The recipe.
        store: Where artifacts are looked up.
        lock: What the last run of this recipe used, from :func:`pipeline.store.lock.read_lock`.

    Raises:
        PipelineError: A stage's inputs outside the store are missing or unusable.
    """
    plan: list[PlannedStage] = []
    done: dict[str, Artifact] = {}
    stages = stages_for(recipe)
    names = {stage.name for stage in stages}
    for stage in stages:
        wanted = [name for name in stage.inputs if name in names]
        missing = [name for name in wanted if name not in done]
        if missing:
            more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
            plan.append(PlannedStage(stage, "waits", f"needs {', '.join(missing[:2])}{more}"))
            continue
        planned = plan_stage(stage, recipe, {name: done[name] for name in wanted}, store, lock)
        plan.append(planned)
        if planned.artifact:
            done[stage.name] = planned.artifact
    return plan


def plan_stage(
    stage: Stage,
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    store: Store,
    lock: Mapping[str, Any],
    *,
    failure: Failure | None = None,
) -> PlannedStage:
    """Plans one stage whose inputs are all there, or as many as a failure left."""
    material = key_material(stage, recipe, inputs, failure)
    key = digest_of(material)
    artifact, damage = store.get(stage.name, key)
    if artifact:
        return PlannedStage(stage, "cached", "", key, artifact, material)
    return PlannedStage(stage, "run", _reason(stage, material, lock, damage), key, None, material)


def _reason(
    stage: Stage, material: Mapping[str, Any], lock: Mapping[str, Any], damage: Damage | None
) -> str:
    if damage:
        return f"its artifact is damaged: {damage.problems[0]}"
    before = lock.get(stage.name)
    if not before:
        return "never ran"
    changes = list(_changes(before["material"], material))
    if not changes:
        return "its artifact is gone from the store"
    # What the recipe says comes first: other differences often follow from it.
    changes.sort(key=lambda change: not change[0].startswith("recipe."))
    shown = "; ".join(words for _, words in changes[:3])
    return shown if len(changes) <= 3 else f"{shown}; and {len(changes) - 3} more"


def _changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Differences between two JSON values: their dotted paths, and what changed in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            below = f"{path}.{name}" if path else name
            yield from _changes(before.get(name), after.get(name), below)
        return
    if before == after:
        return
    name = path.removeprefix("recipe.").removeprefix("material.")
    old, new = canonical_json(before), canonical_json(after)
    if path.startswith("inputs."):
        yield path, f"the {name.removeprefix('inputs.')} artifact changed"
    elif not _is_short(old) or not _is_short(new):
        yield path, f"{name} changed"
    else:
        yield path, f"{name} changed from {old} to {new}"


def _is_short(json_text: str) -> bool:
    return len(json_text) <= 40 and json_text[0] not in "[{"
