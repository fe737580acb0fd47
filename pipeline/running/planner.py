"""What a run will do: each stage, whether its artifact is there, and why it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.preflight.remarks import engine_not_measured
from pipeline.recipe.schema import Recipe
from pipeline.running.reasons import reason_to_run
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
from pipeline.store.artifact import Artifact
from pipeline.store.digests import digest_of
from pipeline.store.store import Store
from pipeline.tables import size
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

# What is another thing where an engine has a server of its own.
_OWN_TITLES = {
    "repository": "assemble what the engine's own server is started with",
    "verify": "test it with the engine's own server over HTTP",
}

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
    target = get_target(recipe.compile.target)
    exported = target.triton_model is None and not target.own_server
    if exported:
        left_out |= SERVED
    measured = None if "fidelity" in left_out else "fidelity"

    def own(stage: Stage) -> Stage:
        if target.own_server and stage.name in _OWN_TITLES:
            return replace(stage, title=_OWN_TITLES[stage.name])
        if stage.name != compile_stage.STAGE.name:
            return stage
        compiling = stage if engine is None else compile_stage.adopting(engine)
        if target.reads_source:
            compiling = compile_stage.with_source(compiling)
        return compile_stage.exported(compiling, measured) if exported else compiling

    return tuple(own(stage) for stage in STAGES if stage.name not in left_out)


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
    before = lock.get(stage.name)
    reason = reason_to_run(material, before["material"] if before else None, damage)
    if left := store.unfinished.bytes_of(stage.name, key):
        reason += f"; an earlier run left {size(left)} of it"
    return PlannedStage(stage, "run", reason, key, None, material)
