"""Builds to write manifests of: engines that say their sizes, and reports of what was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from pipeline.manifests.build import read_build
from pipeline.manifests.choosing import read_values
from pipeline.manifests.deployed import Deployed, describe
from pipeline.manifests.kinds import writer_of
from pipeline.store.digests import digest_of
from pipeline.targets.tensorrt.build.engine import write_manifest
from pipeline.targets.tensorrt.toolchain import TENSORRT, TENSORRT_LLM

ENGINE = "tensorrt_llm/1/engine"


def write_build(  # noqa: PLR0917
    folder: Path,
    target: str = "openvino",
    tp: int = 1,
    pp: int = 1,
    report: dict[str, Any] | None = None,
    sizes: tuple[int, int] = (512, 32),
) -> Path:
    """A build's folder; returns its repository.

    Args:
        folder: ``build/NAME``.
        target: Its compile target.
        tp: Ranks that share each layer.
        pp: Groups of layers.
        report: What is in report.json beside the stages; None writes none.
        sizes: Tokens of a sequence, and sequences of a batch.
    """
    repository = folder / "repository"
    engine = repository / ENGINE
    engine.mkdir(parents=True)
    config = {
        "build_config": {"max_seq_len": sizes[0], "max_batch_size": sizes[1]},
        "pretrained_config": {"mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp}},
    }
    (engine / "config.json").write_text(json.dumps(config))
    if target == "tensorrt":
        bound = {"gpu": {"name": "NVIDIA L40S", "sm": 89}, "container": None}
        versions = {"tensorrt_llm": TENSORRT_LLM, "tensorrt": TENSORRT}
        write_manifest(engine, {**bound, **versions})
    (repository / "ensemble").mkdir()
    (repository / "ensemble/config.pbtxt").write_text('name: "ensemble"\n')
    digest = seal(repository, target)
    if report is not None:
        stages = [{"name": "repository", "digest": digest}]
        (folder / "report.json").write_text(json.dumps({"stages": stages, **report}))
    return repository


def seal(repository: Path, target: str) -> str:
    """Writes the manifest of what is there; returns the digest."""
    listed = {
        path.relative_to(repository).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }
    facts = {"target": target, "bytes": sum(entry["bytes"] for entry in listed.values())}
    digest = digest_of({"files": listed, "facts": facts})
    manifest = {
        "schema": 1,
        "digest": digest,
        "created": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
        "facts": facts,
        "files": listed,
    }
    (repository / "artifact.json").write_text(json.dumps(manifest))
    return digest


def measured_report(
    ready: float | None = 20.0, streams: int = 8, p95: float = 2.5, **more: Any
) -> dict[str, Any]:
    """A report of a server that loaded in so many seconds, and of its load test."""
    return {
        "conformance": {"ready_seconds": ready},
        "machine": {"cpus": 2},
        "load": {
            "memory_bytes": 400 << 20,
            "measurements": [
                {
                    "concurrency": 1,
                    "itl_ms": {"p95": 1.0},
                    "tokens_per_second": {"value": 700.0},
                },
                {
                    "concurrency": streams,
                    "itl_ms": {"p95": p95},
                    "tokens_per_second": {"value": 2000.0},
                },
            ],
        },
        **more,
    }


def deployed(repository: Path, *overrides: str) -> Deployed:
    """What is deployed of it, with values as ``--set`` takes them."""
    return describe(read_build(repository), read_values(None, overrides, {}))


def files_of(repository: Path, kind: str, *overrides: str) -> dict[str, str]:
    return dict(writer_of(kind)(deployed(repository, *overrides)))


def objects_of(repository: Path, *overrides: str) -> list[dict[str, Any]]:
    """The plain manifests, parsed."""
    files = files_of(repository, "kubernetes", *overrides)
    return [
        document
        for path, text in files.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
    ]


def one(objects: list[dict[str, Any]], kind: str, ending: str = "") -> dict[str, Any]:
    """The object of a kind whose name ends so."""
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(ending))
    return found
