"""Gathers what the stages measured into one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.dependencies import versions
from pipeline.economics.bounds import roofline, with_reached
from pipeline.formats import FORMATS
from pipeline.models.config_keys import unread_keys
from pipeline.models.facts import ModelFacts
from pipeline.reading.json_text import read_json
from pipeline.recipe.schema import CostSection, Recipe
from pipeline.report.prices import price_of
from pipeline.store.artifact import Artifact, read_manifest
from pipeline.targets import get_target
from pipeline.verdict.closing import best_measurement
from pipeline.verdict.decision import Decision, decide, title_of
from pipeline.verdict.failure import Failure
from pipeline.verdict.gate import GateResult
from pipeline.verdict.gates import checkpoint_gates, engine_gates

SCHEMA = 3
TOOLS = ("nvidia-modelopt", "transformers", "torch")
SERVING_TOOLS = ("nvidia-pytriton", "tritonclient")
BYTES_16BIT = 2


def collect(
    recipe: Recipe, inputs: Mapping[str, Artifact], failure: Failure | None = None
) -> dict[str, Any]:
    """Gathers the report as JSON values; what was not reached is None.

    Args:
        recipe: The recipe.
        inputs: The artifacts of the run, by stage.
        failure: Why the run ended early.
    """
    stages = [_stage(artifact) for artifact in inputs.values()]
    quality = _result(inputs, "evaluate", "evaluation.json")
    fidelity = _result(inputs, "fidelity", "fidelity.json")
    load = _result(inputs, "bench", "bench.json")
    conformance = _result(inputs, "verify", "verify.json")
    gates = _gates(recipe, inputs, quality, fidelity)
    parts = _parts(recipe, inputs)
    decision = decide(
        gates,
        conformance,
        failure,
        title=title_of(recipe.quantize.format),
        share=parts["size"] and parts["size"]["share"],
        tokens_per_second=best_measurement(load)["tokens_per_second"]["value"] if load else None,
    )
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "version": __version__,
        # Not the time of writing, so that the same artifacts always give the same report.
        "created": max(stage["created"] for stage in stages),
        "verdict": _verdict(decision, failure),
        "gates": [gate.as_dict() for gate in gates],
        "machine": load["machine"] if load else None,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        **parts,
        "quality": quality,
        "fidelity": fidelity,
        "load": load,
        "cost": _cost(recipe.cost, load),
        "roofline": _roofline(recipe, inputs, load),
        "conformance": conformance and {**conformance, "ready_seconds": _ready(inputs)},
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages),
        "tools": _tools(recipe, inputs),
        # What other builds of the model there are is known where the report is put.
        "siblings": [],
    }


def _ready(inputs: Mapping[str, Artifact]) -> float | None:
    """Seconds until the server that was verified had loaded; None where nobody saw it start."""
    seconds = inputs["verify"].facts.get("ready_seconds")
    return None if seconds is None else float(seconds)


def _roofline(
    recipe: Recipe, inputs: Mapping[str, Artifact], load: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What the hardware allows at most at the fastest level, and how much of it was reached."""
    if load is None or "source" not in inputs:
        return None
    facts = ModelFacts.from_directory(inputs["source"].path)
    # The load test leaves the rates of the processor that it ran on in its artifact.
    setting = get_target(recipe.compile.target).setting(recipe, facts, inputs["bench"].path)
    if setting is None:
        return None
    found = with_reached(roofline(recipe, facts, setting), recipe, facts, load["measurements"])
    best = max(found.reached, key=lambda level: level.tokens_per_second)
    return {
        "concurrency": best.concurrency,
        "bound_tokens_per_second": best.bound,
        "reached": best.share,
        "by": best.by,
        "hardware": setting.hardware.name,
        "source": setting.hardware.source,
    }


