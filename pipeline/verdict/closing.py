"""The last lines of a run: what came of it, for people who look at a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tables import memory_size, number, streams, tally
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.gate import GateResult
from pipeline.verdict.words import MEASURES, interval, measured_words, size_words

# Beside every gate that is not open.
_ALWAYS = ("perplexity_increase", "top1_agreement")
LABEL = 13
"""Columns of a line's name, with the space behind it."""
REPORT, NEXT, EXPORTED = "report", "next", "export"
WHOLE = (REPORT, NEXT, EXPORTED, "")
"""The lines with something to copy, which are never broken."""


def closing_lines(
    report: Mapping[str, Any],
    *,
    page: Path | None = None,
    repository: Path | None = None,
    earlier: Path | None = None,
    export: Path | None = None,
    steps: Sequence[str] = (),
) -> list[str]:
    """Sums a report up in about six lines, the verdict first.

    Args:
        report: ``report.json``; parts that are None or missing were not reached.
        page: Where the report lies for people; None leaves the line out.
        repository: Where what may be served lies; None names no next command.
        earlier: Where what an earlier run deployed still lies; None says nothing of it.
        export: Where what another program runs lies; None where the build is served.
        steps: How it is run, as lines of shell.
    """
    rows = [
        ("verdict", report["verdict"]["headline"]),
        ("size", _size(report.get("size"))),
        ("quality", _quality(report, "checkpoint", report.get("quality"))),
    ]
    if tasks := (report.get("quality") or {}).get("tasks"):
        rows.append(("tasks", ", ".join(_task(task) for task in tasks)))
    if any(gate["subject"] == "engine" for gate in report.get("gates") or ()):
        rows.append(("compiled", _quality(report, "engine", report.get("fidelity"))))
    served = report.get("conformance")
    if export is None:
        rows += [
            ("conformance", tally(served) if served else "not reached"),
            ("speed", _speed(report.get("load"))),
        ]
    rows += [
        ("time", f"{report['seconds']:.1f} s of work in {len(report['stages'])} stages"),
    ]
    if page:
        rows.append((REPORT, str(page)))
    if export:
        rows.append((EXPORTED, str(export)))
    rows += [(NEXT if not index else "", step) for index, step in enumerate(steps)]
    if repository:
        rows.append((NEXT, f"trtllm-pipeline serve {shlex.quote(str(repository))}"))
    if earlier:
        rows.append(("repository", f"{earlier} is that of an earlier run"))
    return [f"{name + ':' if name else '':<{LABEL}}{text}" for name, text in rows]


def _size(size: Mapping[str, Any] | None) -> str:
    if not size or not size.get("checkpoint_bytes"):
        return "not reached"
    written, full = memory_size(size["checkpoint_bytes"]), memory_size(size["bytes_16bit"])
    return f"{written.strip()}, {size_words(size['share'])} ({full.strip()})"


def _quality(report: Mapping[str, Any], subject: str, measured: Mapping[str, Any] | None) -> str:
    results = [
        result
        for result in (GateResult.from_dict(gate) for gate in report.get("gates") or ())
        if result.subject == subject and result.name in MEASURES
    ]
    # Whether an engine follows its checkpoint says what the checkpoint's line does not.
    own = [result for result in results if not result.name.startswith("engine_")]
    compiled = [result for result in results if result not in own]
    parts = {
        "against the checkpoint ": _shown(compiled, always=True),
        "against the source " if compiled else "": _shown(own, always=not compiled),
    }
    if any(parts.values()):
        return "; ".join(f"{what}{words}" for what, words in parts.items() if words)
    if measured is None:
        return "not measured"
    # No gate is set for them: the numbers stand alone.
    return ", ".join(
        measured_words(name, "checkpoint", Estimate.from_dict(measured[name]), None)
        for name in _ALWAYS
        if measured.get(name)
    )


def _shown(results: Sequence[GateResult], *, always: bool) -> str:
    """The numbers that are always told, where they are, and those that are not accepted."""
    shown = []
    for result in results:
        name = result.name.removeprefix("engine_")
        if (always and name in _ALWAYS) or result.verdict != "ACCEPT":
            words = measured_words(name, "checkpoint", result.estimate, result.limit)
            shown.append(words if result.verdict == "ACCEPT" else f"{words} {result.verdict}")
    return ", ".join(shown)


def _task(task: Mapping[str, Any]) -> str:
    """Accuracies in points of 100, as people compare them."""
    name, right = task["name"], Estimate.from_dict(task["accuracy"])
    shown = interval(right, lambda value: f"{value * 100:.1f}")
    return f"{name} {shown} % of {task['rows']:,} (source {task['source_accuracy'] * 100:.1f} %)"


def _per_second(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else number(float(value), 3)


def best_measurement(load: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the measurement of a load test with the most tokens per second."""
    return dict(max(load["measurements"], key=lambda row: row["tokens_per_second"]["value"] or 0.0))


def _speed(load: Mapping[str, Any] | None) -> str:
    if not load:
        return "not reached"
    best = best_measurement(load)
    speed = interval(Estimate.from_dict(best["tokens_per_second"]), _per_second)
    return f"{speed} tokens/s at {streams(best['concurrency'])}"
