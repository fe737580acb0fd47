"""Reports and loads of rungs, as the stages write them, with numbers that a hand can check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.ladder.row import row_of, with_load

Est = dict[str, float | None]


def est(value: float | None, low: float | None = None, high: float | None = None) -> Est:
    return {"value": value, "low": low, "high": high}


def report(name: str, format_name: str, **changes: Any) -> dict[str, Any]:
    """A ``report.json`` of schema 3; ``changes`` replace keys of ``quality`` and of the top."""
    quality: dict[str, Any] = {
        "tokens": 20000,
        "documents": 120,
        "source_perplexity": 1.393,
        "perplexity": est(1.3931, 1.385, 1.401),
        "perplexity_increase": est(0.0001, -0.0004, 0.0006),
        "bits_per_byte": est(0.21, 0.2, 0.22),
        "kl_divergence": est(0.0011, 0.001, 0.0012),
        "kl_divergence_p99": est(0.02, 0.018, 0.024),
        "top1_agreement": est(0.95, 0.945, 0.955),
        "tasks": [
            {
                "name": "hellaswag",
                "layout": "hellaswag",
                "rows": 200,
                "chance": 0.25,
                "source_accuracy": 0.4,
                "accuracy": est(0.39, 0.33, 0.45),
                "accuracy_change": est(-0.01, -0.03, 0.01),
            }
        ],
    }
    quality |= {name: changes.pop(name) for name in list(changes) if name in quality}
    load = {
        "measurements": [level(1, 500.0), level(8, 1700.0)],
        "memory_bytes": 300 * 2**20,
        "prefill_tokens_per_second": est(9000.0, 8800.0, 9200.0),
        "decode_tokens_per_second": est(700.0, 690.0, 710.0),
    }
    return {
        "schema": 3,
        "name": name,
        "version": "0.1.0",
        "created": "2026-05-01T10:00:00Z",
        "verdict": {
            "verdict": "ACCEPT",
            "headline": "Accepted: every gate is kept",
            "status": "passed",
            "reasons": [],
        },
        "gates": [],
        "machine": {"processor": "a processor", "architecture": "x86_64", "cpus": 2},
        "recipe": {"quantize": {"format": format_name}},
        "model": {"parameters": 3_700_000},
        "size": {
            "bytes_16bit": 7_400_000,
            "checkpoint_bytes": 2_775_000,
            "engine_bytes": 2_900_000,
            "share": 0.375,
        },
        "quality": quality,
        "fidelity": None,
        "load": load,
        "cost": None,
        "tools": {"torch": "2.9"},
        "stages": [{"name": "evaluate", "key": "k", "digest": "d"}],
        **changes,
    }


def level(
    concurrency: int,
    speed: float,
    *,
    ratio: Est | None = None,
    difference: bool = False,
    rounds: Sequence[float] = (),
    ttft: float = 20.0,
) -> dict[str, Any]:
    """One level of a ``bench.json``, or of a server of an interleaved run."""
    times = {"mean": ttft, "p50": ttft, "p95": 2 * ttft, "p99": 3 * ttft, "max": 4 * ttft}
    return {
        "concurrency": concurrency,
        "requests": 16,
        "seconds": 10.0,
        "tokens_per_second": est(speed, speed * 0.97, speed * 1.03),
        "ttft_ms": times,
        "itl_ms": {**times, "p50": ttft / 8},
        "latency_ms": times,
        "by_round": list(rounds) or [speed] * 4,
        "prefill_tokens_per_second": est(5000.0, 4900.0, 5100.0),
        "decode_tokens_per_second": est(speed * 1.2, speed * 1.1, speed * 1.3),
        "ratio": ratio,
        "difference": difference,
    }


def rung(format_name: str, levels: Sequence[dict[str, Any]] = (), **changes: Any) -> dict[str, Any]:
    """A row as a ladder has it, loaded with ``levels``."""
    row = row_of(report(f"t-{format_name}", format_name, **changes))
    measured = {"measurements": list(levels), "prefill_tokens_per_second": None}
    return with_load(row, measured)


def save(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
