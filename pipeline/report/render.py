"""Turns a report's dictionary into Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.report.page import page_of

TEMPLATES = Path(__file__).parent
# What Markdown, and the HTML within it, would take for its own.
_MARKS = re.compile(r"([`*\[\]<|]|\\(?=[^\w\s])|(?<!\w)_|_(?!\w)|~(?=~))")


def render_markdown(report: Mapping[str, Any]) -> str:
    """Renders the report for a terminal or a pull request."""
    text = str(environment(html=False).get_template("report.md.j2").render(**page_of(report)))
    return re.sub(r"\n{3,}", "\n\n", text)


def render_html(report: Mapping[str, Any]) -> str:
    """Renders the report as one page that is safe to open and to archive.

    It has no scripts and loads nothing from outside.
    """
    return str(environment(html=True).get_template("report.html.j2").render(**page_of(report)))


@cache
def environment(*folders: Path, html: bool) -> Any:
    """Returns what renders the templates of this folder, and those of others that look alike.

    Args:
        folders: Others, which come first.
        html: Whether values are escaped for HTML.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=html,  # noqa: S701 -- Markdown is not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # The charts escape their own labels.
    made.filters.update(plain=as_markdown, fence=fence, drawn=Markup, tight=tight)
    return made


def as_markdown(text: str) -> str:
    """Writes text so that Markdown shows it as it is, on one line."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def tight(text: str) -> str:
    """Keeps a percentage and its sign on one line."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


def fence(text: str) -> str:
    """Returns backticks that are more than any in the text, to put around it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(longest + 1, 3)
