"""Puts the parts of a report in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report import overview, provenance, quality, serving
from pipeline.report.blocks import Section
from pipeline.verdict.decision import TONES

SECTIONS = (
    quality.completions_section,
    quality.gates_section,
    serving.siblings_section,
    quality.quality_sections,
    serving.size_section,
    serving.load_section,
    serving.cost_section,
    provenance.conformance_section,
    provenance.provenance_section,
    provenance.recipe_section,
)


def page_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Makes what both templates show of a report: its first screen and its sections."""
    sections: list[Section] = [section for part in SECTIONS for section in part(report)]
    return {
        "name": report["name"],
        "verdict": report["verdict"],
        "reasons": overview.reasons(report),
        "tone": TONES[report["verdict"]["verdict"]],
        "about": overview.about(report),
        "tiles": overview.tiles(report),
        "sections": sections,
    }
