"""Reads a recipe from YAML so that every error names the file, the line and the key."""

from __future__ import annotations

import difflib
import re
import reprlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from pipeline.errors import RecipeError, UsageError
from pipeline.recipe.schema import Recipe, nearest_place
from pipeline.recipe.section import Section, elements_of, section_of

MAX_BYTES = 1 << 20


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


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes and the values of one document; raises yaml.YAMLError for whatever is not one."""
    loader = _RecipeLoader(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` assignments applied before validation; values are YAML.

    Raises:
        RecipeError: The file is missing, is not YAML, or breaks a rule of the recipe.
        UsageError: An override is not an assignment to a key.
    """
    text = _read(path)
    try:
        tree, data = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(
            "the recipe is not valid YAML",
            where=f"{path}{line}",
            why=_problem(error),
            fix="Correct the line; a cut-off file or a missing bracket usually ends here",
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(
            "the recipe is empty or not a mapping of keys",
            where=str(path),
            fix="trtllm-pipeline init MODEL writes one that can be run",
        )
    places = {key: f"{path}:{line}" for key, line in _lines(tree)}
    for override in overrides:
        key = _apply(data, override)
        places[key] = f"--set {override}"
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _recipe_error(error, path, places) from error
    recipe._places.update(places)
    words = [str(path), *(word for override in overrides for word in ("--set", override))]
    recipe._arguments = shlex.join(words)
    return recipe


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(
                "the recipe is larger than 1 MiB",
                where=str(path),
                fix="Name a recipe, not a model or a text",
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(
            "there is no such recipe",
            where=str(path),
            fix="trtllm-pipeline init MODEL writes one; the project's repository has others in "
            "configs/",
        ) from error
    except (OSError, ValueError) as error:
        # A name with a NUL character and bytes that are not UTF-8 are ValueErrors.
        raise RecipeError(
            "the recipe cannot be read",
            where=str(path),
            why=str(error),
            fix="Name a YAML file in UTF-8",
        ) from error


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, key_node.start_mark.line + 1
        yield from _lines(value_node, f"{key}.")


def _apply(data: dict[str, Any], override: str) -> str:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UsageError(
            "not an assignment",
            where=f"--set {override}",
            fix="Write --set section.key=value, for example --set compile.max_batch_size=8",
        )
    try:
        _, value = _parse(text)
    except yaml.YAMLError as error:
        raise UsageError(
            "the value is not valid YAML",
            where=f"--set {override}",
            why=_problem(error),
            fix="Close its brackets and quotes, and quote it for the shell",
        ) from error
    target = data
    for part in parts[:-1]:
        child = target.get(part)
        if not isinstance(child, dict | None):
            raise UsageError(
                f"{part} is not a section",
                where=f"--set {override}",
                why=f"The recipe says {part}: {reprlib.repr(child)}",
                fix="Name the key with the sections that enclose it, such as compile.max_seq_len",
            )
        # A copy, because a YAML alias makes one object of two sections.
        section = dict(child or {})
        target[part] = section
        target = section
    target[parts[-1]] = value
    return ".".join(parts)


def _recipe_error(error: ValidationError, path: Path, places: dict[str, str]) -> RecipeError:
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    place = nearest_place(key, places) or str(path)
    why = first["msg"].removeprefix("Value error, ")
    fix: str | None = f"Set {key} to a value that is allowed" if key else "Correct the recipe"
    if first["type"] == "extra_forbidden":
        why = "there is no such key"
        fix = _suggestion(first["loc"])
    elif first["type"] == "missing":
        why = "the key is required"
        fix = f"Add {key}"
    elif first["type"] == "literal_error":
        why = _not_a_choice(first["input"], first["ctx"]["expected"], _takes_null(first["loc"]))
    elif first["type"] == "model_type":
        why = "it must be a section with keys of its own"
        fix = f"Write the keys of {key} below it, indented"
    elif first["type"] == "string_type":
        fix = f"Put the value of {key} in quotes"
    elif first["type"] == "value_error":
        # The rule's own message names the remedy.
        fix = None
    more = f" ({len(problems) - 1} more below it)" if len(problems) > 1 else ""
    return RecipeError(f"{key or 'the recipe'} is wrong{more}", where=place, why=why, fix=fix)


def _not_a_choice(value: object, choices: str, takes_null: bool) -> str:
    """Says which values are allowed; pydantic's list of them leaves null out."""
    if not takes_null:
        return f"{value!r} is not one of {choices}"
    return f"{value!r} is not allowed: it is {choices.replace(' or ', ', ')} or null"


def _takes_null(location: tuple[int | str, ...]) -> bool:
    section = _section_around(location)
    fields = section.model_fields if section else {}
    field = fields.get(str(location[-1]))
    return field is not None and type(None) in get_args(field.annotation)


def _section_around(location: tuple[int | str, ...]) -> type[Section] | None:
    """The model that has the last key of a location; None where it is in none."""
    section: type[Section] | None = Recipe
    for part in location[:-1]:
        # The place of an element in a list has no model of its own.
        if not isinstance(part, int):
            field = section.model_fields.get(part) if section else None
            section = section_of(field) or elements_of(field) if field else None
    return section


def _suggestion(location: tuple[int | str, ...]) -> str:
    section = _section_around(location)
    if section is None:
        return "Remove it"
    known = [field.alias or name for name, field in section.model_fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known keys here: {', '.join(known)}"
