"""The paths of a recipe begin at its own folder, those of the command line where it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from pipeline.errors import Mistake
from pipeline.reading.files import impossible, shortened
from pipeline.recipe.places import Place, place_of
from pipeline.recipe.schema import HUB_PAGE, Recipe
from pipeline.recipe.section import NamesFile, Section, elements_of, section_of
from pipeline.recipe.tree import named_fields

MODEL_KEY = "model.source"
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})")


class PathResolver:
    """Makes the paths of a recipe usable in the current directory.

    ``~``, ``$NAME`` and ``${NAME}`` are expanded; ``$$`` is a dollar. A relative path begins at the
    folder of the file, or in the current directory where ``--set`` gave it. One that is there and
    not beside the file is taken too, with a notice, because that was the rule once.

    Args:
        path: The recipe's file.
        places: Where its keys were set.

    Attributes:
        mistakes: What is wrong with paths, after :meth:`resolve`.
    """

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self._path = path
        self._places = places
        self._strays: dict[str, str] = {}
        self.mistakes: list[tuple[Place, Mistake]] = []

    def resolve(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a recipe's data with every path resolved; nothing is validated."""
        return self._section(Recipe, data, "")

    def notices(self) -> list[str]:
        """Returns a line about paths that were found by the former rule; empty without any."""
        if not self._strays:
            return []
        written = ", ".join(f"{key}: {text}" for key, text in self._strays.items())
        notice = (
            f"relative paths begin at the folder of {self._path} now; as nothing is there, what is "
            f"in the current directory was taken, which the next version does not do. "
            f"Write {written}"
        )
        return [notice]

    def _section(
        self, section: type[Section], data: Mapping[str, Any], prefix: str
    ) -> dict[str, Any]:
        made = dict(data)
        for name, field in named_fields(section).items():
            value, key = data.get(name), f"{prefix}{name}"
            inner, elements = section_of(field), elements_of(field)
            if inner and isinstance(value, dict):
                made[name] = self._section(inner, value, f"{key}.")
            elif isinstance(value, list):
                made[name] = [
                    self._element(elements, field, element, f"{key}.{index}")
                    for index, element in enumerate(value)
                ]
            elif isinstance(value, str) and names_file(field):
                made[name] = self._resolved(value, key)
        return made

    def _element(
        self, section: type[Section] | None, field: FieldInfo, value: Any, key: str
    ) -> Any:
        if section and isinstance(value, dict):
            return self._section(section, value, f"{key}.")
        return self._resolved(value, key) if isinstance(value, str) and names_file(field) else value

    def _resolved(self, text: str, key: str) -> str:
        path = self._placed(text, key)
        why = None if "\0" in path else impossible(path)  # validation tells of that character
        if why:
            place = place_of(key, self._places)
            where = place.column if place else str(self._path)
            what = f"{key} cannot be used: {shortened(path)}"
            mistake = Mistake(what, shortened(where), key, why, "Name a regular file or a folder")
            self.mistakes.append((place or Place(where, where, (0, 0)), mistake))
        return path

    def _placed(self, text: str, key: str) -> str:
        place = place_of(key, self._places)
        expanded = self._expanded(text, key, place)
        folder = self._path.parent
        as_it_is = Path(expanded).is_absolute() or HUB_PAGE.match(expanded)
        if not expanded or as_it_is or (place and place.override):
            return expanded
        beside = os.path.join(folder, expanded)  # noqa: PTH118  Path would drop a leading ./
        if os.path.exists(beside):  # noqa: PTH110  a NUL character is told by validation
            return _short(beside)
        if os.path.exists(expanded):  # noqa: PTH110
            self._strays[key] = os.path.relpath(expanded, folder)
            return expanded
        if key == MODEL_KEY:
            # What is absolute cannot be taken for a name on the Hub.
            hub = HUB_ID.match(expanded) and "/" in expanded
            return expanded if hub else os.path.abspath(beside)  # noqa: PTH100
        return _short(beside)

    def _expanded(self, text: str, key: str, place: Place | None) -> str:
        unknown = []

        def value(found: re.Match[str]) -> str:
            if found[1]:
                return "$"
            name = found[2] or found[3]
            if name not in os.environ:
                unknown.append(name)
            return os.environ.get(name, "")

        expanded = _VARIABLE.sub(value, text)
        if unknown:
            mistake = Mistake(
                f"{key} names the environment variable {unknown[0]}, which is not set",
                place.column if place else str(self._path),
                key,
                f"it says {text}",
                f"Set {unknown[0]}, or write $$ for a dollar",
            )
            self.mistakes.append(
                (place or Place(str(self._path), str(self._path), (0, 0)), mistake)
            )
        return os.path.expanduser(expanded)  # noqa: PTH111  it raises where nobody is known


def as_written(path: Path, folder: Path) -> str:
    """Returns a path of the current directory as a recipe in a folder names it.

    Args:
        path: Relative to the current directory, or absolute, which it stays.
        folder: The recipe's, likewise.
    """
    text = str(path) if path.is_absolute() else os.path.relpath(path, folder)
    # What begins with ~ would be taken for somebody's home.
    return (f"./{text}" if text.startswith("~") else text).replace("$", "$$")


def names_file(field: FieldInfo) -> bool:
    """Tells whether the value of a field, or each element of it, names a file or a folder."""
    return any(isinstance(mark, NamesFile) for mark in field.metadata) or _marked(field.annotation)


def _marked(annotation: object) -> bool:
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, NamesFile) for mark in marks) or any(
        _marked(inner) for inner in get_args(annotation)
    )


def _short(path: str) -> str:
    """One spelling for each place, whatever the recipe's file was called; no link is followed."""
    short = os.path.normpath(path)
    if os.path.exists(path) and not (os.path.exists(short) and os.path.samefile(path, short)):  # noqa: PTH110, PTH121
        short = path  # behind a link .. is elsewhere
    here = Path.cwd()
    whole = Path(os.path.abspath(short)) if short != path else Path(short).absolute()  # noqa: PTH100
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else short


def without_paths(section: Section, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a section but for those that name files, which count by contents.

    Args:
        section: The section.
        values: What a stage reads of it, by name.
    """
    fields = named_fields(type(section))
    return {key: value for key, value in values.items() if not names_file(fields[key])}
