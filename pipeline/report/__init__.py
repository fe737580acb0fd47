"""The report of a run: one dictionary, shown as JSON, Markdown and a self-contained HTML page."""

from pipeline.report.collect import collect
from pipeline.report.render import render_html, render_markdown

__all__ = ["collect", "render_html", "render_markdown"]
