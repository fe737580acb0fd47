"""Writes what the run found as JSON, Markdown and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.reading.json_text import read_json
from pipeline.stages.base import Deployment, Journal, Stage, StageContext
from pipeline.store.artifact import Artifact
from pipeline.store.files import write_atomically

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``report.json``, ``report.md`` and ``report.html``."""
    from pipeline.report import collect

    report = collect(context.recipe, context.inputs, context.failure)
    for name, content in _files(report).items():
        (context.output / name).write_bytes(content)
    return {"name": context.recipe.name}


def _line(artifact: Artifact) -> dict[str, Any] | None:
    from pipeline.report.history import line

    return line(read_json(artifact.path / JSON, finite=False))


def finish(artifact: Path, outputs: Path) -> Mapping[str, bytes]:
    """Adds what lies in and beside the output folder: other builds of the model, what ``compare``
    measured of this one beside 16 bit, and what ``capacity --report`` computed.

    They are no part of the artifact, which is made of this run alone and stays cached whatever is
    built beside it.

    Args:
        artifact: The stage's artifact.
        outputs: Where its files go.

    Returns:
        The files' contents by name; nothing where there is none of these.
    """
    report = read_json(artifact / JSON, finite=False)
    added = _added(report, outputs)
    return _files({**report, **added}) if added else {}


def _added(report: Mapping[str, Any], outputs: Path) -> dict[str, Any]:
    from pipeline.economics.capacity.kept import kept_capacity
    from pipeline.economics.interleaved import beside_16_bit
    from pipeline.report.siblings import siblings_of

    found = {
        "siblings": siblings_of(report, outputs),
        "sixteen_bit": beside_16_bit(outputs, report),
        "capacity": kept_capacity(outputs, report),
    }
    return {name: value for name, value in found.items() if value}


def write_again(outputs: Path, report: Mapping[str, Any]) -> None:
    """Writes a deployed report again, with what lies in and beside its folder by now.

    Args:
        outputs: The folder.
        report: Its ``report.json``.

    Raises:
        OSError: The folder cannot be written.
    """
    for name, content in _files({**report, **_added(report, outputs)}).items():
        write_atomically(outputs / name, content)


def _files(report: Mapping[str, Any]) -> dict[str, bytes]:
    from pipeline.report import render_html, render_markdown

    texts = {
        JSON: json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        MARKDOWN: render_markdown(report),
        HTML: render_html(report),
    }
    # A text to evaluate may hold half a surrogate pair, which UTF-8 cannot.
    return {name: text.encode("utf-8", "replace") for name, text in texts.items()}


STAGE = Stage(
    name="report",
    version=10,
    title="write the report",
    inputs=(
        *("source", "quantize", "evaluate", "compile", "fidelity"),
        *("repository", "verify", "bench"),
    ),
    run=run,
    # The gates and the names a report shows come from all over the recipe.
    section=lambda recipe: recipe.model_dump(mode="json", by_alias=True),
    deployment=Deployment(
        files=(JSON, MARKDOWN, HTML), finish=finish, journal=Journal("history.jsonl", _line)
    ),
    always=True,
)
