"""What a page is made of: the same blocks become HTML and Markdown, so that both say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What it says.
        kind: A class that gives it its colour.
        chart: An ``<svg>`` that HTML draws with it.
        code: Whether it is a key or a path.
        note: What else there is to say.
    """

    text: str
    kind: str = ""
    chart: str = ""
    code: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Headings.
        rows: Cells, or their texts; one per column.
        numeric: Which columns are numbers.
        markdown_only: Whether it stands for a figure, which HTML has.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: frozenset[int] = frozenset()
    markdown_only: bool = False
    is_a: ClassVar[str] = "table"

    @property
    def cells(self) -> list[list[Cell]]:
        """Every row as cells."""
        return [
            [cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows
        ]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; ``kind`` is a class that gives it its colour."""

    text: str
    kind: str = ""
    is_a: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Figure:
    """One chart, an ``<svg>``, and what it shows; Markdown has a table or a sentence for it."""

    chart: str
    caption: str


@dataclass(frozen=True)
class Figures:
    """Charts that stand side by side where there is room."""

    figures: Sequence[Figure]
    is_a: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Text:
    """One text of a pair.

    Attributes:
        who: Whose text it is.
        parts: The text in pieces, each with whether the other text of the pair lacks it.
    """

    who: str
    parts: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Pair:
    """Two texts that continue one prompt, and in words how far they are the same."""

    prompt: str
    texts: Sequence[Text]
    caption: str
    is_a: ClassVar[str] = "pair"


@dataclass(frozen=True)
class Code:
    """Text as it is, in lines."""

    text: str
    language: str = ""
    is_a: ClassVar[str] = "code"


Block = Table | Paragraph | Figures | Pair | Code


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        blocks: What it says.
        folded: Whether HTML shows its heading alone until it is opened; always open in print.
    """

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    folded: bool = False


@dataclass(frozen=True)
class Tile:
    """A number of the first screen.

    Attributes:
        label: What it is.
        value: The number.
        detail: Its interval, or what else belongs to it.
        beside: The same number of something else; empty text shows nothing.
        whose: Of what that is.
    """

    label: str
    value: str
    detail: str
    beside: str
    whose: str = "16 bit"
