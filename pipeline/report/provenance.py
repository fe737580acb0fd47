"""The sections of a report on where its numbers come from: checks, stages, tools, recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.report.blocks import Block, Cell, Code, Paragraph, Section, Table
from pipeline.report.words import as_yaml, duration
from pipeline.tables import tally

_KINDS = {"passed": "good", "failed": "bad", "skipped": "open"}
_SHOWN = 16


def conformance_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields every check, folded when none failed."""
    conformance = report["conformance"]
    if conformance is None:
        return
    rows = [
        (
            check["name"],
            Cell(check["status"], _KINDS[check["status"]]),
            f"{check['proves']}{': ' if check['reason'] else ''}{check['reason'] or ''}",
        )
        for check in conformance["checks"]
    ]
    said = f"Against {conformance['server']}, over gRPC, on the repository that was built."
    blocks = (Paragraph(said), Table(("check", "result", "what it proves"), rows))
    title = f"Conformance: {tally(conformance)}"
    yield Section(title, blocks, folded=not conformance["failed"])


def provenance_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields the chain of stages with their keys and digests, and the tools."""
    verdict = report["verdict"]
    rows: list[tuple[Cell | str, ...]] = []
    for stage in report["stages"]:
        failed = stage["name"] == verdict["stage"]
        rows.append(
            (
                Cell(f"{stage['name']}{', failed' if failed else ''}", "bad" if failed else ""),
                duration(stage["seconds"]),
                Cell(stage["key"][:_SHOWN], code=True),
                Cell(stage["digest"][:_SHOWN], code=True),
            )
        )
    if verdict["stage"] and verdict["stage"] not in {stage["name"] for stage in report["stages"]}:
        rows.append((Cell(verdict["stage"]), "-", Cell("failed", "bad"), ""))
    rows += [(Cell(name), "-", Cell("not reached", "soft"), "") for name in verdict["unreached"]]
    said = (
        f"The stages took {duration(report['seconds'])} when they were made; those that a later "
        "run finds in the store take no time. A key covers everything that decides a stage's "
        "bytes, a digest the bytes."
    )
    blocks: list[Block] = [
        Paragraph(said),
        Table(("stage", "time", "key", "digest"), rows, frozenset({1})),
    ]
    model = report["model"]
    if model:
        source = f"Source: {model['source']}"
        source += f", commit {model['commit']}" if model["commit"] else ""
        blocks.append(Paragraph(f"{source}, digest {model['digest']}."))
        if model["unread_keys"]:
            keys = ", ".join(model["unread_keys"])
            blocks.append(Paragraph(f"Nobody reads these keys of its config.json: {keys}."))
    tools = ", ".join(f"{name} {version}" for name, version in report["tools"].items())
    blocks.append(Paragraph(f"Tools: trtllm-pipeline {report['version']}, {tools}.", "soft"))
    yield Section("Where this comes from", tuple(blocks))


def recipe_section(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yields the recipe."""
    yield Section("Recipe", (Code(as_yaml(report["recipe"]), "yaml"),), folded=True)
