"""Writes what the run found as JSON, Markdown and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.reading.json_text import read_json
from pipeline.stages.base import Deployment, Journal, Stage, StageContext
from pipeline.store.artifact import Artifact

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
    """Adds the other builds of the model that lie beside the output folder.

    They are no part of the artifact, which is made of this run alone and stays cached whatever is
    built beside it.

    Args:
        artifact: The stage's artifact.
        outputs: Where its files go.

    Returns:
        The files' contents by name; nothing where there is no other build.
    """
    from pipeline.report.siblings import siblings_of

    report = read_json(artifact / JSON, finite=False)
    siblings = siblings_of(report, outputs)
    return _files({**report, "siblings": siblings}) if siblings else {}


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
