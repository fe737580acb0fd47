"""What a build gave beside 16 bit, where ``compare`` loaded both in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.reading.json_text import read_json

COMPARISON = "compare.json"
SIXTEEN = 16


def beside_16_bit(folder: Path, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Finds the interleaved run of a build and of 16 bit that ``compare`` left in a folder.

    Args:
        folder: Of the build.
        report: Its ``report.json``.

    Returns:
        JSON values: ``created``, ``baseline`` (the format of 16 bit) and ``levels``, a row for each
        number of streams: ``concurrency``, ``tokens_per_second`` and ``baseline_tokens_per_second``
        (estimates), and ``ratio``, the former over the latter in pairs of one round. None where
        nothing was compared, this build is 16 bit itself, or it was built anew since.
    """
    path = folder / COMPARISON
    if not path.is_file():
        return None
    try:
        return _found(read_json(path, finite=False), report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # a file that was cut or changed compares nothing


def _found(compared: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any] | None:
    rungs = {rung["name"]: rung for rung in compared["rungs"]}
    base = rungs.get(compared["baseline"])
    own = next((rung for rung in rungs.values() if _is(rung, report)), None)
    if compared["load"] is None or base is None or own is None or own is base:
        return None
    if base["weight_bits"] != SIXTEEN:
        return None
    beside = {level["concurrency"]: level["tokens_per_second"] for level in base["load"]}
    levels = [
        {
            "concurrency": int(level["concurrency"]),
            "tokens_per_second": _estimate(level["tokens_per_second"]),
            "baseline_tokens_per_second": _estimate(beside[level["concurrency"]]),
            "ratio": _estimate(level["ratio"]),
        }
        for level in own["load"]
        if level["ratio"] is not None and level["concurrency"] in beside
    ]
    if not levels:
        return None
    return {
        "created": str(compared["load"]["created"]),
        "baseline": str(base["format"]),
        "levels": levels,
    }


def _is(rung: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
    """Whether a rung is this build: the same format, and files of the same size and quality."""
    quality = report["quality"]
    return bool(
        rung["format"] == report["recipe"]["quantize"]["format"]
        and rung["checkpoint_bytes"] == report["size"]["checkpoint_bytes"]
        and rung["perplexity"] == (quality["perplexity"] if quality else None)
    )


def _estimate(values: Mapping[str, Any]) -> dict[str, float | None]:
    known = {name: values[name] for name in ("value", "low", "high")}
    if any(number is not None and not math.isfinite(number) for number in known.values()):
        raise ValueError(values)
    return known
