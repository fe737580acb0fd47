"""One line of ``history.jsonl``: what a finished run came to, for the trend over builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.store.digests import digest_of

SCHEMA = 1
UNFINISHED = "UNFINISHED"
_QUALITY = ("perplexity", "perplexity_increase", "kl_divergence", "top1_agreement")
_LOAD = ("concurrency", "tokens_per_second", "ttft_ms", "itl_ms")


def line(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Takes from a report what is worth following over builds.

    Its ``key`` digests the artifacts of the run and the verdict on them: a constraint or a price
    that was changed makes another report and nothing new.

    Args:
        report: The content of ``report.json``.

    Returns:
        JSON values; None for a run that did not get to a verdict.
    """
    verdict = report["verdict"]
    if verdict.get("verdict", UNFINISHED) == UNFINISHED:
        return None
    quality, load = report["quality"], report["load"]
    return {
        "schema": SCHEMA,
        "key": digest_of(
            {
                "artifacts": {stage["name"]: stage["digest"] for stage in report["stages"]},
                "verdict": verdict["verdict"],
            }
        ),
        "created": report["created"],
        "version": report["version"],
        "tools": report["tools"],
        "format": report["recipe"]["quantize"]["format"],
        "machine": report["machine"],
        "verdict": verdict["verdict"],
        "headline": verdict["headline"],
        "size": report["size"],
        "quality": _quality(quality) if quality else None,
        "load": [{name: row[name] for name in _LOAD} for row in load["measurements"]]
        if load
        else [],
        "cost": report["cost"],
    }


def _quality(quality: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # What tells whether two runs scored the same text with the same source model.
        **{name: quality[name] for name in ("tokens", "documents", "source_perplexity")},
        **{name: quality[name] for name in _QUALITY},
        "tasks": [
            {name: task[name] for name in ("name", "rows", "accuracy")}
            for task in quality.get("tasks", ())
        ],
    }
