"""What a recipe reads that a Job in a cluster has to be given, and the recipe as it is there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.manifests.build import Build
from pipeline.reading.files import read_regular
from pipeline.recipe.paths import MODEL_KEY, names_file
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import Section, elements_of, section_of
from pipeline.recipe.tree import named_fields

RECIPE = "recipe.yaml"
INPUTS = "/inputs"
"""Where the Job finds what it was given on a volume of its own."""

MOST_TEXT = 384 << 10
"""Bytes of files that travel with the recipe. Helm keeps a release, chart and objects, in one
Secret of a mebibyte at most, and base64 leaves little to compress."""


@dataclass(frozen=True)
class Inputs:
    """What a build Job needs.

    Attributes:
        recipe: The recipe, with the paths of the Job's container; None where it is not known.
        files: Texts that travel beside it, by name.
        missing: Where the Job expects what does not travel, with what it is here, by key.
    """

    recipe: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    missing: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether a Job needs nothing but this and the Hub."""
        return self.recipe is not None and not self.missing


def inputs_of(build: Build) -> Inputs:
    """Reads a build's recipe from its report, and the texts that it names where they are small.

    A model of the Hub is pinned to the commit that was built.
    """
    if not build.recipe:
        return Inputs()
    recipe = copy.deepcopy(dict(build.recipe))
    files: dict[str, bytes] = {}
    missing: dict[str, tuple[str, str]] = {}
    commit = build.section("model").get("commit")
    if commit:
        recipe["model"]["revision"] = commit
    room = MOST_TEXT
    for key, holder, place in _named_files(Recipe, recipe, ""):
        path = Path(holder[place])
        if key == MODEL_KEY and commit:
            continue
        content = None if key == MODEL_KEY else _content(path, room)
        if content is None:
            holder[place] = f"{INPUTS}/{path.name}"
            missing[key] = (holder[place], str(path))
        else:
            name = next(n for n in _names(path.name) if files.get(n, content) == content)
            files[name] = content
            holder[place] = name
            room -= len(content)
    written = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    return Inputs(written, files, missing)


def _named_files(section: type[Section], data: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Each value that names a file: its key, what holds it, and its place in there."""
    for name, described in named_fields(section).items():
        value, key = data.get(name), f"{prefix}{name}"
        inner, elements = section_of(described), elements_of(described)
        if inner and isinstance(value, dict):
            yield from _named_files(inner, value, f"{key}.")
        elif isinstance(value, list):
            for index, element in enumerate(value):
                if elements and isinstance(element, dict):
                    yield from _named_files(elements, element, f"{key}.{index}.")
                elif isinstance(element, str) and names_file(described):
                    yield f"{key}.{index}", value, index
        elif isinstance(value, str) and names_file(described):
            yield key, data, name


def _content(path: Path, room: int) -> bytes | None:
    """The bytes of a file that is small enough to travel; None for any other."""
    try:
        return read_regular(path, room)
    except (OSError, ValueError):
        return None


def _names(name: str) -> Iterator[str]:
    """Names for a key of a ConfigMap: the file's own, and with numbers in front."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "-" for c in name)
    if plain != RECIPE:
        yield plain
    number = 1
    while True:
        yield f"{number}-{plain}"
        number += 1
