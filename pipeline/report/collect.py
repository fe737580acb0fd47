"""Gathers what the stages measured into one dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.artifacts import read_manifest
from pipeline.recipe import Gates, Recipe
from pipeline.report.render import percent, size
from pipeline.stages.base import Artifact
from pipeline.stages.evaluate import beyond_range
from pipeline.tables import number, streams
from pipeline.toolchain import versions

TOOLS = (
    "nvidia-modelopt",
    "transformers",
    "torch",
    "openvino",
    "openvino-genai",
    "nvidia-pytriton",
    "tritonclient",
)
BYTES_16BIT = 2


def collect(recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        recipe: The recipe.
        inputs: Every artifact of the run, by stage; ``evaluate`` may be absent.
    """
    source, checkpoint = inputs["source"].facts, inputs["quantize"].facts
    engine = _directory_bytes(inputs["compile"].path)
    full = int(source["parameters"]) * BYTES_16BIT
    bench = _read(inputs["bench"].path / "bench.json")
    stages = [_stage(artifact) for artifact in inputs.values()]
    report: dict[str, Any] = {
        "schema": 1,
        "name": recipe.name,
        "version": __version__,
        # Not the time of writing, so that the same artifacts always give the same report.
        "created": max(stage["created"] for stage in stages),
        "machine": bench["machine"],
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "model": {"source": recipe.model.source, "bytes_16bit": full, **source},
        "checkpoint": {
            "format": recipe.quantize.format,
            "share": int(checkpoint["bytes"]) / full,
            **checkpoint,
        },
        "engine": {"target": recipe.compile.target, **inputs["compile"].facts, "bytes": engine},
        "quality": None,
        "load": _load(bench),
        "conformance": _read(inputs["verify"].path / "verify.json"),
        "sizes": [
            ("16 bit", float(full), size(full)),
            ("checkpoint", float(checkpoint["bytes"]), size(checkpoint["bytes"])),
            ("engine", float(engine), size(engine)),
        ],
        "stages": stages,
        "tools": versions(TOOLS),
    }
    if recipe.evaluate:
        evaluation = _read(inputs["evaluate"].path / "evaluation.json")
        report["quality"] = _quality(evaluation, recipe.evaluate.gates)
    return report


def _quality(evaluation: dict[str, Any], gates: Gates) -> dict[str, Any]:
    windows = evaluation.pop("by_window")
    rows = [
        {"name": "perplexity of the source", "value": number(evaluation["source_perplexity"])},
        {"name": "perplexity of the checkpoint", "value": number(evaluation["perplexity"])},
        {
            "name": "perplexity increase",
            "value": f"{percent(evaluation['perplexity_increase'])} ± "
            f"{percent(evaluation['perplexity_increase_standard_error'])}",
            "gate": _gate(gates.perplexity_increase, "at most {}", percent),
        },
        {
            "name": "top-1 agreement",
            "value": f"{percent(evaluation['top1_agreement'])} ± "
            f"{percent(evaluation['top1_agreement_standard_error'])}",
            "gate": _gate(gates.top1_agreement, "at least {}", percent),
        },
        {
            "name": "KL divergence (nats per token)",
            "value": f"{number(evaluation['kl_divergence'], 3)} ± "
            f"{number(evaluation['kl_divergence_standard_error'], 2)}",
            "gate": _gate(gates.kl_divergence, "at most {}", number),
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
            }
        )
    return {
        **evaluation,
        # A report exists only when the gate let the run pass.
        "verdict": "passed",
        "warning": beyond_range(activations),
        "rows": [{"gate": "-", **row} for row in rows],
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


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
