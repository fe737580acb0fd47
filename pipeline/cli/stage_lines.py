"""What is printed of a stage: a line for people, the same facts as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.running.planner import PlannedStage
from pipeline.tables import count, number, size, streams
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.words import measured_words

Facts = Mapping[str, Any]
Rows = tuple[tuple[str, Callable[[Any], str]], ...]
SHORT = 12
"""Digits of a key that tell artifacts apart for people."""
RESULT = 44
"""The column in which what came of a stage begins."""


def _parameters(amount: int) -> str:
    millions = amount / 1e6
    return (
        f"{millions:.1f} M parameters" if millions < 1000 else f"{millions / 1000:.1f} B parameters"
    )


def _estimate(name: str) -> Callable[[Facts], str]:
    return lambda found: measured_words(name, "checkpoint", Estimate(found["value"]), None)


def _against(quality: Facts) -> str:
    return "against the checkpoint " + ", ".join(_words(QUALITY, quality))


def _fastest(measurements: Sequence[Facts]) -> str:
    if not measurements:
        return ""
    fastest = max(measurements, key=lambda level: level["tokens_per_second"]["value"])
    speed = number(fastest["tokens_per_second"]["value"])
    return f"{speed} tokens/s at {streams(fastest['concurrency'])}"


def _tally(status: str) -> Callable[[int], str]:
    return lambda amount: f"{amount} {status}" if amount else ""


QUALITY: Rows = tuple((name, _estimate(name)) for name in ("perplexity_increase", "top1_agreement"))
RESULTS: Mapping[str, Rows] = {
    "source": (("architecture", str), ("parameters", _parameters), ("bytes", size)),
    "quantize": (
        ("quant_algo", str),
        ("bytes", size),
        ("ranks", lambda ranks: count(ranks, "rank") if ranks > 1 else ""),
    ),
    "evaluate": QUALITY,
    "compile": (("engine_bytes", size),),
    "fidelity": (("against_checkpoint", _against),),
    "repository": (("models", lambda models: count(len(models), "model")), ("bytes", size)),
    "verify": tuple((status, _tally(status)) for status in ("passed", "failed", "skipped")),
    "bench": (("measurements", _fastest),),
    "report": (),
}
"""What came of a stage: which facts of its artifact are told, and how."""


def _words(rows: Rows, facts: Facts) -> Iterator[str]:
    """What rows make of facts; those that are not there, or are None, are left out."""
    for name, tell in rows:
        if (value := facts.get(name)) is not None and (words := tell(value)):
            yield words


def stage_line(
    planned: PlannedStage, seconds: float | None = None, *, verbose: bool = False
) -> str:
    """Formats a stage: name, what happened or will, key, and why it will or what came of it.

    Args:
        planned: The stage.
        seconds: How long it took; None where it is only planned.
        verbose: With the whole key, the result of a cached stage too, and where the artifact is.
    """
    key = "-" * SHORT
    if planned.key:
        key = planned.key if verbose else planned.key[:SHORT]
    done = seconds is not None and planned.status != "cached"
    parts = [f"{planned.stage.name:<11} {'done' if done else planned.status:<6}  {key}"]
    if done:
        parts.append(f"{seconds:6.1f} s")
    if seconds is None and planned.reason:
        parts.append(planned.reason)
    if planned.artifact and (done or verbose) and (came := result_words(planned)):
        parts.append(came)
    line = "  ".join(parts)
    return f"{line}\n  {planned.artifact.path}" if verbose and planned.artifact else line


def result_words(planned: PlannedStage) -> str:
    """Says what came of a stage that has an artifact: ``W4A16_AWQ, 2.6 MiB``."""
    assert planned.artifact
    return ", ".join(_words(RESULTS.get(planned.stage.name, ()), planned.artifact.facts))


def stage_dict(planned: PlannedStage, seconds: float | None = None) -> dict[str, Any]:
    """Returns the same as JSON values."""
    return {
        "stage": planned.stage.name,
        "status": planned.status,
        "reason": planned.reason,
        "key": planned.key,
        "digest": planned.artifact.digest if planned.artifact else None,
        "path": str(planned.artifact.path) if planned.artifact else None,
        "seconds": None if seconds is None else round(seconds, 3),
    }
