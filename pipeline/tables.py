"""Tables on standard output, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

COLOURS = {"good": "green", "bad": "red", "open": "yellow"}
"""A terminal's colours of what is good, bad, or not known yet."""


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    caption: str = "",
    styles: Mapping[str, str] | None = None,
    whole: Collection[int] = (),
    right: Collection[int] = (),
    lines: bool = False,
) -> None:
    """Prints a table; columns with numbers are aligned to the right.

    Args:
        columns: Headings.
        rows: One value per column each.
        title: Written above.
        caption: Written below.
        styles: Rich's style of a cell by its text.
        whole: Columns, by their numbers, whose cells are never broken.
        right: Columns that are aligned to the right though they hold texts.
        lines: Whether a line is drawn between rows, for cells of several lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        show_lines=lines,
    )
    for index, column in enumerate(columns):
        numeric = index in right or any(isinstance(row[index], int | float) for row in rows)
        table.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=index in whole,
        )
    for row in rows:
        shown = [number(cell) for cell in row]
        table.add_row(*(Text(text, style=(styles or {}).get(text, "")) for text in shown))
    Console().print(table)


def tally(counts: Mapping[str, int]) -> str:
    """Says how many checks ended in which way: ``25 passed, 1 skipped``.

    Args:
        counts: ``passed``, ``failed`` and ``skipped``; other keys are not read. What there is none
            of is left out, except what passed.
    """
    return ", ".join(
        f"{counts[status]} {status}"
        for status in ("passed", "failed", "skipped")
        if counts[status] or status == "passed"
    )


def number(value: object, digits: int = 4) -> str:
    """Formats a value as people read it.

    Args:
        value: Floats get significant digits, thousands are separated, None is a dash.
        digits: How many are significant.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        # What rounding gives another digit would be written with an exponent.
        whole = float(f"{abs(value):.{digits}g}") >= min(1000, 10**digits)
        return f"{value:,.0f}" if whole else f"{value:.{digits}g}"
    return str(value)


def count(amount: int, noun: str) -> str:
    """Formats an amount of something: ``1 document``, ``1,024 documents``."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def size(count: float) -> str:
    """Formats a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def streams(count: int) -> str:
    """Formats a number of streams in words."""
    return "1 stream" if count == 1 else f"{count} streams"


def memory_size(size: int) -> str:
    """Formats bytes in MiB or GiB, as wide as every other such size, so that columns line up."""
    mib, gib = 1 << 20, 1 << 30
    return f"{size / gib:9.2f} GiB" if size >= gib // 10 else f"{size / mib:9.2f} MiB"
