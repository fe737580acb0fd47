"""What is printed of a stage: a line for people, the same facts as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.report.words import count, size
from pipeline.running.planner import PlannedStage
from pipeline.tables import number, streams, tally
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.words import measured_words

Facts = Mapping[str, Any]
SHORT = 12
"""Digits of a key that tell artifacts apart for people."""


def _measured(quality: Facts) -> Iterable[str]:
    for name in ("perplexity_increase", "top1_agreement"):
        if name in quality:
            value = quality[name]["value"]
            yield measured_words(name, "checkpoint", Estimate(value), None)


def _source(facts: Facts) -> Iterable[str]:
    millions = facts["parameters"] / 1e6
    amount = f"{millions:.1f} M" if millions < 1000 else f"{millions / 1000:.1f} B"
    return facts["architecture"], f"{amount} parameters", size(facts["bytes"])


def _quantize(facts: Facts) -> Iterable[str]:
    if algorithm := facts["quant_algo"]:
        yield algorithm
    yield size(facts["bytes"])
    if facts["ranks"] > 1:
        yield count(facts["ranks"], "rank")


def _fidelity(facts: Facts) -> Iterable[str]:
    if other := facts.get("against_checkpoint"):
        yield "against the checkpoint " + ", ".join(_measured(other))


def _bench(facts: Facts) -> Iterable[str]:
    if measured := facts["measurements"]:
        speed = measured[-1]["tokens_per_second"]["value"]
        yield f"{number(speed)} tokens/s at {streams(measured[-1]['concurrency'])}"


RESULTS: Mapping[str, Callable[[Facts], Iterable[str]]] = {
    "source": _source,
    "quantize": _quantize,
    "evaluate": _measured,
    "compile": lambda facts: [size(facts["engine_bytes"])],
    "fidelity": _fidelity,
    "repository": lambda facts: [count(len(facts["models"]), "model"), size(facts["bytes"])],
    "verify": lambda facts: [tally(facts)],
    "bench": _bench,
    "report": lambda _facts: [],
}
"""What came of a stage, in a few words each, from the facts of its artifact."""


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
    return ", ".join(RESULTS[planned.stage.name](planned.artifact.facts))


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
