"""Turns a report's dictionary into Markdown and HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.report.charts import bars, histogram
from pipeline.tables import number, tally

TEMPLATES = Path(__file__).parent


def render_markdown(report: dict[str, Any]) -> str:
    """Renders the report for a terminal or a pull request."""
    return str(_environment(html=False).get_template("report.md.j2").render(report=report))


def render_html(report: dict[str, Any]) -> str:
    """Renders the report as one page that is safe to open and to archive.

    It has no scripts and loads nothing from outside.
    """
    return str(_environment(html=True).get_template("report.html.j2").render(report=report))


def _environment(*, html: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,  # noqa: S701 -- Markdown is not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=percent,
        size=size,
        figure=number,
        spread=spread,
        yaml=as_yaml,
        facts=facts,
        headline=headline,
        tally=tally,
    )
    # The charts escape their own labels.
    environment.globals.update(
        bars=lambda rows: Markup(bars(rows)),  # noqa: S704
        histogram=lambda values, unit, counted: Markup(  # noqa: S704
            histogram(values, unit=unit, counted=counted)
        ),
    )
    return environment


def headline(verdict: dict[str, Any]) -> str:
    """Puts the verdict into a few words."""
    status, stage = verdict["status"], verdict["stage"]
    if status == "unfinished":
        return f"Not finished: {stage} could not be completed"
    return f"Failed at {stage}" if stage else status.capitalize()


def percent(value: float | None, digits: int = 2) -> str:
    """Formats a share as a percentage, 1.0 as 100; a dash for None."""
    return "-" if value is None else f"{value * 100:.{digits}f} %"


def size(count: float) -> str:
    """Formats a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def spread(times: dict[str, float] | None) -> str:
    """Formats median and 95th percentile; a dash when nothing was measured."""
    return "-" if times is None else f"{number(times['p50'])} / {number(times['p95'])}"


def as_yaml(value: object) -> str:
    """Formats JSON values as YAML, in their own order."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=88))


def facts(values: dict[str, object]) -> str:
    """Formats names and values on one line."""
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())
