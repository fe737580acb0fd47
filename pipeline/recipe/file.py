"""Reads a recipe from YAML so that every error names the file, the line and the key."""

from __future__ import annotations

import itertools
import re
import reprlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import RecipeError, UsageError
from pipeline.reading.files import read_utf8
from pipeline.recipe.mistakes import mistakes_of
from pipeline.recipe.overrides import apply_overrides, problem
from pipeline.recipe.paths import PathResolver
from pipeline.recipe.places import places_in
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stored import with_stored_format

MAX_BYTES = 1 << 20
# Levels and values of a recipe, its aliases unfolded; no recipe has a tenth of either.
DEEPEST, MOST_VALUES = 64, 100_000


# What a value of the wrong form makes PyYAML's constructors raise.
CONSTRUCTION_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
TEXT_TAG, MERGE_TAG, FLOAT_TAG = (f"tag:yaml.org,2002:{name}" for name in ("str", "merge", "float"))


class _RecipeLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML silently keeps the last."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except CONSTRUCTION_ERRORS as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{reprlib.repr(node.value)} cannot be read: {error}", node.start_mark
            ) from error


def _unique_mapping(loader: _RecipeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE_TAG:
            continue
        if key_node.tag != TEXT_TAG:
            key = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "of this line"
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key} is not plain text", key_node.start_mark
            )
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
            )
        seen.add(key_node.value)
    return dict(loader.construct_mapping(node, deep=True))


_RecipeLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
# YAML 1.2 reads 1e-3 as a number, as everybody expects; PyYAML's YAML 1.1 takes it for text.
_RecipeLoader.add_implicit_resolver(
    FLOAT_TAG,
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _check_extent(node: yaml.Node | None) -> None:
    """Refuses what unfolds to more than a recipe can be: an alias stands for all that it names."""
    extent: dict[int, int] = {}
    above: set[int] = set()

    def count(node: yaml.Node) -> int:
        if id(node) in above:
            return 1  # the constructor refuses it, with its place
        if id(node) not in extent:
            if len(above) == DEEPEST:
                raise yaml.YAMLError("it is nested too deeply")
            above.add(id(node))
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            children = itertools.chain.from_iterable(
                child if isinstance(child, tuple) else (child,) for child in inner
            )
            extent[id(node)] = 1 + sum(map(count, children))
            above.discard(id(node))
        if extent[id(node)] > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases unfold to more than {MOST_VALUES} values")
        return extent[id(node)]

    if node is not None:
        count(node)


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes and the values of one document; raises yaml.YAMLError for whatever is not one."""
    loader = _RecipeLoader(text)
    try:
        node = loader.get_single_node()
        _check_extent(node)
        return node, None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` assignments applied before validation; values are YAML, and an
            empty one gives a key its default back.

    Raises:
        RecipeError: The file is missing, is not YAML, or breaks rules of the recipe; ``mistakes``
            has all that was found.
        UsageError: An override is not an assignment to a key.
    """
    text = _read(path)
    try:
        tree, data = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RecipeError(
            "the recipe is not valid YAML",
            where=f"{path}{line}",
            why=problem(error),
            fix="Correct the line; a cut-off file or a missing bracket usually ends here",
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(
            "the recipe is empty or not a mapping of keys",
            where=str(path),
            fix="trtllm-pipeline init MODEL writes one that can be run",
        )
    places = places_in(tree, path)
    misused, notices = apply_overrides(data, overrides, places, lambda text: _parse(text)[1])
    paths = PathResolver(path, places)
    resolved = with_stored_format(paths.resolve(data))
    cause: Exception | None = None
    try:
        recipe = Recipe.model_validate(resolved)
    except ValidationError as error:
        found, cause = mistakes_of(error, path, places), error
    else:
        found = []
    if found or misused or paths.mistakes:
        # Sorting keeps mistakes of one place in pydantic's order, which is that of the schema.
        ordered = sorted([*found, *misused, *paths.mistakes], key=lambda placed: placed[0].order)
        kind = UsageError if ordered[0] in misused else RecipeError
        raise kind.of([mistake for _, mistake in ordered]) from cause
    recipe._places.update({key: place.line for key, place in places.items()})
    recipe._notices = (*notices, *paths.notices())
    words = [str(path), *(word for override in overrides for word in ("--set", override))]
    recipe._arguments = shlex.join(words)
    return recipe


def _read(path: Path) -> str:
    try:
        return read_utf8(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise RecipeError(
            "there is no such recipe",
            where=str(path),
            fix="trtllm-pipeline init MODEL writes one; the project's repository has others in "
            "configs/",
        ) from error
    except (OSError, ValueError) as error:
        # Bytes that are not UTF-8 are a ValueError.
        raise RecipeError(
            "the recipe cannot be read",
            where=str(path),
            why=getattr(error, "strerror", None) or str(error),
            fix="Name a YAML file in UTF-8, not a model or a text",
        ) from error
