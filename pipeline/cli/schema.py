"""The command that documents the recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Output
from pipeline.errors import UsageError


def schema(
    *,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a page of tables, docs/recipe.md.")
    ] = False,
    output: Output,
) -> None:
    """Print the JSON schema of recipes: every key, its type, default and meaning."""
    from pipeline.recipe.docs import page_text, schema_text

    if markdown and output.json:
        raise UsageError("--markdown does not print JSON", fix="Leave --markdown or --json out")
    print(page_text() if markdown else schema_text(), end="")
