"""What the command line prints: tables and short lines, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.errors import PipelineError
from pipeline.plan import PlannedStage
from pipeline.progress import Bars, Lines, Progress


def progress_for(json_output: bool) -> Progress:
    """Bars on a terminal, lines in a log; both on stderr so that stdout stays clean."""
    if sys.stderr.isatty() and not json_output:
        return Bars()
    return Lines(sys.stderr)


def print_json(value: object) -> None:
    """Prints a JSON value to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(error: PipelineError, *, json_output: bool) -> None:
    """One paragraph on stderr, or the same facts as JSON on stdout."""
    if json_output:
        print_json(error.as_dict())
    else:
        print(f"error: {error}", file=sys.stderr)


def stage_line(line: PlannedStage, seconds: float | None = None) -> str:
    """One line about a stage: name, what happened or will, key."""
    key = line.key[:12] if line.key else "-" * 12
    if line.status == "cached":
        return f"{line.stage.name:<11} cached  {key}"
    if seconds is None:
        return f"{line.stage.name:<11} {line.status:<6}  {key}  {line.reason}"
    return f"{line.stage.name:<11} done    {key}  {seconds:6.1f} s  ({line.reason})"


def stage_dict(line: PlannedStage, seconds: float | None = None) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "stage": line.stage.name,
        "status": line.status,
        "reason": line.reason,
        "key": line.key,
        "digest": line.artifact.digest if line.artifact else None,
        "path": str(line.artifact.path) if line.artifact else None,
        "seconds": None if seconds is None else round(seconds, 3),
    }


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table on stdout; numbers are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(number(cell) for cell in row))
    Console().print(table)


def number(value: object) -> str:
    """A value as people read it: floats with four significant digits, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
