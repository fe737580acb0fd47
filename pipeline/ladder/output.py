"""A comparison on standard output, as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.ladder.render import TONES
from pipeline.ladder.table import Block, blocks, claims, short, wrong
from pipeline.tables import COLOURS, print_table

STYLES = {verdict: COLOURS[tone] for verdict, tone in TONES.items()}
_GAP = 2
# A longer one stands above its table and not in the corner of it.
_LONG_TITLE = 24
_PAGE = 100


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Prints the table, the claims, why rungs are missing or bad, and the recommendation."""
    for block in blocks(comparison, short):
        for part in _that_fit(block, shutil.get_terminal_size().columns):
            within = len(part.title) < _LONG_TITLE
            if not within:
                print_paragraph(part.title)
            print_table(
                [part.title if within else "", *part.columns],
                [[label, *cells] for label, cells in part.rows],
                caption=part.caption,
                styles=STYLES,
            )
            print()
    _print_reasons(comparison)
    _print_claims(comparison)
    if comparison["recommendation"]:
        print_paragraph(comparison["recommendation"]["reason"])
        print()


def print_history(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Prints the runs of a build; a narrow terminal gets fewer columns, so that none is folded."""
    shown = list(range(len(columns)))
    heads = [name.replace(" change", "\nchange") for name in columns]
    room = shutil.get_terminal_size().columns
    for name in ("perplexity", "KL"):
        widths = [
            max(len(part) for part in (*heads[i].split("\n"), *(row[i] for row in cells)))
            for i in shown
        ]
        if sum(widths) + _GAP * len(widths) <= room:
            break
        shown.remove(columns.index(name))
    print_table([heads[i] for i in shown], [[row[i] for i in shown] for row in cells])


def print_paragraph(text: str, indent: str = "") -> None:
    """Prints text that is broken between words, at the width of the terminal or of a page."""
    width = min(shutil.get_terminal_size().columns, _PAGE)
    print(textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False))


def _print_reasons(comparison: Mapping[str, Any]) -> None:
    bad = wrong(comparison)
    for name, why in bad:
        print_paragraph(f"{name}: {why}", "  ")
    if bad:
        print()


def _print_claims(comparison: Mapping[str, Any]) -> None:
    rows, sources = claims(comparison)
    if not rows:
        return
    print_table(
        ["claimed elsewhere", "", "claim", "here", "source"],
        [row[:5] for row in rows],
    )
    for index, source in enumerate(sources, 1):
        print_paragraph(f"[{index}] {source}", " " * 4)
    print()


def _that_fit(block: Block, width: int) -> Iterator[Block]:
    """Splits a block into as many as it takes for each to be no wider than the terminal."""
    label = max(len(label) for label, _ in block.rows)
    label = max(label, len(block.title) if len(block.title) < _LONG_TITLE else 0)
    widths = [
        max(len(name), *(len(cells[index]) for _, cells in block.rows))
        for index, name in enumerate(block.columns)
    ]
    start = 0
    while start < len(widths):
        end, used = start + 1, label + _GAP + widths[start]
        while end < len(widths) and used + _GAP + widths[end] <= width:
            used += _GAP + widths[end]
            end += 1
        yield _columns(block, start, end)
        start = end


def _columns(block: Block, start: int, end: int) -> Block:
    rows: Sequence[tuple[str, Sequence[str]]] = [
        (label, cells[start:end]) for label, cells in block.rows
    ]
    return Block(block.title, block.columns[start:end], rows, block.caption)
