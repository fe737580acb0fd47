"""A recipe that notes which of its keys are read, and recipes that differ in one key."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import Section
from pipeline.stages.base import Stage, StageContext


class Recording:
    """Behaves as a section of a recipe and notes the dotted keys of the values that are read.

    Args:
        section: The recipe or a section of it.
        reads: Where the keys go.
        place: The section's own dotted key.
    """

    def __init__(self, section: Section, reads: set[str], place: str = "") -> None:
        self._section, self._reads, self._place = section, reads, place

    def __getattr__(self, name: str) -> Any:
        kind = type(self._section)
        if name in kind.model_fields:
            value = getattr(self._section, name)
            key = f"{self._place}.{name}".lstrip(".")
            if isinstance(value, Section):
                return Recording(value, self._reads, key)
            self._reads.add(key)
            return value
        described = getattr(kind, name)
        if isinstance(described, property):
            assert described.fget is not None
            return described.fget(self)  # what a property reads is read
        if name in ("model_dump", "read_by", "section"):
            return lambda *names, **options: self._dump(name, *names, **options)
        if name != "model_fields_set" and isinstance(described, types.FunctionType):
            return types.MethodType(described, self)
        return getattr(self._section, name)

    def _dump(self, method: str, *names: str, **options: Any) -> Any:
        dumped = getattr(self._section, method)(*names, **options)
        aliases = {field.alias: own for own, field in type(self._section).model_fields.items()}
        named = {aliases.get(key, key): value for key, value in dumped.items()}
        self._reads.update(_leaves(named, self._place))
        return dumped


def _leaves(values: dict[str, Any], place: str) -> Iterator[str]:
    for name, value in values.items():
        key = f"{place}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _leaves(value, key)
        else:
            yield key


def recorded(stage: Stage, reads: dict[str, set[str]]) -> Stage:
    """The stage, whose run notes what it reads of the recipe below its name in ``reads``."""

    def run(context: StageContext) -> dict[str, Any]:
        view: Any = Recording(context.recipe, reads.setdefault(stage.name, set()))
        return stage.run(replace(context, recipe=view))

    return replace(stage, run=run)


def changed(recipe: Recipe, key: str, others: dict[str, Any]) -> Recipe | None:
    """The recipe with another value of one key.

    Args:
        recipe: The recipe.
        key: Dotted key.
        others: Values to take, by key; a key that is absent gets one that its type allows.

    Returns:
        None where the type allows one value only.
    """
    first, _, rest = key.partition(".")
    if rest:
        new: Any = _changed_section(getattr(recipe, first), rest, others.get(key))
    else:
        new = _other(type(recipe), recipe, first, others.get(key))
    return None if new is None else recipe.model_copy(update={first: new})


def _changed_section(section: Section, key: str, other: Any) -> Section | None:
    first, _, rest = key.partition(".")
    new: Any
    if rest:
        new = _changed_section(getattr(section, first), rest, other)
    else:
        new = _other(type(section), section, first, other)
    return None if new is None else section.model_copy(update={first: new})


def _other(kind: type[Section], section: Section, name: str, other: Any) -> Any:
    if other is not None:
        return other
    value = getattr(section, name)
    choices = list(_choices(kind.model_fields[name].annotation))
    if choices:
        return next((choice for choice in choices if choice != value), None)
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 if value else 0.5
        case str():
            return f"{value}x"
        case list():
            element = _plain(kind.model_fields[name].annotation)
            # Of a Literal it is the first of its values.
            return [*value, {int: 1, float: 0.25, str: "x"}.get(element, element)]
        case None:
            allowed = _plain(typing.get_args(kind.model_fields[name].annotation)[0])
            # A section that is absent is not another value of it.
            absent = isinstance(allowed, type) and issubclass(allowed, Section)
            return None if absent else {int: 7, float: 0.5, str: "x", bool: True}[allowed]
    raise AssertionError(f"{name} has a value of another kind: {value!r}")


def _choices(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _choices(part)


def _plain(annotation: Any) -> Any:
    return _plain(typing.get_args(annotation)[0]) if typing.get_args(annotation) else annotation