def _gates(
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    quality: Mapping[str, Any] | None,
    fidelity: Mapping[str, Any] | None,
) -> list[GateResult]:
    """Asks every gate whose subject was measured."""
    if recipe.evaluate is None or quality is None:
        return []
    limits, bits = recipe.evaluate.gates, FORMATS[recipe.quantize.format].weight_bits
    parameters = int(inputs["source"].facts["parameters"])
    gates = checkpoint_gates(limits, quality, parameters, bits)
    return gates + (engine_gates(limits, fidelity, parameters, bits) if fidelity else [])


def _verdict(decision: Decision, failure: Failure | None) -> dict[str, Any]:
    """Puts the decision together with how the run ended."""
    return {
        "verdict": decision.verdict,
        "headline": decision.headline,
        "status": decision.status,
        "stage": failure.stage if failure else None,
        "reasons": list(decision.reasons),
        "fix": failure.error["fix"] if failure else None,
        "unreached": list(failure.unreached) if failure else [],
        "kept": dict(failure.kept) if failure else {},
    }


def _parts(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Model, checkpoint and engine, and their sizes, as far as the run got."""
    parts: dict[str, Any] = {"model": None, "checkpoint": None, "engine": None, "size": None}
    if "source" not in inputs:
        return parts
    source = inputs["source"].facts
    full = int(source["parameters"]) * BYTES_16BIT
    config = read_json(inputs["source"].path / "config.json", finite=False)
    parts["model"] = {
        "source": recipe.model.source,
        "commit": _commit(inputs["source"]),
        "digest": inputs["source"].digest,
        "bytes_16bit": full,
        "unread_keys": unread_keys(config),
        **source,
    }
    size = dict.fromkeys(("checkpoint_bytes", "engine_bytes", "share"))
    parts["size"] = {"bytes_16bit": full, **size}
    if "quantize" in inputs:
        checkpoint = inputs["quantize"].facts
        written = int(checkpoint["bytes"])
        parts["checkpoint"] = {
            "format": recipe.quantize.format,
            "share": written / full,
            **checkpoint,
        }
        parts["size"] |= {"checkpoint_bytes": written, "share": written / full}
    if "compile" in inputs:
        engine = _directory_bytes(inputs["compile"].path)
        parts["engine"] = {
            "target": recipe.compile.target,
            **inputs["compile"].facts,
            "bytes": engine,
        }
        parts["size"]["engine_bytes"] = engine
    return parts


def _commit(source: Artifact) -> str | None:
    """The Hub's commit of a snapshot; None for a folder, which only its digest identifies."""
    material = read_manifest(source.path).get("material", {})
    commit = material.get("material", {}).get("commit")
    return None if commit is None else str(commit)


def _cost(cost: CostSection, load: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a million tokens cost at the highest throughput measured; None without a price."""
    if cost.price_per_hour is None or load is None:
        return None
    speed = best_measurement(load)["tokens_per_second"]
    return {
        "currency": cost.currency,
        "price_per_hour": cost.price_per_hour,
        "utilization": cost.utilization,
        "per_million_tokens": price_of(speed, cost.price_per_hour, cost.utilization),
    }


def _tools(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Versions of what had a part in the run; of what serves too if the target is served.

    An engine that was built elsewhere says itself what it was built with.
    """
    target = get_target(recipe.compile.target)
    own = tuple(package for package, _ in target.needs(recipe)) if target.own_server else ()
    serving = own if target.triton_model is None else SERVING_TOOLS
    compiled = inputs["compile"].facts if "compile" in inputs else {}
    return {**versions((*TOOLS, *serving)), **(compiled.get("tools") or target.tools())}


def _stage(artifact: Artifact) -> dict[str, Any]:
    manifest = read_manifest(artifact.path)
    return {
        "name": artifact.stage,
        "key": artifact.key,
        "digest": artifact.digest,
        "created": manifest["created"],
        "seconds": float(manifest["seconds"]),
    }


def _result(inputs: Mapping[str, Artifact], stage: str, name: str) -> dict[str, Any] | None:
    """A stage's JSON file; None when the stage was not reached."""
    if stage not in inputs:
        return None
    return dict(read_json(inputs[stage].path / name, finite=False))


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
