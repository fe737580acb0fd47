"""Writes what the run found as JSON, Markdown and HTML."""

from __future__ import annotations

import json
from typing import Any

from pipeline.stages.base import Deployment, Journal, Stage, StageContext
from pipeline.store.artifact import Artifact


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``report.json``, ``report.md`` and ``report.html``."""
    from pipeline.report import collect, render_html, render_markdown

    report = collect(context.recipe, context.inputs, context.failure)
    texts = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        "report.md": render_markdown(report),
        "report.html": render_html(report),
    }
    for name, text in texts.items():
        (context.output / name).write_text(text, encoding="utf-8")
    return {"name": context.recipe.name}


def _line(artifact: Artifact) -> dict[str, Any] | None:
    from pipeline.report.history import line

    report = json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))
    return line(artifact.key, report)


STAGE = Stage(
    name="report",
    version=6,
    title="write the report",
    inputs=("source", "quantize", "evaluate", "compile", "repository", "verify", "bench"),
    run=run,
    # The gates and the names a report shows come from all over the recipe.
    section=lambda recipe: recipe.model_dump(mode="json", by_alias=True),
    deployment=Deployment(
        files=("report.json", "report.md", "report.html"),
        journal=Journal("history.jsonl", _line),
    ),
    always=True,
)
