"""The keys of a recipe, found in its classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic.fields import FieldInfo

from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import Section, elements_of, section_of


def named_fields(section: type[Section]) -> dict[str, FieldInfo]:
    """Returns the fields of a section by the names that a recipe has for them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def below(field: FieldInfo) -> type[Section] | None:
    """Returns the section of a field, or of the elements of its list; None for a plain value."""
    return section_of(field) or elements_of(field)


def field_at(parts: Sequence[str]) -> FieldInfo | None:
    """Finds the field of a dotted key, given in parts; None where there is none."""
    section: type[Section] | None = Recipe
    field = None
    for part in parts:
        field = named_fields(section).get(part) if section else None
        section = section_of(field) if field else None
    return field


def every_key(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yields every dotted key that ``--set`` takes, sections before what is in them."""
    for name, field in named_fields(section).items():
        yield f"{prefix}{name}"
        if inner := section_of(field):
            yield from every_key(inner, f"{prefix}{name}.")
