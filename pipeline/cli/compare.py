"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Output


def compare(
    *,
    reports: Annotated[
        list[Path],
        typer.Argument(help="report.json files, folders that hold one, or a build directory."),
    ],
    output: Output,
) -> None:
    """Put the reports of several recipes side by side."""
    from pipeline.cli.comparison import comparison, print_side_by_side
    from pipeline.cli.console import print_json

    rows = comparison(reports)
    if output.json:
        print_json(rows)
    else:
        print_side_by_side(rows)
