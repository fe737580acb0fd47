"""A small build whose load test has round figures, so that limits can be computed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.manifests.build import read_build
from pipeline.manifests.deployed import Deployed, describe
from pipeline.manifests.values import Values
from pipeline.store.artifact import SCHEMA

DIGEST = "0123456789abcdef" * 4

LEVEL: Mapping[str, Any] = {
    "concurrency": 8,
    "requests": 100,
    "input_tokens": 100 * 300,
    "output_tokens": 100 * 84,
    "seconds": 10.0,
    "tokens_per_second": {"value": 840.0, "low": 800.0, "high": 880.0},
    "requests_per_second": 10.0,
    "ttft_ms": {"mean": 60.0, "p50": 50.0, "p95": 100.0, "p99": 110.0, "max": 120.0},
    "itl_ms": {"mean": 2.0, "p50": 2.0, "p95": 3.0, "p99": 4.0, "max": 5.0},
    "latency_ms": {"mean": 300.0, "p50": 280.0, "p95": 400.0, "p99": 500.0, "max": 600.0},
}
"""300 tokens in and 84 out are 384, which are 12 blocks of 32."""
SLOWER: Mapping[str, Any] = {
    **LEVEL,
    "concurrency": 1,
    "tokens_per_second": {"value": 200.0, "low": None, "high": None},
}


def report(**changed: Any) -> dict[str, Any]:
    """A report, with some of its parts changed."""
    return {
        "name": "story",
        "recipe": {
            "name": "story",
            "compile": {"max_batch_size": 32, "max_seq_len": 512, "tokens_per_block": 32},
            "serve": {"max_queue_size": 256},
            "constraints": {},
            "cost": {"price_per_hour": None, "currency": "EUR"},
        },
        "load": {"measurements": [SLOWER, LEVEL]},
        "stages": [{"name": "repository", "digest": DIGEST}],
        **changed,
    }


def build_at(folder: Path, content: Mapping[str, Any] | None) -> Path:
    """Writes what is read of a build; returns its repository.

    Args:
        folder: A new folder's name is the build's.
        content: The report; None for none.
    """
    repository = folder / "story" / "repository"
    engine = repository / "tensorrt_llm" / "1" / "engine"
    engine.mkdir(parents=True)
    sizes = {"max_seq_len": 512, "max_batch_size": 32}
    config = {
        "build_config": sizes,
        "pretrained_config": {"mapping": {"tp_size": 1, "pp_size": 1}},
    }
    (engine / "config.json").write_text(json.dumps(config))
    manifest = {
        "schema": SCHEMA,
        "digest": DIGEST,
        "created": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
        "facts": {"bytes": 1000, "target": "openvino"},
        "files": {},
    }
    (repository / "artifact.json").write_text(json.dumps(manifest))
    if content is not None:
        (repository.parent / "report.json").write_text(json.dumps(content))
    return repository


def deployed(
    folder: Path, content: Mapping[str, Any] | None, *, gpus: int = 0, **values: Any
) -> Deployed:
    """Describes a deployment of such a build.

    Args:
        folder: Where the build is written.
        content: Its report.
        gpus: Of each pod.
        values: What was chosen.
    """
    found = describe(
        read_build(build_at(folder, content)), Values.model_validate(values, by_name=True)
    )
    return replace(found, layout=replace(found.layout, gpus=gpus))
