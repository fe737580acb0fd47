"""Other builds of the same model whose reports lie beside this one's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.formats import NO_QUANT
from pipeline.reading.json_text import read_json
from pipeline.report.collect import SCHEMA
from pipeline.verdict.decision import TONES

REPORT = "report.json"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def siblings_of(report: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Finds finished builds of the same model, and what can be compared of them.

    A neighbour's report that cannot be read, or is of another version, is none of this run's
    concern and is left out; so is one whose run was not finished.

    Args:
        report: The report whose siblings are wanted.
        folder: Where it is; those of its neighbours are looked at.

    Returns:
        One JSON object per build, by name. Its ``increase`` is None where another text was scored,
        its ``speed`` empty where another machine was measured, or another load.
    """
    if report["model"] is None:
        return []
    found = []
    for path in sorted(folder.parent.glob(f"*/{REPORT}")):
        # A pipe of that name would be waited for.
        if path.parent.name == folder.name or not path.is_file():
            continue
        try:
            other = read_json(path, finite=False)
            if _is_sibling(report, other):
                found.append(_row(report, other))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def quantized(checkpoint: Mapping[str, Any]) -> bool:
    """Says whether the linears of a checkpoint are stored in anything but floating point."""
    return checkpoint["quant_algo"] not in (None, NO_QUANT)


def as_point(report: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a report as it describes its siblings."""
    return _row(report, report)


def _is_sibling(report: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (
        other["schema"] == SCHEMA
        and other["verdict"]["status"] != "unfinished"
        and other["checkpoint"] is not None
        and other["model"]["digest"] == report["model"]["digest"]
        and other["verdict"]["verdict"] in TONES
        # What a recipe cannot say goes on no page.
        and all(_WORD.fullmatch(word) for word in (other["name"], other["checkpoint"]["format"]))
    )


def _row(report: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint, quality, load = other["checkpoint"], other["quality"], other["load"]
    comparable = _same_text(report["quality"], quality)
    measured = load["measurements"] if _same_load(report, other) else []
    return {
        "name": str(other["name"]),
        "format": str(checkpoint["format"]),
        "sixteen_bit": not quantized(checkpoint) and not checkpoint["kv_cache_quant_algo"],
        "created": str(other["created"]),
        "verdict": str(other["verdict"]["verdict"]),
        "bytes": int(checkpoint["bytes"]),
        "share": _finite(checkpoint["share"]),
        "increase": _estimate(quality["perplexity_increase"]) if comparable else None,
        "speed": [
            {
                "concurrency": int(row["concurrency"]),
                "tokens_per_second": _estimate(row["tokens_per_second"]),
            }
            for row in measured
        ],
        "memory_bytes": load["memory_bytes"] if measured else None,
    }


def _same_text(own: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether the same tokens were scored: the source model says so, which is the same."""
    if own is None or other is None:
        return False
    mine, theirs = own["source_perplexity"], other["source_perplexity"]
    if mine is None or theirs is None or own["tokens"] != other["tokens"]:
        return False
    return bool(abs(mine - theirs) <= 1e-4 * mine)


def _same_load(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the load test was the same, on an equal machine, for the same kind of engine."""
    if own["load"] is None or other["load"] is None:
        return False
    return bool(
        own["machine"] == other["machine"]
        and own["recipe"]["bench"] == other["recipe"]["bench"]
        and own["engine"]["target"] == other["engine"]["target"]
    )


def _estimate(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: None if values[name] is None else _finite(values[name])
        for name in ("value", "low", "high")
    }


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number
