"""Gathers what the stages measured into one dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.dependencies import versions
from pipeline.models.config_keys import unread_keys
from pipeline.recipe.schema import Gates, Recipe
from pipeline.report.render import percent, size
from pipeline.store.artifact import Artifact, read_manifest
from pipeline.tables import number, streams
from pipeline.targets import get_target
from pipeline.verdict.failure import Failure
from pipeline.verdict.gates import beyond_range, broken_by_engine, broken_gates

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
    bench = _result(inputs, "bench", "bench.json")
    evaluation = _result(inputs, "evaluate", "evaluation.json")
    conformance = _result(inputs, "verify", "verify.json")
    quality = (
        _quality(evaluation, recipe.evaluate.gates) if evaluation and recipe.evaluate else None
    )
    return {
        "schema": 2,
        "name": recipe.name,
        "version": __version__,
        # Not the time of writing, so that the same artifacts always give the same report.
        "created": max(stage["created"] for stage in stages),
        "verdict": _verdict(quality, conformance, failure),
        "machine": bench["machine"] if bench else None,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        **_parts(recipe, inputs),
        "quality": quality,
        "load": _load(bench) if bench else None,
        "conformance": conformance,
        "stages": stages,
        "tools": _tools(recipe, inputs),
    }


def _tools(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Versions of what had a part in the run; of what serves too if the target is served.

    An engine that was built elsewhere says itself what it was built with.
    """
    target = get_target(recipe.compile.target)
    serving = () if target.triton_model is None else SERVING_TOOLS
    compiled = inputs["compile"].facts if "compile" in inputs else {}
    return {**versions((*TOOLS, *serving)), **(compiled.get("tools") or target.tools())}


def _verdict(
    quality: Mapping[str, Any] | None,
    conformance: Mapping[str, Any] | None,
    failure: Failure | None,
) -> dict[str, Any]:
    """Whether what was built is good: by the gates, the checks, and how the run ended."""
    reasons = list(quality["broken"]) if quality else []
    if conformance:
        reasons += [
            f"{check['name']}: {check['reason'] or 'no reason was given'}"
            for check in conformance["checks"]
            if check["status"] == "failed"
        ]
    failed = bool(reasons) or (failure is not None and failure.verdict)
    if failure and not reasons:
        reasons = [text for text in (failure.error["what"], failure.error["why"]) if text]
    return {
        "status": "failed" if failed else "unfinished" if failure else "passed",
        "stage": failure.stage if failure else None,
        "reasons": reasons,
        "fix": failure.error["fix"] if failure else None,
        "unreached": list(failure.unreached) if failure else [],
        "kept": dict(failure.kept) if failure else {},
    }


def _parts(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Model, checkpoint and engine, and their sizes, as far as the run got."""
    parts: dict[str, Any] = {"model": None, "checkpoint": None, "engine": None, "sizes": []}
    if "source" not in inputs:
        return parts
    source = inputs["source"].facts
    full = int(source["parameters"]) * BYTES_16BIT
    config = json.loads((inputs["source"].path / "config.json").read_text(encoding="utf-8"))
    parts["model"] = {
        "source": recipe.model.source,
        "bytes_16bit": full,
        "unread_keys": unread_keys(config),
        **source,
    }
    parts["sizes"].append(("16 bit", float(full), size(full)))
    if "quantize" in inputs:
        checkpoint = inputs["quantize"].facts
        written = int(checkpoint["bytes"])
        parts["checkpoint"] = {
            "format": recipe.quantize.format,
            "share": written / full,
            **checkpoint,
        }
        parts["sizes"].append(("checkpoint", float(written), size(written)))
    if "compile" in inputs:
        engine = _directory_bytes(inputs["compile"].path)
        parts["engine"] = {
            "target": recipe.compile.target,
            **inputs["compile"].facts,
            "bytes": engine,
        }
        parts["sizes"].append(("engine", float(engine), size(engine)))
    return parts


def _quality(evaluation: dict[str, Any], gates: Gates) -> dict[str, Any]:
    windows = evaluation.pop("by_window")
    broken = dict(broken_gates(gates, evaluation))
    broken_by = dict(broken_by_engine(gates, evaluation))
    rows: list[dict[str, Any]] = [
        {"name": "perplexity of the source", "value": number(evaluation["source_perplexity"])},
        {"name": "perplexity of the checkpoint", "value": number(evaluation["perplexity"])},
        {
            "name": "perplexity increase",
            "value": f"{percent(evaluation['perplexity_increase'])} ± "
            f"{percent(evaluation['perplexity_increase_standard_error'])}",
            "gate": _gate(gates.perplexity_increase, "at most {}", percent),
            "broken": "perplexity_increase" in broken,
        },
        {
            "name": "top-1 agreement",
            "value": f"{percent(evaluation['top1_agreement'])} ± "
            f"{percent(evaluation['top1_agreement_standard_error'])}",
            "gate": _gate(gates.top1_agreement, "at least {}", percent),
            "broken": "top1_agreement" in broken,
        },
        {
            "name": "KL divergence (nats per token)",
            "value": f"{number(evaluation['kl_divergence'], 3)} ± "
            f"{number(evaluation['kl_divergence_standard_error'], 2)}",
            "gate": _gate(gates.kl_divergence, "at most {}", number),
            "broken": "kl_divergence" in broken,
        },
    ]
    activations = evaluation["activations"]
    rows.append(
        {
            "name": f"largest activation, of {number(activations['limit'])} in "
            f"{activations['dtype']}",
            "value": number(activations["largest"]),
        }
    )
    if "engine_perplexity" in evaluation:
        rows.append(
            {
                "name": "perplexity of the engine",
                "value": number(evaluation["engine_perplexity"]),
                "gate": _gate(gates.perplexity_increase, "at most {} more", percent),
                "broken": bool(broken_by),
            }
        )
    return {
        **evaluation,
        "verdict": "failed" if broken or broken_by else "passed",
        "broken": [*broken.values(), *broken_by.values()],
        "warning": beyond_range(activations),
        "rows": [{"gate": "-", "broken": False, **row} for row in rows],
        "kl_by_window": [w["kl"] / w["tokens"] for w in windows if w["kl"] is not None],
    }


def _gate(limit: float | None, words: str, show: Any) -> str:
    return "-" if limit is None else words.format(show(limit))


def _load(bench: dict[str, Any]) -> dict[str, Any]:
    rows = bench["measurements"]
    best = max(rows, key=lambda row: row["tokens_per_second"])
    kind = "requests" if best["ttft_ms"] is None else "streamed requests"
    return {
        "note": f"{bench['requests']} {kind} of {bench['output_tokens']} tokens per "
        "row, over gRPC, with client, server and engine on this one machine.",
        "rows": rows,
        "best": best["tokens_per_second"],
        "best_streams": streams(best["concurrency"]),
        "bars": [
            (
                streams(row["concurrency"]),
                row["tokens_per_second"],
                f"{number(row['tokens_per_second'])} tokens/s",
            )
            for row in rows
        ],
    }


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
    return dict(json.loads((inputs[stage].path / name).read_text(encoding="utf-8")))


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
