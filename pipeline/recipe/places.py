"""Where each key of a recipe was set: a line of the file, or the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Place:
    """Where a key was set.

    Attributes:
        line: ``file:line``, or the option as it was typed.
        column: ``file:line:column``, counted from 1, or the option again.
        order: Sorts places as a reader meets them: the file's first, then the options.
        override: Whether it is an option.
    """

    line: str
    column: str
    order: tuple[int, int]
    override: bool = False

    @classmethod
    def option(cls, override: str, index: int) -> Place:
        """Makes the place of a ``--set``, the ``index``-th of its command."""
        text = f"--set {override}"
        return cls(text, text, (1 << 30, index), override=True)


def places_in(tree: yaml.Node | None, path: Path) -> dict[str, Place]:
    """Finds the place of every dotted key of a YAML document; those of a list have numbers."""
    found = {}
    for key, mark in _marks(tree):
        line, column = mark.line + 1, mark.column + 1
        found[key] = Place(f"{path}:{line}", f"{path}:{line}:{column}", (line, column))
    return found


def _marks(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, yaml.Mark]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            yield key, key_node.start_mark
            yield from _marks(value_node, f"{key}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, element in enumerate(node.value):
            yield f"{prefix}{index}", element.start_mark
            yield from _marks(element, f"{prefix}{index}.")


def place_of(key: str, places: Mapping[str, Place]) -> Place | None:
    """Finds where a dotted key was set, or else one below it, or the nearest that encloses it."""
    below = [place for name, place in places.items() if name.startswith(f"{key}.")]
    if key not in places and below:
        return below[0]
    parts = key.split(".")
    enclosing = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((places[name] for name in enclosing if name in places), None)
