"""A build as the manifests read it, with nothing in it but what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.manifests.build import Build
from pipeline.triton.parameters import ENGINE_DIR
from pipeline.triton.tensors import ENGINE

LOAD: dict[str, Any] = {
    "measurements": [
        {"concurrency": 1, "itl_ms": {"p95": 9.0}, "tokens_per_second": {"value": 100.0}},
        {"concurrency": 8, "itl_ms": {"p95": 25.0}, "tokens_per_second": {"value": 300.0}},
    ]
}


def write_build(
    folder: Path,
    *,
    load: dict[str, Any] | None = LOAD,
    queue: str | None = "64",
    batch: int = 32,
    tokens: int = 2048,
    ranks: int = 1,
) -> Build:
    """Writes the two files of a repository that say its sizes, and describes it."""
    engine = folder / ENGINE_DIR
    engine.mkdir(parents=True)
    config = {
        "build_config": {"max_batch_size": batch, "max_seq_len": tokens},
        "pretrained_config": {"mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1}},
    }
    (engine / "config.json").write_text(json.dumps(config))
    parameters = (
        f'parameters {{ key: "max_queue_size" value {{ string_value: "{queue}" }} }}'
        if queue is not None
        else ""
    )
    (folder / ENGINE / "config.pbtxt").write_text(f'name: "{ENGINE}"\n{parameters}\n')
    report = {} if load is None else {"load": load}
    return Build("story", folder, "ab" * 32, 1 << 20, "openvino", report)
